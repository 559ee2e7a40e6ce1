"""RandAugment (Cubuk et al. 2019) for clips: the same operations on every frame. Pure functions of uint8 `[T, 3, H, W]`.

Operations, their chance and their strengths are those of timm's `rand-m7-n4-mstd0.5-inc1`, which UMT and VideoMAE
fine-tune with: each of n operations is applied with chance 1/2, at a magnitude drawn from a normal distribution, and a
higher magnitude is always a larger change. Shifted-in pixels are grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_CHANCE = 0.5
_SPREAD = 0.5  # standard deviation of the magnitude
_MOST = 10.0  # the largest magnitude
_GREY = 128.0


def rand_augment(frames: Tensor, *, num_ops: int, magnitude: float, generator: torch.Generator) -> Tensor:
    """Change a clip uint8 `[T, 3, H, W]` by up to `num_ops` operations at about `magnitude`, 0 to 10."""
    for _ in range(num_ops):
        # Drawn in one go, so that every operation takes equally much of the generator.
        which, is_applied, sign = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        noise = float(torch.randn((), dtype=torch.float64, generator=generator))
        if is_applied >= _CHANCE:
            continue
        strength = min(_MOST, max(0.0, magnitude + _SPREAD * noise)) / _MOST
        operation = OPERATIONS[int(which * len(OPERATIONS))]
        frames = operation(frames, strength, 1 if sign < 0.5 else -1)
    return frames


# ---------------------------------------------------------------------------------------------------------------
# Operations: (frames, strength 0 to 1, sign 1 or -1) -> frames


def _auto_contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    """Each channel of each frame stretched to 0 … 255."""
    low = frames.amin(dim=(-2, -1), keepdim=True).float()
    high = frames.amax(dim=(-2, -1), keepdim=True).float()
    scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1.0)
    return _rounded((frames - torch.where(high > low, low, 0.0)) * scale)


def _equalize(frames: Tensor, strength: float, sign: int) -> Tensor:
    """A flat histogram in each channel of each frame (PIL's `ImageOps.equalize`)."""
    planes = frames.flatten(0, 1).flatten(1).long()  # [T * 3, H * W]
    histogram = torch.zeros(len(planes), 256, dtype=torch.long).scatter_add_(
        1, planes, torch.ones_like(planes)
    )
    last = histogram.gather(1, planes.amax(dim=1, keepdim=True))  # pixels of the brightest value
    step = (planes.shape[1] - last) // 255
    before = histogram.cumsum(dim=1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256))
    return table.gather(1, planes).to(torch.uint8).view(frames.shape)


def _invert(frames: Tensor, strength: float, sign: int) -> Tensor:
    return 255 - frames


def _rotate(frames: Tensor, strength: float, sign: int) -> Tensor:
    angle = math.radians(30 * strength * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    return _warp(frames, [[cos, -sin, 0], [sin, cos, 0]])


def _posterize(frames: Tensor, strength: float, sign: int) -> Tensor:
    """Keep the 4 to 0 highest bits."""
    bits = 4 - int(4 * strength)
    return frames & ((0xFF << (8 - bits)) & 0xFF)


def _solarize(frames: Tensor, strength: float, sign: int) -> Tensor:
    threshold = 256 - int(256 * strength)
    return torch.where(frames < threshold, frames, 255 - frames) if threshold < 256 else frames


def _solarize_add(frames: Tensor, strength: float, sign: int) -> Tensor:
    brighter = (frames.int() + int(110 * strength)).clamp(max=255).to(torch.uint8)
    return torch.where(frames < 128, brighter, frames)


def _colour(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _mix(_grey(frames).expand_as(frames), frames, strength, sign)


def _contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    mean = (_grey(frames).mean(dim=(-2, -1), keepdim=True) + 0.5).floor()
    return _mix(mean.expand(frames.shape), frames, strength, sign)


def _brightness(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _mix(torch.zeros(()), frames, strength, sign)


def _sharpness(frames: Tensor, strength: float, sign: int) -> Tensor:
    """Towards or away from PIL's smoothed picture; the outermost pixels stay."""
    kernel = (torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13).expand(3, 1, 3, 3)
    smooth = frames.float()
    if min(frames.shape[-2:]) > 2:
        smooth[..., 1:-1, 1:-1] = F.conv2d(frames.float(), kernel, groups=3).round()
    return _mix(smooth, frames, strength, sign)


def _shear_x(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1, 0.3 * strength * sign, 0], [0, 1, 0]])


def _shear_y(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1, 0, 0], [0.3 * strength * sign, 1, 0]])


def _shift_x(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1, 0, 0.9 * strength * sign], [0, 1, 0]])  # 0.45 of the width, which spans -1 to 1


def _shift_y(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _warp(frames, [[1, 0, 0], [0, 1, 0.9 * strength * sign]])


OPERATIONS: tuple[Callable[[Tensor, float, int], Tensor], ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _colour,
    _contrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
)


def _mix(other: Tensor, frames: Tensor, strength: float, sign: int) -> Tensor:
    """Away from `other` for a positive sign, towards it for a negative one; at strength 0 the frames as they are."""
    factor = max(0.1, 1 + 0.9 * strength * sign)
    return _rounded(other + factor * (frames.float() - other))


def _grey(frames: Tensor) -> Tensor:
    """Luminance as PIL has it (ITU-R 601), `[T, 1, H, W]`."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (frames * weights).sum(dim=-3, keepdim=True).round()


def _rounded(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _warp(frames: Tensor, matrix: list[list[float]]) -> Tensor:
    """Sample at `matrix @ (x, y, 1)` for every place (x, y), in pixels whose half sides are 1; bilinear."""
    height, width = frames.shape[-2:]
    theta = torch.tensor(matrix, dtype=torch.float32)
    theta[0, 1] *= height / width  # from pixels to halves of sides
    theta[1, 0] *= width / height
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    stack = (frames.float() - _GREY).flatten(0, 1)[None]  # all frames at once; outside is zero
    warped = F.grid_sample(stack, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _rounded(warped.view(frames.shape) + _GREY)
