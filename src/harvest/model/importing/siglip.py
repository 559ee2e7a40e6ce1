"""SigLIP and SigLIP 2, as `transformers` and OpenCLIP write them: an image model with a pooling query.

SigLIP 2's NaFlex models are read at the square grid that their positions have.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble, tower_sizes
from harvest.model.importing.clip import TRANSFORMERS_BLOCK, openai_text_rows, read_sizes, score_rows
from harvest.model.importing.files import read_folder
from harvest.model.importing.preprocessing import SIGLIP, Preprocessing, read_processor
from harvest.model.importing.tables import (
    Row,
    Table,
    check_names,
    flat_patches,
    layer_rows,
    stack_depth,
    stack_rows,
)
from harvest.model.importing.vocabularies import siglip_tokenizer
from harvest.model.layers import Activation
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig

_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "text": _TOWER | {"vocab_size": 32000, "max_position_embeddings": 64},
    "vision": _TOWER | {"image_size": 224, "patch_size": 16},
}
"""What `transformers` assumes where a config.json is silent; the released ones say almost nothing."""


def siglip_table(video_depth: int, text_depth: int, *, patch_size: int, naflex: bool = False) -> Table:
    """`transformers.SiglipModel`, which SigLIP 2 of fixed resolution uses too, or `Siglip2Model` (NaFlex)."""
    v, t = "vision_model", "text_model"

    def flat(weight: Tensor) -> Tensor:  # NaFlex multiplies pixels in the order (row, column, colour)
        return weight.view(-1, patch_size, patch_size, 3).permute(0, 3, 1, 2).flatten(1)

    return {
        **layer_rows("video.patches", f"{v}.embeddings.patch_embedding.{{}}"),
        "video.patches.weight": Row(
            (f"{v}.embeddings.patch_embedding.weight",), flat if naflex else flat_patches
        ),
        "video.place_positions": Row((f"{v}.embeddings.position_embedding.weight",)),
        **stack_rows("video.blocks", f"{v}.encoder.layers", video_depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}.post_layernorm.{{}}"),
        "video.pool.probe": Row((f"{v}.head.probe",), lambda probe: probe.flatten()),
        **layer_rows("video.pool.attention.out", f"{v}.head.attention.out_proj.{{}}"),
        **layer_rows("video.pool.norm", f"{v}.head.layernorm.{{}}"),
        **layer_rows("video.pool.mlp.up", f"{v}.head.mlp.fc1.{{}}"),
        **layer_rows("video.pool.mlp.down", f"{v}.head.mlp.fc2.{{}}"),
        **{
            f"video.pool.attention.{part}.{kind}": Row((f"{v}.head.attention.in_proj_{kind}",), cut)
            for part, cut in (("query", _query), ("key_value", _key_value))
            for kind in ("weight", "bias")
        },
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **stack_rows("text.blocks", f"{t}.encoder.layers", text_depth, TRANSFORMERS_BLOCK),
        **layer_rows("text.norm_post", f"{t}.final_layer_norm.{{}}"),
        **layer_rows("text.projection", f"{t}.head.{{}}"),
        **score_rows(("logit_bias",)),
    }


def _query(packed: Tensor) -> Tensor:
    return packed.chunk(3)[0]


def _key_value(packed: Tensor) -> Tensor:
    return packed[packed.shape[0] // 3 :]


TIMM_BLOCK = {
    "norm_attention": ("norm1.{}",),
    "attention.qkv": ("attn.qkv.{}",),
    "attention.out": ("attn.proj.{}",),
    "norm_mlp": ("norm2.{}",),
    "mlp.up": ("mlp.fc1.{}",),
    "mlp.down": ("mlp.fc2.{}",),
}


def timm_table(video_depth: int, text_depth: int, names: Collection[str]) -> Table:
    """OpenCLIP's SigLIP and SigLIP 2: the image tower is timm's, the text tower in OpenAI's names."""
    v = "visual.trunk"
    return {
        **layer_rows("video.patches", f"{v}.patch_embed.proj.{{}}"),
        "video.patches.weight": Row((f"{v}.patch_embed.proj.weight",), flat_patches),
        "video.place_positions": Row((f"{v}.pos_embed",), lambda table: table[0]),
        **stack_rows("video.blocks", f"{v}.blocks", video_depth, TIMM_BLOCK),
        **layer_rows("video.norm_post", f"{v}.norm.{{}}"),
        "video.pool.probe": Row((f"{v}.attn_pool.latent",), lambda probe: probe.flatten()),
        **layer_rows("video.pool.attention.query", f"{v}.attn_pool.q.{{}}"),
        **layer_rows("video.pool.attention.key_value", f"{v}.attn_pool.kv.{{}}"),
        **layer_rows("video.pool.attention.out", f"{v}.attn_pool.proj.{{}}"),
        **layer_rows("video.pool.norm", f"{v}.attn_pool.norm.{{}}"),
        **layer_rows("video.pool.mlp.up", f"{v}.attn_pool.mlp.fc1.{{}}"),
        **layer_rows("video.pool.mlp.down", f"{v}.attn_pool.mlp.fc2.{{}}"),
        **openai_text_rows(text_depth, "text.", names),
        **score_rows(names),
    }


HEADS = {"small": 6, "base": 12, "large": 16, "so400m": 16, "giantopt": 16}
"""Of timm's ViTs with SigLIP's pooling, by the size in their names."""


def from_timm(
    tensors: dict[str, Tensor],
    source: str,
    folder: Path,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    pixels: Preprocessing,
    notes: tuple[str, ...],
    options: ImportOptions,
) -> Loaded:
    """OpenCLIP's SigLIP from its tensors and the parts of its config."""
    name = str(vision["timm_model_name"])
    size, patch = (re.search(pattern, name) for pattern in (r"vit_([a-z0-9]+)_", r"_patch(\d+)_"))
    num_heads = HEADS.get(size[1]) if size else None
    if num_heads is None or patch is None:
        raise HarvestError(
            f"{source}: the sizes of {name} are not known, only those of {', '.join(HEADS)} with a patch size"
        )
    patch_size = int(patch[1])
    video_depth = stack_depth(tensors, "visual.trunk.blocks")
    text_depth = stack_depth(tensors, "text.transformer.resblocks")
    table = timm_table(video_depth, text_depth, tensors)
    check_names(tensors, table, source=source)
    conv, words = tensors["visual.trunk.patch_embed.proj.weight"], tensors["text.token_embedding.weight"]
    if conv.ndim != 4 or words.ndim != 2:
        raise HarvestError(f"{source}: wrong shape: patches {list(conv.shape)}, words {list(words.shape)}")
    tokenizer, end_id, note = siglip_tokenizer(folder, options.vocabulary, text["context_length"])
    is_tanh = size is not None and size[1] == "giantopt"
    act: Activation = "gelu_tanh" if text.get("act_kwargs", {}).get("approximate") == "tanh" else "gelu"
    layout = Layout(
        video=VideoEncoderConfig(
            image_size=vision["image_size"],
            patch_size=patch_size,
            num_frames=1,
            width=conv.shape[0],
            depth=video_depth,
            num_heads=num_heads,
            mlp_width=tensors["visual.trunk.blocks.0.mlp.fc1.bias"].shape[0],
            embed_dim=conv.shape[0],
            activation="gelu_tanh" if is_tanh else "gelu",
            norm_eps=1e-6,
            **_SHAPE,
            **pixels.fields,
        ),
        text=TextEncoderConfig(
            vocab_size=words.shape[0],
            context_length=text["context_length"],
            width=words.shape[1],
            depth=text_depth,
            num_heads=text["heads"],
            mlp_width=tensors["text.transformer.resblocks.0.mlp.c_fc.bias"].shape[0],
            embed_dim=conv.shape[0],
            activation=act,
            norm_eps=text.get("norm_kwargs", {}).get("eps", 1e-5),
            causal=not text.get("no_causal_mask", False),
            pooling="last",
            projection_bias="text.text_projection.bias" in tensors,
            start_id=None,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
        ),
        table=lambda: table,
        tokenizer=tokenizer,
        score_bias="logit_bias" in tensors,
        notes=(*notes, note),
    )
    return assemble(layout, tensors, options, source=source)


_SHAPE: dict[str, Any] = {
    "prefix": "none",
    "pooling": "attention",
    "pre_norm": False,
    "patch_bias": True,
    "projection": False,
}


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of `transformers.SiglipModel` or `Siglip2Model`."""
    naflex = config["model_type"] == "siglip2"
    text, vision = read_sizes(config, DEFAULTS)
    pixels, notes = read_processor(folder, SIGLIP)
    embed_dim = text.get("projection_size", text["hidden_size"])
    if embed_dim != vision["hidden_size"]:
        raise HarvestError(f"{source}: texts are {embed_dim} wide, images {vision['hidden_size']}")
    tokenizer, end_id, note = siglip_tokenizer(folder, options.vocabulary, text["max_position_embeddings"])
    image_size = vision["image_size"]
    if naflex:
        image_size = vision["patch_size"] * math.isqrt(vision.get("num_patches", 256))
        note += f"; NaFlex at its square grid: {image_size} pixels, squashed"
        pixels = dataclasses.replace(pixels, fit="squash")
    layout = Layout(
        video=VideoEncoderConfig(
            image_size=image_size,
            patch_size=vision["patch_size"],
            num_frames=1,
            **_SHAPE,
            **pixels.fields,
            **tower_sizes(vision, embed_dim, source),
        ),
        text=TextEncoderConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            causal=False,
            pooling="last",
            projection_bias=True,
            start_id=None,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
            **tower_sizes(text, embed_dim, source),
        ),
        table=lambda: siglip_table(
            vision["num_hidden_layers"],
            text["num_hidden_layers"],
            patch_size=vision["patch_size"],
            naflex=naflex,
        ),
        tokenizer=tokenizer,
        score_bias=True,
        notes=(*notes, note),
    )
    return assemble(layout, read_folder(folder), options, source=source)
