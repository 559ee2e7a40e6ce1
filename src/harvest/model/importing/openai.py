"""State dicts in OpenAI's names: OpenAI's, OpenCLIP's (CoCa's contrastive towers too) and ViCLIP's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing import preprocessing
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble, check_heads
from harvest.model.importing.preprocessing import Preprocessing
from harvest.model.importing.tables import (
    Row,
    Table,
    check_names,
    flat_patches,
    layer_rows,
    packed_attention_rows,
    scalar,
    scaled_rows,
    shape_of,
    stack_depth,
    stack_rows,
    transposed,
    without,
)
from harvest.model.layers import Activation
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import PoolConfig, VideoEncoderConfig

OPENAI_BLOCK = {
    "norm_attention": ("ln_1.{}",),
    "attention.qkv": ("attn.in_proj_{}",),
    "attention.out": ("attn.out_proj.{}",),
    "norm_mlp": ("ln_2.{}",),
    "mlp.up": ("mlp.c_fc.{}",),
    "mlp.down": ("mlp.c_proj.{}",),
}


def class_token_rows(video: str, positions: str) -> Table:
    """The class token and its position are always added: they are one vector here."""
    return {
        "video.prefix": Row((video, positions), lambda token, table: token + table[0]),
        "video.place_positions": Row((positions,), lambda table: table[1:]),
    }


def openai_video_rows(
    depth: int, prefix: str, names: Collection[str], *, norm_after_pooling: bool = False
) -> Table:
    """OpenAI's names of the image tower; those that not every model has are seen from `names`."""
    table: Table = {
        **class_token_rows(f"{prefix}class_embedding", f"{prefix}positional_embedding"),
        "video.patches.weight": Row((f"{prefix}conv1.weight",), flat_patches),
        **_openai_blocks("video.blocks", f"{prefix}transformer.resblocks", depth, names),
        "video.projection.weight": Row((f"{prefix}proj",), transposed),
    }
    if f"{prefix}ln_pre.weight" in names or not names:
        table |= layer_rows("video.norm_pre", f"{prefix}ln_pre.{{}}")
    if f"{prefix}attn_pool.query" in names:
        table |= _coca_pool_rows(f"{prefix}attn_pool", names)
        norm_after_pooling = True
    norm = "norm_pooled" if norm_after_pooling else "norm_post"
    return table | layer_rows(f"video.{norm}", f"{prefix}ln_post.{{}}")


def _coca_pool_rows(pool: str, names: Collection[str]) -> Table:
    """CoCa reads its images by many queries that do not see each other, for its captions; the first is the image's."""

    def probe(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(query[0], weight.shape, weight, bias)

    table = {
        "video.pool.probe": Row((f"{pool}.query", f"{pool}.ln_q.weight", f"{pool}.ln_q.bias"), probe),
        **layer_rows("video.norm_post", f"{pool}.ln_k.{{}}"),
        **packed_attention_rows("video.pool.attention", f"{pool}.attn"),
    }
    if f"{pool}.attn.q_proj_weight" in names:  # where images are not as wide as the shared space
        parts = tuple(f"{pool}.attn.{part}_proj_weight" for part in "qkv")
        table["video.pool.attention.query.weight"] = Row(parts[:1])
        table["video.pool.attention.key_value.weight"] = Row(parts[1:])
    return table


def openai_text_rows(depth: int, prefix: str, names: Collection[str], *, projection: bool = True) -> Table:
    """OpenAI's names of the text tower; under `text.` where OpenCLIP builds it apart (`custom_text`)."""
    table: Table = {
        "text.words.weight": Row((f"{prefix}token_embedding.weight",)),
        "text.positions": Row((f"{prefix}positional_embedding",)),
        **_openai_blocks("text.blocks", f"{prefix}transformer.resblocks", depth, names),
        **layer_rows("text.norm_post", f"{prefix}ln_final.{{}}"),
    }
    if f"{prefix}cls_emb" in names:
        table["text.class_token"] = Row((f"{prefix}cls_emb",))
    if f"{prefix}text_projection.weight" in names:
        table["text.projection.weight"] = Row((f"{prefix}text_projection.weight",))
        if f"{prefix}text_projection.bias" in names:
            table["text.projection.bias"] = Row((f"{prefix}text_projection.bias",))
    elif projection:
        table["text.projection.weight"] = Row((f"{prefix}text_projection",), transposed)
    return table


def _openai_blocks(target: str, source: str, depth: int, names: Collection[str]) -> Table:
    table = stack_rows(target, source, depth, OPENAI_BLOCK)
    for i in range(depth if f"{source}.0.ls_1.gamma" in names else 0):
        block = f"{source}.{i}"
        table |= scaled_rows(f"{target}.{i}.attention.out", f"{block}.attn.out_proj", f"{block}.ls_1.gamma")
        table |= scaled_rows(f"{target}.{i}.mlp.down", f"{block}.mlp.c_proj", f"{block}.ls_2.gamma")
    return table


def score_rows(names: Collection[str]) -> Table:
    """Scale and, where there is one, bias of the scores."""
    table: Table = {"log_scale": Row(("logit_scale",), scalar)}
    return table | ({"score_bias": Row(("logit_bias",), scalar)} if "logit_bias" in names else {})


def viclip_table(video_depth: int, text_depth: int) -> Table:
    """ViCLIP's released checkpoints; its temperature is held above 0.01 before every use."""
    positions = "vision_encoder.temporal_positional_embedding"
    return {
        **openai_video_rows(video_depth, "vision_encoder.", ()),
        **openai_text_rows(text_depth, "text_encoder.", ()),
        "video.time_positions.table": Row((positions,), lambda x: x[0]),
        "log_scale": Row(("temp",), lambda temp: -temp.clamp(min=0.01).log().reshape(())),
    }


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
    pool_heads: int = 8
    """Of CoCa's pooling queries."""
    text_pooling: Literal["end", "last", "first"] = "end"
    text_projection: bool = True
    causal: bool = True
    image_size: int | None = None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()


PRESETS: dict[str, dict[str, Any]] = {
    "openai": {"activation": "quick_gelu"},
    "open_clip": {"activation": "gelu"},
}
"""Both: heads 64 wide, class token, causal text read at its end token. OpenCLIP's own default has exact GELU."""
CAPTIONER = r"text_decoder\."
"""CoCa's, which is left out."""
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
        viclip_table(video_depth, text_depth)
        if viclip
        else {
            **openai_video_rows(
                video_depth, video_prefix, tensors, norm_after_pooling=stated.norm_after_pooling
            ),
            **openai_text_rows(text_depth, text_prefix, tensors),
            **score_rows(tensors),
        }
    )
    tensors, unused = without(tensors, CAPTIONER)
    check_names(tensors, table, source=source)
    notes = list(stated.notes)
    if stated.preprocessing is None:
        pixels = preprocessing.IMAGENET if viclip else preprocessing.CLIP
        stated = dataclasses.replace(stated, preprocessing=pixels)
        notes.append(
            f"pixel mean and std are {'ImageNet' if viclip else 'CLIP'}'s, pictures become squares by {pixels.fit}: "
            "the family's, as the file does not say"
        )
    video = openai_video(tensors, video_prefix, stated, source)
    text, tokenizer = openai_text(tensors, text_prefix, stated, source, tokenizer_of)
    layout = Layout(
        video=video,
        text=text,
        table=lambda: table,
        tokenizer=tokenizer,
        score_bias="logit_bias" in tensors,
        notes=tuple(notes),
        unused=unused,
    )
    return assemble(layout, tensors, options, source=source)


def openai_video(
    tensors: Mapping[str, Tensor], prefix: str, stated: Stated, source: str
) -> VideoEncoderConfig:
    """The sizes of an image tower, or ViCLIP's video tower, from its tensors, which are all there."""
    viclip = is_viclip(tensors)
    conv = shape_of(tensors, f"{prefix}conv1.weight", 5 if viclip else 4, source)
    places, width = shape_of(tensors, f"{prefix}positional_embedding", 2, source)
    pooled, embed_dim = shape_of(tensors, f"{prefix}proj", 2, source)
    num_patches, patch_size = places - 1, conv[-1]
    grid = math.isqrt(num_patches)
    if grid**2 != num_patches:
        raise HarvestError(
            f"{source}: {num_patches} positions and patches {list(conv)} are not a square frame's"
        )
    image_size = stated.image_size or grid * patch_size
    if image_size // patch_size != grid:
        raise HarvestError(f"{source}: {num_patches} positions are not those of {image_size} pixels")
    num_times = 1
    if viclip:
        num_times = shape_of(tensors, f"{prefix}temporal_positional_embedding", 3, source)[1]
    check_heads(width, stated.head_width, source)
    has_queries = f"{prefix}attn_pool.query" in tensors
    tubelet_size = conv[2] if viclip else 1
    assert stated.preprocessing is not None
    return VideoEncoderConfig(
        image_size=image_size,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        num_frames=num_times * tubelet_size,
        width=width,
        depth=stack_depth(tensors, f"{prefix}transformer.resblocks"),
        num_heads=width // stated.head_width,
        mlp_width=shape_of(tensors, f"{prefix}transformer.resblocks.0.mlp.c_fc.bias", 1, source)[0],
        embed_dim=embed_dim,
        activation=stated.activation,
        prefix="clip" if viclip else "frame",
        pooling="attention" if has_queries else stated.video_pooling,
        pool=PoolConfig(pooled, stated.pool_heads, 0) if has_queries else None,
        pre_norm=f"{prefix}ln_pre.weight" in tensors,
        post_norm=has_queries or not stated.norm_after_pooling,
        pooled_norm=has_queries or stated.norm_after_pooling,
        **stated.preprocessing.fields,
    )


def openai_text(
    tensors: Mapping[str, Tensor],
    prefix: str,
    stated: Stated,
    source: str,
    tokenizer_of: Callable[[int], Tokenizer],
) -> tuple[TextEncoderConfig, Tokenizer]:
    """The sizes of a text tower from its tensors, which are all there, and its tokenizer."""
    vocab_size, width = shape_of(tensors, f"{prefix}token_embedding.weight", 2, source)
    context_length = shape_of(tensors, f"{prefix}positional_embedding", 2, source)[0]
    has_class_token = f"{prefix}cls_emb" in tensors
    context_length -= has_class_token
    has_layer = f"{prefix}text_projection.weight" in tensors  # `[E, D]` as a layer's, `[D, E]` as OpenAI's
    projection = f"{prefix}text_projection{'.weight' if has_layer else ''}"
    embed_dim = width
    if stated.text_projection:
        embed_dim = shape_of(tensors, projection, 2, source)[0 if has_layer else 1]
    check_heads(width, stated.text_head_width, source)
    tokenizer = tokenizer_of(context_length)
    if has_class_token:  # which looks at one position of padding too: it has to be CoCa's
        tokenizer = Tokenizer(tokenizer.core, dataclasses.replace(tokenizer.config, pad_id=0))
    config = TextEncoderConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        width=width,
        depth=stack_depth(tensors, f"{prefix}transformer.resblocks"),
        num_heads=width // stated.text_head_width,
        mlp_width=shape_of(tensors, f"{prefix}transformer.resblocks.0.mlp.c_fc.bias", 1, source)[0],
        embed_dim=embed_dim,
        activation=stated.text_activation,
        norm_eps=stated.text_eps,
        causal=stated.causal,
        pooling=stated.text_pooling,
        class_token=has_class_token,
        projection=stated.text_projection,
        projection_bias=f"{prefix}text_projection.bias" in tensors,
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.config.pad_id,
    )
    return config, tokenizer
