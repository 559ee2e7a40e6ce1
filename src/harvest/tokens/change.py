"""How much each tubelet of a clip changes, measured on its pixels: what the motion and run-length selectors read."""

from __future__ import annotations

import torch
from torch import Tensor

from harvest.interfaces import Grid

GREY_LEVELS_PER_UNIT = 64.0
"""Normalised pixels have a standard deviation of about a quarter of 255 grey levels."""


def tubelet_change(video: Tensor, grid: Grid) -> Tensor:
    """Mean absolute difference to the frames before and after, fp32 `[B, N]` in grey levels.

    `video` `[B, T, 3, H, W]`, uint8 or normalised. A frame's change is the mean of those to its two neighbours (what
    moves differs from both, what it uncovers from one alone), at the ends that to its only one; a tubelet's is that
    of its most changing frame. A single frame has no change. Of each patch a grid of 4 x 4 pixels or a little more is
    compared: enough to see motion, and cheap.
    """
    B, T = video.shape[:2]
    S, P = grid.num_times, grid.num_places
    if T == 1:
        return torch.zeros(B, S * P, device=video.device)
    between = _differences(video[:, :-1], video[:, 1:], grid)  # [B, T - 1, P]
    change = torch.cat([between[:, :1], (between[:, 1:] + between[:, :-1]) / 2, between[:, -1:]], dim=1)
    missing = S * grid.tubelet_size - T  # an odd last frame fills its tubelet with itself
    if missing:
        change = torch.cat([change, change[:, -1:].expand(-1, missing, -1)], dim=1)
    return change.view(B, S, grid.tubelet_size, P).amax(dim=2).flatten(1)


def _differences(first: Tensor, second: Tensor, grid: Grid) -> Tensor:
    """Mean absolute difference of frames `[B, F, 3, H, W]`, patch by patch, fp32 `[B, F, P]` in grey levels."""
    p = grid.patch_size
    step = max(1, p // 4)
    B, F, C, H, W = first.shape
    a, b = (frames.view(B, F, C, H // p, p, W // p, p)[..., ::step, :, ::step] for frames in (first, second))
    if first.is_floating_point():
        difference = (a - b).abs().float() * GREY_LEVELS_PER_UNIT
    else:
        difference = (torch.maximum(a, b) - torch.minimum(a, b)).float()  # uint8 has no sign
    return difference.mean(dim=(2, 4, 6)).flatten(2)
