"""What `transformers` puts together of known towers, and image towers alone: Chinese-CLIP, AltCLIP, dual encoders,
CLIP's and SigLIP's vision models, DINOv2.

An image tower alone is a teacher (`harvest train umt-stage1-b16 --start.model FOLDER`) or a model without texts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing import clip, preprocessing, siglip
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble, tower_sizes
from harvest.model.importing.bert_text import Words, bert_words, pooler_rows
from harvest.model.importing.files import read_folder
from harvest.model.importing.preprocessing import Preprocessing, read_processor
from harvest.model.importing.tables import (
    Row,
    Table,
    flat_patches,
    layer_rows,
    scalar,
    scaled_rows,
    without,
)
from harvest.model.video_encoder import VideoEncoderConfig

DINOV2: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "use_swiglu_ffn": False,
    "qkv_bias": True,
}
"""What `transformers` assumes where a config.json is silent."""
VISION = (
    "clip_vision_model",
    "chinese_clip_vision_model",
    "altclip_vision_model",
    "siglip_vision_model",
    "dinov2",
)
PARTS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Whole models whose image tower may stand in a dual encoder."""


def vision_half(
    kind: str,
    said: Mapping[str, Any],
    names: Collection[str],
    prefix: str,
    folder: Path,
    source: str,
    *,
    embed_dim: int | None,
) -> tuple[VideoEncoderConfig, Table, tuple[str, ...]]:
    """An image tower's sizes, rows without its projection, and notes."""
    if kind == "dinov2":
        sizes = {**DINOV2, **said}
        pixels, notes = read_processor(folder, preprocessing.IMAGENET)
        return _dinov2(sizes, pixels, source, embed_dim), _dinov2_rows(prefix, sizes, names), notes
    if kind == "siglip_vision_model":
        sizes = {**siglip.DEFAULTS["vision"], **said}
        pixels, notes = read_processor(folder, preprocessing.SIGLIP)
        video = siglip.siglip_video(
            sizes, pixels, source, image_size=sizes["image_size"], embed_dim=embed_dim
        )
        rows = siglip.siglip_video_rows(prefix, sizes["num_hidden_layers"], patch_size=sizes["patch_size"])
        return video, rows, notes
    sizes = {**clip.DEFAULTS["vision"], **said}
    pixels, notes = read_processor(folder, preprocessing.CLIP)
    video = clip.clip_video(sizes, pixels, source, embed_dim=embed_dim)
    # AltCLIP's released weights have CLIP's names, those that transformers 5 writes have others
    layers = "encoder.layer" if f"{prefix}encoder.layer.0.layer_norm1.weight" in names else "encoder.layers"
    return video, clip.clip_video_rows(prefix, sizes["num_hidden_layers"], layers=layers), notes


def _dinov2(
    sizes: Mapping[str, Any], pixels: Preprocessing, source: str, embed_dim: int | None
) -> VideoEncoderConfig:
    width = sizes["hidden_size"]
    mlp_width = int(width * sizes["mlp_ratio"])
    if sizes["use_swiglu_ffn"]:
        mlp_width = (int(mlp_width * 2 / 3) + 7) // 8 * 8
    fields = tower_sizes({**sizes, "intermediate_size": mlp_width}, embed_dim or width, source)
    if sizes["use_swiglu_ffn"]:
        fields |= {"activation": "silu", "gated_mlp": True}
    return VideoEncoderConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        num_frames=1,
        pre_norm=False,
        patch_bias=True,
        projection=embed_dim is not None,
        **pixels.fields,
        **fields,
    )


def _dinov2_rows(v: str, sizes: Mapping[str, Any], names: Collection[str]) -> Table:
    positions = f"{v}embeddings.position_embeddings"
    table: Table = {
        "video.prefix": Row((f"{v}embeddings.cls_token", positions), lambda x, y: x[0, 0] + y[0, 0]),
        "video.place_positions": Row((positions,), lambda x: x[0, 1:]),
        **layer_rows("video.patches", f"{v}embeddings.patch_embeddings.projection.{{}}"),
        "video.patches.weight": Row((f"{v}embeddings.patch_embeddings.projection.weight",), flat_patches),
        **layer_rows("video.norm_post", f"{v}layernorm.{{}}"),
    }
    for i in range(sizes["num_hidden_layers"]):
        ours, theirs = f"video.blocks.{i}", f"{v}encoder.layer.{i}"
        attention = f"{theirs}.attention"
        table |= {
            **layer_rows(f"{ours}.norm_attention", f"{theirs}.norm1.{{}}"),
            **layer_rows(f"{ours}.norm_mlp", f"{theirs}.norm2.{{}}"),
            **layer_rows(
                f"{ours}.attention.qkv",
                *(f"{attention}.attention.{part}.{{}}" for part in ("query", "key", "value")),
            ),
            **scaled_rows(
                f"{ours}.attention.out", f"{attention}.output.dense", f"{theirs}.layer_scale1.lambda1"
            ),
        }
        last = "fc2"
        if f"{theirs}.mlp.weights_in.weight" in names:  # gate and units in one
            last = "weights_out"
            for kind in ("weight", "bias"):
                packed = (f"{theirs}.mlp.weights_in.{kind}",)
                table[f"{ours}.mlp.gate.{kind}"] = Row(packed, lambda x: x.chunk(2)[0])
                table[f"{ours}.mlp.up.{kind}"] = Row(packed, lambda x: x.chunk(2)[1])
        else:
            table |= layer_rows(f"{ours}.mlp.up", f"{theirs}.mlp.fc1.{{}}")
        table |= scaled_rows(f"{ours}.mlp.down", f"{theirs}.mlp.{last}", f"{theirs}.layer_scale2.lambda1")
    return table


def from_vision(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """An image tower alone, with its projection where there is one."""
    tensors, unused = without(read_folder(folder), r".*embeddings\.mask_token|classifier\.")
    prefixes = [
        prefix for prefix in ("vision_model.", "dinov2.") if any(n.startswith(prefix) for n in tensors)
    ]
    has_projection = "visual_projection.weight" in tensors
    video, rows, notes = vision_half(
        config["model_type"],
        config,
        tensors,
        prefixes[0] if prefixes else "",
        folder,
        source,
        embed_dim=len(tensors["visual_projection.weight"]) if has_projection else None,
    )
    if has_projection:
        rows["video.projection.weight"] = Row(("visual_projection.weight",))
    notes = (*notes, "an image tower alone, without texts")
    return assemble(
        Layout(video, None, lambda: rows, None, notes=notes, unused=unused), tensors, options, source=source
    )


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of Chinese-CLIP, AltCLIP or a dual encoder."""
    kind = config["model_type"]
    tensors, unused = without(read_folder(folder), r".*embeddings\.mask_token")
    parts = {name: dict(config.get(f"{name}_config") or {}) for name in ("vision", "text")}
    vision_kind = parts["vision"].get("model_type", "") if kind == "vision-text-dual-encoder" else VISION[0]
    vision_kind = PARTS.get(vision_kind, vision_kind)
    if vision_kind not in VISION:
        raise HarvestError(
            f"{source}: its image tower, of model_type {vision_kind!r}, is not supported, only {', '.join(VISION)}"
        )
    embed_dim = config.get("projection_dim", 768 if kind == "altclip" else 512)
    video, rows, notes = vision_half(
        vision_kind, parts["vision"], tensors, "vision_model.", folder, source, embed_dim=embed_dim
    )
    words, text_rows = _words(kind, tensors, parts["text"], folder, source, options, embed_dim)
    rows = {
        **rows,
        "video.projection.weight": Row(("visual_projection.weight",)),
        "log_scale": Row(("logit_scale",), scalar),
        **words.rows,
        **text_rows,
    }
    length = words.tokenizer.config.context_length
    layout = Layout(
        video,
        words.config,
        lambda: rows,
        words.tokenizer,
        notes=(*notes, f"texts of at most {length} ids"),
        unused=unused,
    )
    return assemble(layout, tensors, options, source=source)


def _words(
    kind: str,
    tensors: Mapping[str, Tensor],
    said: Mapping[str, Any],
    folder: Path,
    source: str,
    options: ImportOptions,
    embed_dim: int,
) -> tuple[Words, Table]:
    """The text tower and the rows of its projection."""
    prefix = "text_model."
    settings: dict[str, Any] = {}
    projection: Table = {"text.projection.weight": Row(("text_projection.weight",))}
    sizes = dict(said)
    if kind == "altclip":
        prefix = "text_model.roberta."
        sizes = {"layer_norm_eps": 1e-5} | sizes | {"model_type": "xlm-roberta"}
        settings = {"last_norm": True, "projection_bias": True}
        linear, matrix = "text_model.transformation", "text_projection.weight"
        projection = {
            **layer_rows("text.norm_post", "text_model.pre_LN.{}"),
            "text.projection.weight": Row((matrix, f"{linear}.weight"), lambda a, b: a @ b),
            "text.projection.bias": Row((matrix, f"{linear}.bias"), lambda a, b: a @ b),
        }
    elif kind == "chinese_clip":
        sizes = {"layer_norm_eps": 1e-12} | sizes | {"model_type": "bert"}
    elif sizes.get("model_type") not in ("bert", "roberta", "xlm-roberta"):
        raise HarvestError(
            f"{source}: its text tower, of model_type {sizes.get('model_type')!r}, is not supported, only bert, roberta "
            "and xlm-roberta"
        )
    else:  # read through BERT's pooler
        sizes = {"layer_norm_eps": 1e-12} | sizes
        projection = pooler_rows("text_model.pooler", "text_projection")
        settings = {
            "projection_width": len(tensors["text_model.pooler.dense.bias"]),
            "projection_activation": "tanh",
            "projection_bias": True,
        }
    words = bert_words(tensors, prefix, sizes, folder, source, options, embed_dim=embed_dim, **settings)
    return words, projection
