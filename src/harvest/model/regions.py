"""What a tower knows of a region of the picture. Shapes: B clips, N = S * P tubelets, D width, R boxes.

RoIAlign (He et al. 2017) is bilinear sampling at regular points, which `grid_sample` does: 10 lines on any device, where
torchvision's kernel comes compiled for one build of PyTorch only. Its results are those of torchvision's with
`aligned=True`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(maps: Tensor, boxes: Tensor, owner: Tensor, *, size: int = 7, samples: int = 2) -> Tensor:
    """Maps `[B, D, H, W]` inside boxes `[R, 4]`, as `[R, D, size, size]`.

    Boxes are left, top, right, bottom as shares of the picture; `owner` int64 `[R]` is the map of each. Every cell is
    the mean of `samples` x `samples` points, beyond the outermost pixels' centres those pixels themselves.
    """
    points = (torch.arange(size * samples, device=boxes.device, dtype=boxes.dtype) + 0.5) / (size * samples)
    left, top, right, bottom = boxes[:, None].unbind(dim=-1)  # each [R, 1]
    x, y = left + (right - left) * points, top + (bottom - top) * points  # [R, size * samples], shares
    grid = torch.stack(
        [x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1
    )
    sampled = F.grid_sample(
        maps[owner], 2 * grid - 1, mode="bilinear", padding_mode="border", align_corners=False
    )
    R, D = sampled.shape[:2]
    return sampled.view(R, D, size, samples, size, samples).mean(dim=(3, 5))


def region_features(tokens: Tensor, num_patches: int, boxes: Tensor, owner: Tensor) -> Tensor:
    """One feature a box, `[R, D]`, of all tokens `[B, N, D]` of clips: the mean over times, then the largest value of
    each channel in a 7 x 7 grid on the box (the fine-tuning of VideoMAE and UMT on AVA)."""
    B, N, D = tokens.shape
    side = math.isqrt(num_patches)
    maps = tokens.view(B, N // num_patches, num_patches, D).mean(dim=1)
    maps = maps.view(B, side, side, D).permute(0, 3, 1, 2)
    with torch.autocast(tokens.device.type, enabled=False):
        return roi_align(maps.float(), boxes.float(), owner).amax(dim=(2, 3))
