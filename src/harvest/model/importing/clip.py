"""CLIP as `transformers` writes it, and every state dict in OpenAI's names: OpenAI's, OpenCLIP's and ViCLIP's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing import preprocessing
from harvest.model.importing.assembly import (
    ImportOptions,
    Layout,
    Loaded,
    assemble,
    check_heads,
    complete,
    tower_sizes,
)
from harvest.model.importing.files import read_folder
from harvest.model.importing.preprocessing import Preprocessing, read_processor
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
from harvest.model.importing.vocabularies import END, START, clip_tokenizer, hub_tokenizer, id_of
from harvest.model.layers import Activation
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
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


def openai_video_rows(depth: int, prefix: str, names: Collection[str]) -> Table:
    """OpenAI's names of the image tower; those that not every model has are seen from `names`."""
    table: Table = {
        **_class_token(f"{prefix}class_embedding", f"{prefix}positional_embedding"),
        "video.patches.weight": Row((f"{prefix}conv1.weight",), flat_patches),
        **_openai_blocks("video.blocks", f"{prefix}transformer.resblocks", depth, names),
        "video.projection.weight": Row((f"{prefix}proj",), transposed),
    }
    if f"{prefix}ln_pre.weight" in names or not names:
        table |= layer_rows("video.norm_pre", f"{prefix}ln_pre.{{}}")
    return table | layer_rows("video.norm_post", f"{prefix}ln_post.{{}}")


def openai_text_rows(depth: int, prefix: str, names: Collection[str]) -> Table:
    """OpenAI's names of the text tower; under `text.` where OpenCLIP builds it apart (`custom_text`)."""
    table: Table = {
        "text.words.weight": Row((f"{prefix}token_embedding.weight",)),
        "text.positions": Row((f"{prefix}positional_embedding",)),
        **_openai_blocks("text.blocks", f"{prefix}transformer.resblocks", depth, names),
        **layer_rows("text.norm_post", f"{prefix}ln_final.{{}}"),
    }
    if f"{prefix}text_projection.weight" in names:
        table["text.projection.weight"] = Row((f"{prefix}text_projection.weight",))
        if f"{prefix}text_projection.bias" in names:
            table["text.projection.bias"] = Row((f"{prefix}text_projection.bias",))
    else:
        table["text.projection.weight"] = Row((f"{prefix}text_projection",), transposed)
    return table


def _openai_blocks(target: str, source: str, depth: int, names: Collection[str]) -> Table:
    table = stack_rows(target, source, depth, OPENAI_BLOCK)
    for i in range(depth if f"{source}.0.ls_1.gamma" in names else 0):
        # What a branch adds is scaled channel by channel: that is part of its last layer.
        for ours, theirs, scale in (
            ("attention.out", "attn.out_proj", "ls_1"),
            ("mlp.down", "mlp.c_proj", "ls_2"),
        ):
            gamma, layer = f"{source}.{i}.{scale}.gamma", f"{source}.{i}.{theirs}"
            table[f"{target}.{i}.{ours}.weight"] = Row(
                (f"{layer}.weight", gamma), lambda matrix, gamma: matrix * gamma[:, None]
            )
            table[f"{target}.{i}.{ours}.bias"] = Row(
                (f"{layer}.bias", gamma), lambda bias, gamma: bias * gamma
            )
    return table


def score_rows(names: Collection[str]) -> Table:
    """Scale and, where there is one, bias of the scores."""
    table: Table = {"log_scale": Row(("logit_scale",), scalar)}
    return table | ({"score_bias": Row(("logit_bias",), scalar)} if "logit_bias" in names else {})


def openai_table(video_depth: int, text_depth: int, names: Collection[str] = ()) -> Table:
    """OpenAI's and OpenCLIP's names of a whole model."""
    text = "text." if "text.token_embedding.weight" in names else ""
    return {
        **openai_video_rows(video_depth, "visual.", names),
        **openai_text_rows(text_depth, text, names),
        **score_rows(names),
    }


def viclip_table(video_depth: int, text_depth: int) -> Table:
    """ViCLIP's released checkpoints; its temperature is held above 0.01 before every use."""
    positions = "vision_encoder.temporal_positional_embedding"
    return {
        **openai_video_rows(video_depth, "vision_encoder.", ()),
        **openai_text_rows(text_depth, "text_encoder.", ()),
        "video.time_positions.table": Row((positions,), lambda x: x[0]),
        "log_scale": Row(("temp",), lambda temp: -temp.clamp(min=0.01).log().reshape(())),
    }


# --- transformers ------------------------------------------------------------------------------------------------


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of `transformers.CLIPModel`, or of MetaCLIP 2, which differs by its tokenizer alone."""
    text, vision = read_sizes(config, DEFAULTS)
    pixels, notes = read_processor(folder, preprocessing.CLIP)
    embed_dim = config.get("projection_dim", 512)
    length = text["max_position_embeddings"]
    if config["model_type"] == "metaclip_2":
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
    layout = Layout(
        video=VideoEncoderConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            num_frames=1,
            **pixels.fields,
            **tower_sizes(vision, embed_dim, source),
        ),
        text=TextEncoderConfig(
            vocab_size=text["vocab_size"],
            context_length=length,
            start_id=start_id,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
            **tower_sizes(text, embed_dim, source),
        ),
        table=lambda: clip_table(vision["num_hidden_layers"], text["num_hidden_layers"]),
        tokenizer=tokenizer,
        notes=notes,
    )
    return assemble(layout, read_folder(folder), options, source=source)


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


# --- state dicts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """What the tensors of a state dict do not say: from a config beside it, or from the user."""

    activation: Activation = "quick_gelu"
    text_activation: Activation = "quick_gelu"
    head_width: int = 64
    text_head_width: int = 64
    text_eps: float = 1e-5
    video_pooling: Literal["prefix", "mean"] = "prefix"
    norm_after_pooling: bool = False
    text_pooling: Literal["end", "last", "first"] = "end"
    causal: bool = True
    image_size: int | None = None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()


PRESETS: dict[str, dict[str, Any]] = {
    "openai": {"activation": "quick_gelu"},
    "open_clip": {"activation": "gelu"},
}
"""Both: heads 64 wide, class token, causal text read at its end token. OpenCLIP's own default has exact GELU."""
OPENAI_SIZES = {"input_resolution", "context_length", "vocab_size"}
"""OpenAI's files hold these numbers beside the weights, others' do not; all of its models are of its preset."""
_UNSTATED = ("activation", "head_width", "video_pooling", "text_pooling", "causal")


def stated_by_user(
    tensors: Collection[str], options: ImportOptions, source: str, notes: tuple[str, ...]
) -> Stated:
    """What a bare file is taken for; HarvestError where it could be more than one model and nobody says which."""
    if not is_viclip(tensors) and not any(name.startswith("visual.transformer.") for name in tensors):
        raise HarvestError(
            f"{source} is in no known layout (OpenAI, OpenCLIP, ViCLIP, UMT). Its first tensors: {', '.join(list(tensors)[:6])}"
        )
    preset, why = options.preset, "as was said"
    if preset is None and set(tensors) >= OPENAI_SIZES:
        preset, why = "openai", "as the file holds OpenAI's sizes"
    if preset is None and is_viclip(tensors):
        preset, why = "openai", "as in all of ViCLIP's weights"
    told = {name: getattr(options, name) for name in (*_UNSTATED, "text_head_width")}
    told = {name: value for name, value in told.items() if value is not None}
    missing = [name for name in _UNSTATED if name not in told]
    if preset is None and missing:
        raise HarvestError(
            f"{source}: a file alone does not say its {', '.join(name.replace('_', ' ') for name in missing)}; a wrong "
            "guess would load and give other embeddings. Give the folder with its config instead, or --preset openai "
            "(QuickGELU), --preset open_clip (exact GELU), both with heads 64 wide, a class token and causal texts read "
            f"at their end; or each: {', '.join('--' + name.replace('_', '-') for name in missing)}"
        )
    values = PRESETS.get(preset or "", {}) | told
    values.setdefault("text_activation", values["activation"])
    values.setdefault("text_head_width", values.get("head_width", 64))
    stated = Stated(notes=notes, **values)
    note = (
        f"activation {stated.activation}, heads {stated.head_width} and {stated.text_head_width} wide, clips read by "
        f"their {stated.video_pooling}, texts at their {stated.text_pooling}, {'' if stated.causal else 'not '}causal: {why}"
    )
    return dataclasses.replace(stated, notes=(*notes, note))


def is_viclip(names: Collection[str]) -> bool:
    return any(name.startswith("vision_encoder.transformer.") for name in names)


def from_state_dict(
    tensors: dict[str, Tensor],
    source: str,
    options: ImportOptions,
    stated: Stated,
    *,
    tokenizer_of: Callable[[int], Tokenizer],
) -> Loaded:
    """OpenAI's names, or ViCLIP's: the sizes are those of the tensors. `tokenizer_of` takes the context's length."""
    viclip = is_viclip(tensors)
    video_prefix = "vision_encoder." if viclip else "visual."
    text_prefix = "text_encoder." if viclip else "text." if "text.token_embedding.weight" in tensors else ""
    video_depth = stack_depth(tensors, f"{video_prefix}transformer.resblocks")
    text_depth = stack_depth(tensors, f"{text_prefix}transformer.resblocks")
    if not video_depth or not text_depth:
        raise HarvestError(f"{source}: {video_depth} video blocks and {text_depth} text blocks")
    table = (
        viclip_table(video_depth, text_depth) if viclip else openai_table(video_depth, text_depth, tensors)
    )
    ours, ignored = rename(tensors, table, source=source)
    matrices = ["video.place_positions", "video.projection.weight", "text.positions", "text.words.weight"]
    matrices += ["text.projection.weight", *(["video.time_positions.table"] if viclip else [])]
    for name in matrices:
        if ours[name].ndim != 2:
            raise HarvestError(f"{source}: wrong shape: {' + '.join(table[name].sources)} is no table")
    conv = tensors[f"{video_prefix}conv1.weight"]
    num_patches, width = ours["video.place_positions"].shape
    grid, patch_size = math.isqrt(num_patches), conv.shape[-1]
    if grid**2 != num_patches or conv.ndim != (5 if viclip else 4):
        raise HarvestError(
            f"{source}: {num_patches} positions and patches {list(conv.shape)} are not a square frame's"
        )
    image_size = stated.image_size or grid * patch_size
    if image_size // patch_size != grid:
        raise HarvestError(f"{source}: {num_patches} positions are not those of {image_size} pixels")
    num_times = ours["video.time_positions.table"].shape[0] if viclip else 1
    context_length, text_width = ours["text.positions"].shape
    check_heads(width, stated.head_width, source)
    check_heads(text_width, stated.text_head_width, source)
    tokenizer = tokenizer_of(context_length)
    notes, pixels = list(stated.notes), stated.preprocessing
    if pixels is None:
        pixels = preprocessing.IMAGENET if viclip else preprocessing.CLIP
        notes.append(
            f"pixel mean and std are {'ImageNet' if viclip else 'CLIP'}'s, pictures become squares by {pixels.fit}: "
            "the family's, as the file does not say"
        )
    if stated.norm_after_pooling:
        for kind in ("weight", "bias"):
            ours[f"video.norm_pooled.{kind}"] = ours.pop(f"video.norm_post.{kind}")
    tubelet_size = conv.shape[2] if viclip else 1
    config = ModelConfig(
        video=VideoEncoderConfig(
            image_size=image_size,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            num_frames=num_times * tubelet_size,
            width=width,
            depth=video_depth,
            num_heads=width // stated.head_width,
            mlp_width=ours["video.blocks.0.mlp.up.bias"].shape[0],
            embed_dim=ours["video.projection.weight"].shape[0],
            activation=stated.activation,
            prefix="clip" if viclip else "frame",
            pooling=stated.video_pooling,
            pre_norm="video.norm_pre.weight" in ours,
            post_norm=not stated.norm_after_pooling,
            pooled_norm=stated.norm_after_pooling,
            **pixels.fields,
        ),
        text=TextEncoderConfig(
            vocab_size=ours["text.words.weight"].shape[0],
            context_length=context_length,
            width=text_width,
            depth=text_depth,
            num_heads=text_width // stated.text_head_width,
            mlp_width=ours["text.blocks.0.mlp.up.bias"].shape[0],
            embed_dim=ours["text.projection.weight"].shape[0],
            activation=stated.text_activation,
            norm_eps=stated.text_eps,
            causal=stated.causal,
            pooling=stated.text_pooling,
            projection_bias="text.projection.bias" in ours,
            start_id=tokenizer.start_id,
            end_id=tokenizer.end_id,
            pad_id=tokenizer.config.pad_id,
        ),
        score_bias="score_bias" in ours,
    )
    report = ImportReport(source, count_used(table), ignored, notes=tuple(notes))
    return complete(config, ours, tokenizer, report, options)
