"""CLIP and what is built like it, as `transformers` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harvest.interfaces import HarvestError
from harvest.model.importing import preprocessing
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble, tower_sizes
from harvest.model.importing.files import read_folder
from harvest.model.importing.openai import class_token_rows
from harvest.model.importing.preprocessing import Preprocessing, read_processor
from harvest.model.importing.tables import (
    Row,
    Table,
    flat_patches,
    layer_rows,
    scalar,
    stack_rows,
    without,
)
from harvest.model.importing.vocabularies import END, START, clip_tokenizer, hub_tokenizer, id_of
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig

DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}
"""What `transformers` assumes where a config.json is silent."""

TRANSFORMERS_BLOCK = {
    "norm_attention": ("layer_norm1.{}",),
    "attention.qkv": ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    "attention.out": ("self_attn.out_proj.{}",),
    "norm_mlp": ("layer_norm2.{}",),
    "mlp.up": ("mlp.fc1.{}",),
    "mlp.down": ("mlp.fc2.{}",),
}


def clip_video_rows(
    v: str, depth: int, *, pre_norm: str = "pre_layrnorm", layers: str = "encoder.layers"
) -> Table:
    """`transformers.CLIPVisionModel` under a prefix, without its projection."""
    return {
        **class_token_rows(f"{v}embeddings.class_embedding", f"{v}embeddings.position_embedding.weight"),
        "video.patches.weight": Row((f"{v}embeddings.patch_embedding.weight",), flat_patches),
        **layer_rows("video.norm_pre", f"{v}{pre_norm}.{{}}"),
        **stack_rows("video.blocks", f"{v}{layers}", depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}post_layernorm.{{}}"),
    }


def clip_video(
    sizes: Mapping[str, Any], pixels: Preprocessing, source: str, *, embed_dim: int | None
) -> VideoEncoderConfig:
    """The image tower of sizes as `transformers` calls them; `embed_dim` None: without a projection."""
    return VideoEncoderConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        num_frames=1,
        projection=embed_dim is not None,
        **pixels.fields,
        **tower_sizes(sizes, embed_dim or sizes["hidden_size"], source),
    )


def _text_rows(t: str, depth: int) -> Table:
    return {
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **stack_rows("text.blocks", f"{t}.encoder.layers", depth, TRANSFORMERS_BLOCK),
        **layer_rows("text.norm_post", f"{t}.final_layer_norm.{{}}"),
    }


PROJECTIONS: Table = {
    "video.projection.weight": Row(("visual_projection.weight",)),
    "text.projection.weight": Row(("text_projection.weight",)),
    "log_scale": Row(("logit_scale",), scalar),
}
"""Of every model of `transformers` that is built like CLIP."""
BESIDE: dict[str, tuple[str, str]] = {
    "clipseg": (r"decoder\.", "the decoder of segments is left out"),
    "xclip": (
        r"mit\.|prompts_|.*\.message_(fc|ln|attn)\.",
        "its image and text towers alone: what passes between frames and makes prompts is left out, so that clips are "
        "embedded in another way than by X-CLIP",
    ),
}
"""What a model has besides the two towers, and what is said of leaving it out."""


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of `transformers.CLIPModel`; of MetaCLIP 2, which differs by its tokenizer; the towers of CLIPSeg's, X-CLIP's."""
    text, vision = read_sizes(config, DEFAULTS)
    kind = config["model_type"]
    pixels, notes = read_processor(folder, preprocessing.CLIP)
    embed_dim = config.get("projection_dim", 512)
    length = text["max_position_embeddings"]
    if kind == "metaclip_2":
        tokenizer = hub_tokenizer(folder, options.vocabulary, length)
        start_id, end_id = tokenizer.start_id, text.get("eos_token_id", 2)
    else:
        tokenizer = clip_tokenizer(folder, options.vocabulary, length)
        start_id, end_id = (id_of(token, tokenizer.core, source) for token in (START, END))
        said = text.get("eos_token_id", 2)
        if said not in (
            2,
            end_id,
        ):  # 2 was written by mistake for years; transformers reads the highest id then
            raise HarvestError(
                f"{source}: config.json ends texts with id {said}, the tokenizer with {end_id}"
            )
    tensors, unused = without(read_folder(folder), r"(?!)")
    if kind in BESIDE:
        pattern, note = BESIDE[kind]
        tensors, unused = without(tensors, pattern)
        tensors = {name.removeprefix("clip."): tensor for name, tensor in tensors.items()}
        notes = (*notes, note)
    layout = Layout(
        video=clip_video(vision, pixels, source, embed_dim=embed_dim),
        text=TextEncoderConfig(
            vocab_size=text["vocab_size"],
            context_length=length,
            start_id=start_id,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
            **tower_sizes(text, embed_dim, source),
        ),
        table=lambda: {
            **clip_video_rows(
                "vision_model.",
                vision["num_hidden_layers"],
                pre_norm="pre_layernorm" if kind == "xclip" else "pre_layrnorm",
            ),
            **_text_rows("text_model", text["num_hidden_layers"]),
            **PROJECTIONS,
        },
        tokenizer=tokenizer,
        notes=notes,
        unused=unused,
    )
    return assemble(layout, tensors, options, source=source)


def read_sizes(
    config: Mapping[str, Any], defaults: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes of the text and the vision tower of a `transformers` config.json."""
    found = []
    for tower in ("text", "vision"):
        sizes = dict(defaults[tower])
        for key in (f"{tower}_config", f"{tower}_config_dict"):
            said = config.get(key) or {}
            if not isinstance(said, dict):
                raise HarvestError(f"config.json: {key} must be an object with sizes, got {said!r}")
            sizes |= said
        found.append(sizes)
    return found[0], found[1]
