"""How much each tubelet of a clip changes, measured on its pixels: what the motion and run-length selectors read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.interfaces import Grid

GREY_LEVELS_PER_UNIT = 64.0
"""Normalised pixels have a standard deviation of about a quarter of 255 grey levels."""


def tubelet_change(video: Tensor, grid: Grid) -> Tensor:
    """Mean absolute difference to the frames before and after, fp32 `[B, N]` in grey levels.

    `video` `[B, T, 3, H, W]`, uint8 or normalised. A frame's change is the mean of those to its two neighbours (what
    moves differs from both, what it uncovers from one alone), at the ends that to its only one; a tubelet's is that
    of its most changing frame. A single frame has no change. Of each patch a few pixels are compared
    (`differences`).
    """
    B, T = video.shape[:2]
    S, P = grid.num_times, grid.num_patches
    if T == 1:
        return torch.zeros(B, S * P, device=video.device)
    between = differences(video, grid)  # [B, T - 1, P]
    change = torch.cat([between[:, :1], (between[:, 1:] + between[:, :-1]) / 2, between[:, -1:]], dim=1)
    missing = S * grid.tubelet_size - T  # an odd last frame fills its tubelet with itself
    if missing:
        change = torch.cat([change, change[:, -1:].expand(-1, missing, -1)], dim=1)
    return change.view(B, S, grid.tubelet_size, P).amax(dim=2).flatten(1)


def repeated_change(video: Tensor, grid: Grid) -> Tensor:
    """How much each tubelet differs from its predecessor, the one before it at the same place: fp32 `[B, S - 1, P]`.

    Grey levels, as `differences`: of the frames of a tubelet that which differs most from the predecessor's.
    """
    t, S = grid.tubelet_size, grid.num_times
    if S == 1:
        return torch.zeros(len(video), 0, grid.num_patches, device=video.device)
    missing = S * t - video.shape[1]
    if missing:  # an odd last frame fills its tubelet with itself
        video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    apart = [differences(video[:, frame::t], grid) for frame in range(t)]
    return torch.stack(apart).amax(dim=0)


def differences(video: Tensor, grid: Grid) -> Tensor:
    """Mean absolute difference of each frame to the next, patch by patch: fp32 `[B, T - 1, P]` in grey levels.

    Every pixel whose row and column are multiples of a quarter of the patch (rounded down to a divisor of it) is
    compared, 4 x 4 or a little more a patch: enough to see motion, at a sixteenth of the reading of 16 x 16 patches.
    """
    p = grid.patch_size
    step = next(step for step in range(max(1, p // 4), 0, -1) if p % step == 0)
    height, width = (
        side - side % p for side in video.shape[-2:]
    )  # pixels behind the last whole patch are not seen
    pixels = video[..., :height:step, :width:step].contiguous()
    later, earlier = pixels[:, 1:], pixels[:, :-1]
    if video.is_floating_point():
        difference = (later - earlier).abs_().float() * GREY_LEVELS_PER_UNIT
    else:
        difference = torch.maximum(later, earlier).sub_(torch.minimum(later, earlier))  # uint8 has no sign
    red, green, blue = difference.unbind(2)
    return F.avg_pool2d((red.float() + green + blue) / 3, p // step).flatten(2)
