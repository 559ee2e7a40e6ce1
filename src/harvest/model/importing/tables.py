"""Rename tables, our name -> the source's names, and the strict report of what they did.

Every tensor of a source is used or listed as ignored, every one of ours is filled or listed as new; anything else is
an error that names both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.layers import MOST_DEPTH

IGNORED = re.compile(r"(.*\.)?(position_ids|attn_mask)|input_resolution|context_length|vocab_size")
"""Buffers and sizes that other libraries write among the weights."""


@dataclass(frozen=True)
class ImportReport:
    """What became of every tensor, and what had to be assumed."""

    source: str
    used: int
    """Tensors of the source that are in the model now."""
    ignored: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    """Tensors of the model that the source does not have: zero positions in time, the mean word for hidden words."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.used} tensors used"]
        for title, names in (("ignored", self.ignored), ("new", self.new)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Row:
    """The source's names of one tensor of ours, and how theirs become it."""

    sources: tuple[str, ...]
    convert: Callable[..., Tensor] = lambda *tensors: torch.cat(tensors)


Table = dict[str, Row]


def layer_rows(target: str, *sources: str) -> Table:
    """A layer with weight and bias; `{}` in a source stands for either word."""
    return {
        f"{target}.{kind}": Row(tuple(name.format(kind) for name in sources)) for kind in ("weight", "bias")
    }


def stack_rows(target: str, source: str, depth: int, block: Mapping[str, tuple[str, ...]]) -> Table:
    """`depth` blocks under `source`, of the layers that `block` names."""
    table: Table = {}
    for i in range(depth):
        for ours, theirs in block.items():
            table |= layer_rows(f"{target}.{i}.{ours}", *(f"{source}.{i}.{name}" for name in theirs))
    return table


def scaled_rows(target: str, layer: str, gamma: str) -> Table:
    """A layer at the end of a branch whose sum is scaled channel by channel (LayerScale): that is part of the layer."""
    return {
        f"{target}.weight": Row((f"{layer}.weight", gamma), lambda matrix, scale: matrix * scale[:, None]),
        f"{target}.bias": Row((f"{layer}.bias", gamma), lambda bias, scale: bias * scale),
    }


def packed_attention_rows(target: str, source: str) -> Table:
    """`nn.MultiheadAttention` as `CrossAttention`."""
    cuts = {
        "query": lambda packed: packed.chunk(3)[0],
        "key_value": lambda packed: packed[len(packed) // 3 :],
    }
    table = layer_rows(f"{target}.out", f"{source}.out_proj.{{}}")
    for part, cut in cuts.items():
        for kind in ("weight", "bias"):
            table[f"{target}.{part}.{kind}"] = Row((f"{source}.in_proj_{kind}",), cut)
    return table


def scalar(value: Tensor) -> Tensor:
    return value.reshape(())


def flat_patches(weight: Tensor) -> Tensor:
    """A convolution `[D, 3, p, p]` or `[D, 3, t, p, p]` as a product with pixels in the order (t, 3, p, p)."""
    return (weight.transpose(1, 2) if weight.ndim == 5 else weight).flatten(1)


def transposed(matrix: Tensor) -> Tensor:
    return matrix.transpose(0, 1)


def count_used(table: Table) -> int:
    return len({name for row in table.values() for name in row.sources})


def name_lists(**lists: list[str]) -> str:
    """Lines `title (count): names` of what is not empty, at most twelve names each."""
    return "".join(
        f"\n  {title.replace('_', ' ')} ({len(names)}): {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
        for title, names in lists.items()
        if names
    )


def check_names(tensors: Mapping[str, Tensor], table: Table, *, source: str) -> tuple[str, ...]:
    """The names that are ignored, or HarvestError with what is missing and left over."""
    wanted = {name for row in table.values() for name in row.sources}
    left = sorted(tensors.keys() - wanted)
    ignored = tuple(name for name in left if IGNORED.fullmatch(name))
    lists = name_lists(
        missing=sorted(wanted - tensors.keys()), not_used=[name for name in left if name not in ignored]
    )
    if lists:
        raise HarvestError(f"{source}: the weights do not match their layout.{lists}")
    return ignored


def rename(
    tensors: Mapping[str, Tensor], table: Table, *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our tensors in fp32 and the names that were ignored, or HarvestError with what is missing and left over."""
    ignored = check_names(tensors, table, source=source)
    renamed = {}
    for target, row in table.items():
        values = [tensors[name].float() for name in row.sources]
        try:
            renamed[target] = row.convert(*values).contiguous()
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in row.sources)
            raise HarvestError(f"{source}: wrong shape: {shapes} cannot become {target}: {error}") from error
    return renamed, ignored


def without(tensors: Mapping[str, Tensor], pattern: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors but those whose names begin with what `pattern` matches, and the names of these."""
    beside = re.compile(pattern)
    unused = tuple(name for name in tensors if beside.match(name))
    return {name: tensor for name, tensor in tensors.items() if not beside.match(name)}, unused


def shape_of(tensors: Mapping[str, Tensor], name: str, ndim: int, source: str) -> tuple[int, ...]:
    """The shape of a tensor that is there, or HarvestError where it has not `ndim` dimensions."""
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim:
        raise HarvestError(f"{source}: wrong shape: {name} {list(shape)} should have {ndim} dimensions")
    return shape


def stack_depth(names: Mapping[str, Any], prefix: str) -> int:
    """One more than the highest number after `prefix`: a hole in the middle is then found as missing."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    depth = max((int(found[1]) + 1 for name in names if (found := pattern.match(name))), default=0)
    if depth > MOST_DEPTH:
        raise HarvestError(f"{prefix}: {depth:,} blocks are more than {MOST_DEPTH}")
    return depth
