"""Vision transformers in timm's names: those of OpenCLIP's SigLIP, EVA-CLIP, PE and MobileCLIP 2, and timm's own.

Options are seen from the tensors; the name says the sizes of heads, the activation, epsilon and rotary positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing import preprocessing
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble
from harvest.model.importing.files import read_folder
from harvest.model.importing.preprocessing import Preprocessing, read_timm
from harvest.model.importing.tables import (
    Row,
    Table,
    check_names,
    flat_patches,
    layer_rows,
    scaled_rows,
    shape_of,
    stack_depth,
    without,
)
from harvest.model.video_encoder import PoolConfig, VideoEncoderConfig

HEADS = {
    "tiny": 3,
    "small": 6,
    "medium": 8,
    "base": 12,
    "large": 16,
    "huge": 16,
    "giant": 16,
    "giantopt": 16,
    "so400m": 16,
    "gigantic": 16,
    "enormous": 16,
}
"""By the size in a name."""
KINDS = r"vit|vit_pe_core|eva|eva02"
_NAME = re.compile(rf"({KINDS})_({'|'.join(HEADS)})_patch(\d+)(_.*)?")
NOT_YET = {
    "relpos": "attends by positions relative to each other",
    "mci": "begins with convolutions, so that it has no patches that could be left out",
    "reg": "has register tokens",
    "dinov3": "has register tokens",
    "rope": "has rotary positions of another kind",
}


class Named(NamedTuple):
    """What a name says that the tensors do not."""

    sizes: dict[str, Any]  # settings of `VideoEncoderConfig`
    columns_first: bool = False  # the first half of a head's channels is turned by the column, as in PE


def sizes_of_name(name: str, source: str) -> Named:
    """What a name says; HarvestError for what is no such tower, with the reason."""
    base = name.split(".")[0]
    found = _NAME.fullmatch(base)
    why = next((why for part, why in NOT_YET.items() if re.search(rf"_{part}\d*(_|$)", base)), None)
    if found is None or why is not None:
        is_known = re.fullmatch(r"vit_|eva|deit|beit", base) is not None
        why = why or (
            "its sizes are not known" if is_known else "it has no plain patches that could be left out"
        )
        raise HarvestError(f"{source}: the image tower {name} of timm is not supported: {why}")
    kind, size, patch, rest = found[1], found[2], int(found[3]), found[4] or ""
    is_eva, is_pe = kind.startswith("eva"), kind == "vit_pe_core"
    sizes: dict[str, Any] = {
        "num_heads": HEADS[size],
        "patch_size": patch,
        "activation": "quick_gelu" if "quickgelu" in rest else "gelu",
        "norm_eps": 1e-5 if is_pe or ("_clip_" in rest and not is_eva) else 1e-6,
    }
    if size == "giantopt":
        sizes["activation"] = "gelu_tanh"
    if kind == "eva02" and size == "enormous":
        sizes["norms"] = "branch"
    elif kind == "eva02":
        sizes |= {"rotary_grid": 16, "activation": "silu"}
    elif is_pe and size == "gigantic":
        sizes |= {"rotary_grid": 32}
    elif is_pe:
        sizes |= {"rotary_grid": {"base": 14}.get(size, 24), "rotary_start": 1.0}
    return Named(sizes, columns_first=is_pe)


def timm_rows(trunk: str, named: Named, names: Collection[str]) -> Table:
    """The tower under the prefix `trunk`, without what projects its feature."""
    has_class = f"{trunk}cls_token" in names
    positions = f"{trunk}pos_embed"
    table: Table = {
        "video.patches.weight": Row((f"{trunk}patch_embed.proj.weight",), flat_patches),
        "video.place_positions": Row((positions,), lambda x: x[0, 1:] if has_class else x[0]),
    }
    if has_class:
        table["video.prefix"] = Row((f"{trunk}cls_token", positions), lambda x, y: x[0, 0] + y[0, 0])
    for ours, theirs in (
        ("patches.bias", "patch_embed.proj.bias"),
        *((f"norm_pre.{kind}", f"norm_pre.{kind}") for kind in ("weight", "bias")),
        *((f"norm_post.{kind}", f"norm.{kind}") for kind in ("weight", "bias")),
        *((f"norm_pooled.{kind}", f"fc_norm.{kind}") for kind in ("weight", "bias")),
    ):
        if f"{trunk}{theirs}" in names:
            table[f"video.{ours}"] = Row((f"{trunk}{theirs}",))
    for i in range(stack_depth(dict.fromkeys(names), f"{trunk}blocks")):
        table |= _block_rows(f"video.blocks.{i}", f"{trunk}blocks.{i}", named, names)
    if f"{trunk}attn_pool.latent" in names:
        pool = f"{trunk}attn_pool"
        table["video.pool.probe"] = Row((f"{pool}.latent",), torch.Tensor.flatten)
        for ours, theirs in (
            ("attention.query", "q"),
            ("attention.key_value", "kv"),
            ("attention.out", "proj"),
            ("norm", "norm"),
            ("mlp.up", "mlp.fc1"),
            ("mlp.down", "mlp.fc2"),
        ):
            table |= layer_rows(f"video.pool.{ours}", f"{pool}.{theirs}.{{}}")
    return table


def _block_rows(ours: str, theirs: str, named: Named, names: Collection[str]) -> Table:
    table: Table = {
        **layer_rows(f"{ours}.norm_attention", f"{theirs}.norm1.{{}}"),
        **layer_rows(f"{ours}.norm_mlp", f"{theirs}.norm2.{{}}"),
        **_attention_rows(f"{ours}.attention", f"{theirs}.attn", named, names),
        **layer_rows(f"{ours}.attention.out", f"{theirs}.attn.proj.{{}}"),
        **layer_rows(f"{ours}.mlp.down", f"{theirs}.mlp.fc2.{{}}"),
    }
    is_gated = f"{theirs}.mlp.fc1_g.weight" in names
    table |= layer_rows(f"{ours}.mlp.up", f"{theirs}.mlp.{'fc1_x' if is_gated else 'fc1'}.{{}}")
    if is_gated:
        table |= layer_rows(f"{ours}.mlp.gate", f"{theirs}.mlp.fc1_g.{{}}")
    if f"{theirs}.attn.norm.weight" in names:
        table |= layer_rows(f"{ours}.attention.norm", f"{theirs}.attn.norm.{{}}")
        table |= layer_rows(f"{ours}.mlp.norm", f"{theirs}.mlp.norm.{{}}")
    for scales in (("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2")):
        if f"{theirs}.{scales[0]}" in names:
            table |= scaled_rows(f"{ours}.attention.out", f"{theirs}.attn.proj", f"{theirs}.{scales[0]}")
            table |= scaled_rows(f"{ours}.mlp.down", f"{theirs}.mlp.fc2", f"{theirs}.{scales[1]}")
    return table


def _attention_rows(ours: str, theirs: str, named: Named, names: Collection[str]) -> Table:
    """Fused or apart; with biases of all, of queries and values, or of none."""

    def fused(*parts: Tensor) -> Tensor:
        packed = torch.cat(parts)
        if not named.columns_first:
            return packed
        # we turn the first half of a head's channels by the row; values are not turned
        third = len(packed) // 3
        halves = packed[: 2 * third].reshape(2 * named.sizes["num_heads"], 2, -1, *packed.shape[1:]).flip(1)
        return torch.cat([halves.flatten(0, 2), packed[2 * third :]])

    if f"{theirs}.qkv.weight" in names:
        table = {f"{ours}.qkv.weight": Row((f"{theirs}.qkv.weight",), fused)}
    else:
        parts = tuple(f"{theirs}.{part}_proj.weight" for part in "qkv")
        table = {f"{ours}.qkv.weight": Row(parts, fused)}
    for q_bias, v_bias in (
        (f"{theirs}.q_bias", f"{theirs}.v_bias"),
        (f"{theirs}.q_proj.bias", f"{theirs}.v_proj.bias"),
    ):
        if q_bias in names:
            return table | {f"{ours}.query_value_bias": Row((q_bias, v_bias))}
    if f"{theirs}.qkv.bias" in names:
        return table | {f"{ours}.qkv.bias": Row((f"{theirs}.qkv.bias",), fused)}
    without = Row((f"{theirs}.qkv.weight",), lambda weight: torch.zeros(len(weight)))
    return table | {f"{ours}.qkv.bias": without}


def timm_video(
    tensors: Mapping[str, Tensor],
    trunk: str,
    named: Named,
    pixels: Preprocessing,
    source: str,
    *,
    image_size: int | None,
    pool: str | None,
    embed_dim: int | None = None,
    projection_bias: bool = False,
) -> VideoEncoderConfig:
    """The sizes of a tower from its name and its tensors, which are all there; `pool` is timm's name of how it is read.

    `embed_dim` None: without a projection.
    """
    width = shape_of(tensors, f"{trunk}patch_embed.proj.weight", 4, source)[0]
    has_class = f"{trunk}cls_token" in tensors
    places = shape_of(tensors, f"{trunk}pos_embed", 3, source)[1] - has_class
    grid, patch = math.isqrt(places), named.sizes["patch_size"]
    image_size = image_size or grid * patch
    if grid * grid != places or image_size // patch != grid:
        raise HarvestError(f"{source}: {places} positions are not those of {image_size} pixels")
    poolings = {"token": "prefix", "avg": "mean", "map": "attention"}
    pool = pool or ("token" if has_class else "avg")
    if pool not in poolings:
        raise HarvestError(f"{source}: pooling {pool!r} is not supported, only {', '.join(poolings)}")
    first = f"{trunk}blocks.0"
    is_gated = f"{first}.mlp.fc1_g.weight" in tensors
    mlp_width = len(tensors[f"{first}.mlp.{'fc1_x' if is_gated else 'fc1'}.bias"])
    query = None  # SigLIP's has the tower's own sizes
    if pool == "map" and named.columns_first:
        query = PoolConfig(width, 8, len(tensors[f"{trunk}attn_pool.mlp.fc1.bias"]))
    return VideoEncoderConfig(
        image_size=image_size,
        num_frames=1,
        width=width,
        depth=stack_depth(tensors, f"{trunk}blocks"),
        mlp_width=mlp_width,
        embed_dim=embed_dim or width,
        prefix="frame" if has_class else "none",
        pooling=poolings[pool],  # type: ignore[arg-type]
        pool=query,
        pre_norm=f"{trunk}norm_pre.weight" in tensors,
        post_norm=f"{trunk}norm.weight" in tensors,
        pooled_norm=f"{trunk}fc_norm.weight" in tensors,
        key_bias=not any(f"{first}.attn.{name}" in tensors for name in ("q_bias", "q_proj.bias")),
        gated_mlp=is_gated,
        inner_norms=f"{first}.attn.norm.weight" in tensors,
        patch_bias=f"{trunk}patch_embed.proj.bias" in tensors,
        projection=embed_dim is not None,
        projection_bias=projection_bias,
        **named.sizes,
        **pixels.fields,
    )


def from_timm(folder: Path, source: str, config: Mapping[str, Any], options: ImportOptions) -> Loaded:
    """A repository of timm, `vit_*_clip_*` for instance: an image tower alone, without its classifier."""
    name = str(config["architecture"])
    named = sizes_of_name(name, source)
    said = config.get("pretrained_cfg") or {}
    pixels, notes = read_timm(said, preprocessing.CLIP if "clip" in name else preprocessing.IMAGENET, folder)
    tensors, unused = without(read_folder(folder), r"head\.")
    rows = timm_rows("", named, tensors)
    check_names(tensors, rows, source=source)
    size = (said.get("input_size") or [None, None])[-1]
    pool = config.get("global_pool") or said.get("global_pool")
    video = timm_video(tensors, "", named, pixels, source, image_size=size, pool=pool)
    layout = Layout(video, None, lambda: rows, None, notes=notes, unused=unused)
    return assemble(layout, tensors, options, source=source)
