"""CLIP as `transformers`, OpenAI, OpenCLIP and ViCLIP write it. It gives an image model; ViCLIP a video model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing.assembly import (
    ImportOptions,
    Layout,
    Loaded,
    assemble,
    check_heads,
    complete,
    tower_sizes,
)
from harvest.model.importing.files import read_folder, read_json
from harvest.model.importing.tables import (
    ImportReport,
    Row,
    Table,
    count_used,
    flat_patches,
    layer_rows,
    rename,
    scalar,
    stack_depth,
    stack_rows,
    transposed,
)
from harvest.model.importing.vocabularies import END, START, clip_tokenizer, id_of
from harvest.model.layers import Activation
from harvest.model.preprocessing import CLIP_PIXELS, IMAGENET_PIXELS, Pixels
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig

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
OPENAI_BLOCK = {
    "norm_attention": ("ln_1.{}",),
    "attention.qkv": ("attn.in_proj_{}",),
    "attention.out": ("attn.out_proj.{}",),
    "norm_mlp": ("ln_2.{}",),
    "mlp.up": ("mlp.c_fc.{}",),
    "mlp.down": ("mlp.c_proj.{}",),
}


def _class_token(video: str, positions: str) -> Table:
    """The class token and its position are always added: they are one vector here."""
    return {
        "video.prefix": Row((video, positions), lambda token, table: token + table[0]),
        "video.place_positions": Row((positions,), lambda table: table[1:]),
    }


def clip_table(video_depth: int, text_depth: int) -> Table:
    """`transformers.CLIPModel`."""
    v, t = "vision_model", "text_model"
    return {
        **_class_token(f"{v}.embeddings.class_embedding", f"{v}.embeddings.position_embedding.weight"),
        "video.patches.weight": Row((f"{v}.embeddings.patch_embedding.weight",), flat_patches),
        **layer_rows("video.norm_pre", f"{v}.pre_layrnorm.{{}}"),
        **stack_rows("video.blocks", f"{v}.encoder.layers", video_depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}.post_layernorm.{{}}"),
        "video.projection.weight": Row(("visual_projection.weight",)),
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **stack_rows("text.blocks", f"{t}.encoder.layers", text_depth, TRANSFORMERS_BLOCK),
        **layer_rows("text.norm_post", f"{t}.final_layer_norm.{{}}"),
        "text.projection.weight": Row(("text_projection.weight",)),
        "log_scale": Row(("logit_scale",), scalar),
    }


def openai_table(video_depth: int, text_depth: int, *, video: str = "visual.", text: str = "") -> Table:
    """OpenAI's names, which OpenCLIP and, with other prefixes, ViCLIP use too."""
    return {
        **_class_token(f"{video}class_embedding", f"{video}positional_embedding"),
        "video.patches.weight": Row((f"{video}conv1.weight",), flat_patches),
        **layer_rows("video.norm_pre", f"{video}ln_pre.{{}}"),
        **stack_rows("video.blocks", f"{video}transformer.resblocks", video_depth, OPENAI_BLOCK),
        **layer_rows("video.norm_post", f"{video}ln_post.{{}}"),
        "video.projection.weight": Row((f"{video}proj",), transposed),
        "text.words.weight": Row((f"{text}token_embedding.weight",)),
        "text.positions": Row((f"{text}positional_embedding",)),
        **stack_rows("text.blocks", f"{text}transformer.resblocks", text_depth, OPENAI_BLOCK),
        **layer_rows("text.norm_post", f"{text}ln_final.{{}}"),
        "text.projection.weight": Row((f"{text}text_projection",), transposed),
        "log_scale": Row(("logit_scale",), scalar),
    }


def viclip_table(video_depth: int, text_depth: int) -> Table:
    """ViCLIP's released checkpoints; its temperature is held above 0.01 before every use."""
    table = openai_table(video_depth, text_depth, video="vision_encoder.", text="text_encoder.")
    table["video.time_positions.table"] = Row(
        ("vision_encoder.temporal_positional_embedding",), lambda x: x[0]
    )
    table["log_scale"] = Row(("temp",), lambda temp: -temp.clamp(min=0.01).log().reshape(()))
    return table


# --- transformers ------------------------------------------------------------------------------------------------


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of `transformers.CLIPModel`."""
    text, vision = read_sizes(config, DEFAULTS)
    pixels, notes = read_pixels(folder, CLIP_PIXELS)
    embed_dim = config.get("projection_dim", 512)
    tokenizer = clip_tokenizer(folder, options.vocabulary, text["max_position_embeddings"])
    start_id, end_id = (id_of(token, tokenizer.core, source) for token in (START, END))
    said = text.get("eos_token_id", 2)
    if said not in (2, end_id):  # 2 was written by mistake for years; transformers reads the highest id then
        raise HarvestError(f"{source}: config.json ends texts with id {said}, the tokenizer with {end_id}")
    layout = Layout(
        video=VideoEncoderConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            num_frames=1,
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
            **tower_sizes(vision, embed_dim, source),
        ),
        text=TextEncoderConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            start_id=start_id,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
            **tower_sizes(text, embed_dim, source),
        ),
        table=clip_table(vision["num_hidden_layers"], text["num_hidden_layers"]),
        tokenizer=tokenizer,
        notes=notes,
    )
    return assemble(layout, read_folder(folder), options, source=source)


def read_sizes(
    config: Mapping[str, Any], defaults: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes of the text and the vision tower of a `transformers` config.json."""
    text, vision = (
        defaults[tower] | (config.get(f"{tower}_config") or {}) | (config.get(f"{tower}_config_dict") or {})
        for tower in ("text", "vision")
    )
    return text, vision


def read_pixels(folder: Path, default: Pixels) -> tuple[Pixels, tuple[str, ...]]:
    """Mean and standard deviation of a folder's processor, or the family's with a note."""
    processor = read_json(folder / "processor_config.json").get("image_processor", {})
    processor |= read_json(folder / "preprocessor_config.json")
    if "image_mean" in processor and "image_std" in processor:
        return (tuple(processor["image_mean"]), tuple(processor["image_std"])), ()
    return default, ("pixel mean and std are the family's default: no preprocessor_config.json",)


# --- state dicts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """What a state dict does not say of itself, from a config beside it or from the user."""

    activation: Activation | None = None
    video_head_width: int = 64
    text_head_width: int = 64
    pixels: Pixels | None = None
    notes: tuple[str, ...] = ()


def from_open_clip(folder: Path, source: str, options: ImportOptions) -> Loaded:
    """A folder of OpenCLIP, whose open_clip_config.json says what the tensors do not."""
    config = read_json(folder / "open_clip_config.json")
    sizes = config.get("model_cfg", config)
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    # What these ask for besides is a tower that we do not have; its names may still fit.
    known = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    unknown = sorted(vision.keys() - known) + sorted(
        text.keys() - {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
    )
    if unknown:
        raise HarvestError(
            f"{source}: open_clip_config.json asks for what is not supported: {', '.join(unknown)}"
        )
    tensors = read_folder(folder, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
    activation: Activation = "quick_gelu" if sizes.get("quick_gelu") else "gelu"
    pixels = config.get("preprocess_cfg", {})
    stated = Stated(
        activation=activation,
        video_head_width=vision.get("head_width", 64),
        text_head_width=text["width"] // text["heads"],
        pixels=(tuple(pixels["mean"]), tuple(pixels["std"])) if "mean" in pixels else None,
        notes=(f"activation {activation}, from open_clip_config.json",),
    )
    return from_state_dict(tensors, source, folder, options, stated)


def from_state_dict(
    tensors: dict[str, Tensor], source: str, folder: Path, options: ImportOptions, stated: Stated
) -> Loaded:
    """OpenAI's names, or ViCLIP's: the sizes are those of the tensors."""
    is_viclip = any(name.startswith("vision_encoder.") for name in tensors)
    if not is_viclip and not any(name.startswith("visual.transformer.") for name in tensors):
        raise HarvestError(
            f"{source} is in no known layout (OpenAI, OpenCLIP, ViCLIP, UMT). Its first tensors: {', '.join(list(tensors)[:6])}"
        )
    video_prefix, text_prefix = ("vision_encoder.", "text_encoder.") if is_viclip else ("visual.", "")
    video_depth = stack_depth(tensors, f"{video_prefix}transformer.resblocks")
    text_depth = stack_depth(tensors, f"{text_prefix}transformer.resblocks")
    table = (viclip_table if is_viclip else openai_table)(video_depth, text_depth)
    ours, ignored = rename(tensors, table, source=source)
    for name in ("video.place_positions", "video.projection.weight", "text.positions", "text.words.weight"):
        check_matrix(ours, table, name, source)
    check_matrix(ours, table, "text.projection.weight", source)
    conv = tensors[f"{video_prefix}conv1.weight"]
    num_patches, width = ours["video.place_positions"].shape
    if math.isqrt(num_patches) ** 2 != num_patches or conv.ndim != (5 if is_viclip else 4):
        raise HarvestError(
            f"{source}: {num_patches} positions and patches {list(conv.shape)} are not a square frame's"
        )
    num_times = 1
    if is_viclip:
        check_matrix(ours, table, "video.time_positions.table", source)
        num_times = ours["video.time_positions.table"].shape[0]
    context_length, text_width = ours["text.positions"].shape
    check_heads(width, stated.video_head_width, source)
    check_heads(text_width, stated.text_head_width, source)
    if not video_depth or not text_depth:
        raise HarvestError(f"{source}: {video_depth} video blocks and {text_depth} text blocks")
    tokenizer = clip_tokenizer(folder, options.vocabulary, context_length)
    start_id, end_id = (id_of(token, tokenizer.core, source) for token in (START, END))
    notes = list(stated.notes)
    pixels = stated.pixels
    if pixels is None:
        pixels = IMAGENET_PIXELS if is_viclip else CLIP_PIXELS
        notes.append(
            f"pixel mean and std are {'ImageNet' if is_viclip else 'CLIP'}'s, as the layout has none"
        )
    activation = stated.activation
    if activation is None:
        activation = "quick_gelu"
        notes.append("activation quick_gelu, as in the weights of OpenAI and ViCLIP")
        if not is_viclip:
            notes.append("weights trained by OpenCLIP under the same names mostly need activation='gelu'")
    notes.append(
        f"heads are {stated.video_head_width} wide in the video tower, {stated.text_head_width} in the text tower"
    )
    tubelet_size = conv.shape[2] if is_viclip else 1
    config = ModelConfig(
        video=VideoEncoderConfig(
            image_size=conv.shape[-1] * math.isqrt(num_patches),
            patch_size=conv.shape[-1],
            tubelet_size=tubelet_size,
            num_frames=num_times * tubelet_size,
            width=width,
            depth=video_depth,
            num_heads=width // stated.video_head_width,
            mlp_width=ours["video.blocks.0.mlp.up.bias"].shape[0],
            embed_dim=ours["video.projection.weight"].shape[0],
            activation=activation,
            prefix="clip" if is_viclip else "frame",
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
        ),
        text=TextEncoderConfig(
            vocab_size=ours["text.words.weight"].shape[0],
            context_length=context_length,
            width=text_width,
            depth=text_depth,
            num_heads=text_width // stated.text_head_width,
            mlp_width=ours["text.blocks.0.mlp.up.bias"].shape[0],
            embed_dim=ours["text.projection.weight"].shape[0],
            activation=activation,
            start_id=start_id,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
        ),
    )
    report = ImportReport(source, count_used(table), ignored, notes=tuple(notes))
    return complete(config, ours, tokenizer, report, options)


def check_matrix(ours: Mapping[str, Tensor], table: Table, name: str, source: str) -> None:
    """HarvestError unless this tensor, whose sizes are read, has two dimensions."""
    if ours[name].ndim != 2:
        raise HarvestError(f"{source}: wrong shape: {' + '.join(table[name].sources)} is no table")
