"""A frozen image tower looks at the frames of a clip, and computes no more of its last block than is asked for.

What is kept of a clip is drawn from the prefix's attention in the last block, which needs that block's keys and the
prefix's queries alone; the block itself is then computed at the kept tubelets. Frames go through the tower a few at a
time, so that on a CPU what passes from one layer to the next stays in its cache.

Shapes: F frames of a few, B clips, S tubelet times, P places, N = S * P, R prefix tokens, K kept tubelets, D width of
the tower, E of its shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.model.layers import Block, take
from harvest.model.video_encoder import VideoEncoder

FRAMES_AT_ONCE = 8
"""On a CPU. At 224 pixels a block takes 9.5 ms of each frame so, and 12.0 ms with 32 frames at once."""


class Look(NamedTuple):
    """What the teacher has computed of a few frames: everything before its last block."""

    layers: dict[int, Tensor]  # outputs of the blocks that were asked for, [F, R + P, D]
    last: Tensor  # what the last block gets, [F, R + P, D]; what it gives where that is in `layers`
    num_prefix: int
    rotation: (
        Tensor | None
    )  # what turns queries and keys, where positions are rotary; the same for all frames


@torch.no_grad()
def look(
    teacher: VideoEncoder, frames: Tensor, *, layers: Sequence[int], attention: bool
) -> tuple[list[Look], Tensor | None]:
    """Look at frames `[B * S, 1, 3, H, W]` for the outputs of blocks `layers`, and the attention of the prefix
    (without one, of the pooling query) to the places of each frame, `[B * S, P]`, if it is asked for."""
    at_once = FRAMES_AT_ONCE if frames.device.type == "cpu" else len(frames)
    looks, weights = [], []
    for some in torch.split(frames, at_once):
        seen, weight = _look(teacher, some, layers, attention)
        looks.append(seen)
        if weight is not None:
            weights.append(weight)
    return looks, torch.cat(weights) if weights else None


def _look(
    teacher: VideoEncoder, frames: Tensor, layers: Sequence[int], attention: bool
) -> tuple[Look, Tensor | None]:
    x_FPD, R, rotation = teacher.enter(frames, None)
    final = teacher.config.depth - 1
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(teacher.blocks[:final]):
        x_FPD = block(x_FPD, rotation=rotation)
        if i in layers:
            seen[i] = x_FPD
    if not attention:
        return Look(seen, x_FPD, R, rotation), None
    last = teacher.blocks[final]
    assert isinstance(last, Block)
    if R:
        rows = last.first_rows(x_FPD, R, rotation)
        return Look(seen, x_FPD, R, rotation), rows[..., R:].mean(dim=1)
    if teacher.pool is None:
        raise ValueError("this tower has neither a prefix nor a pooling query whose attention could be given")
    seen[final] = last(x_FPD, rotation=rotation)
    return Look(seen, x_FPD, R, rotation), teacher.pool.weights(teacher.norm_post(seen[final]))


@torch.no_grad()
def outputs(
    teacher: VideoEncoder, looks: Sequence[Look], *, layers: Sequence[int], places: Tensor | None
) -> list[Tensor]:
    """The blocks `layers` after the last norm and in the shared space, at `places` `[B * S, K / S]` of each frame
    (None: at all): each `[B * S, K / S, E]`."""
    parts: list[list[Tensor]] = [[] for _ in layers]
    start = 0
    for seen in looks:
        F = len(seen.last)
        rows = places[start : start + F] + seen.num_prefix if places is not None else None
        start += F
        for part, layer in zip(parts, layers, strict=True):
            x = _output(teacher, seen, layer, rows)
            part.append(teacher.project(teacher.norm_post(x)))
    return [torch.cat(part) for part in parts]


def _output(teacher: VideoEncoder, seen: Look, layer: int, rows: Tensor | None) -> Tensor:
    if layer not in seen.layers:
        last = teacher.blocks[layer]
        assert isinstance(last, Block)
        if rows is not None:
            return last.at(seen.last, rows, seen.rotation)
        return last(seen.last, rotation=seen.rotation)[:, seen.num_prefix :]
    x = seen.layers[layer]
    return take(x, rows) if rows is not None else x[:, seen.num_prefix :]
