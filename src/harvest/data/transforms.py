"""Geometry of decoded clips, uint8 `[T, 3, H, W]`: the same for every frame of a clip. Pure functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.geometry import cut_square, scaled_size
from harvest.interfaces import Fit, HarvestError, Interpolation
from harvest.parallel import send


def fit_square(
    frames: Tensor, image_size: int, *, fit: Fit = "crop", interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Frames uint8 `[..., H, W]` as squares of `image_size`."""
    height, width = scaled_size(frames.shape[-2], frames.shape[-1], image_size, fit)
    scaled = resize(frames, height, width, interpolation).cpu()
    return torch.from_numpy(cut_square(scaled.numpy(), image_size, fit)).to(frames.device)


def random_resized_crop(
    frames: Tensor,
    image_size: int,
    *,
    scale: tuple[float, float],
    generator: torch.Generator,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """A random part of the picture, scaled to a square of `image_size`.

    `scale` bounds the part's share of the picture's area, `aspect` its width over height (drawn
    log-uniformly). Where no such part is found in ten draws the middle square is taken, as in torchvision.
    """
    height, width = frames.shape[-2:]
    box = random_box(height, width, scale=scale, generator=generator, aspect=aspect)
    if box is None:
        return fit_square(frames, image_size)
    top, left, crop_h, crop_w = box
    return resize(frames[..., top : top + crop_h, left : left + crop_w], image_size, image_size)


def random_box(
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    generator: torch.Generator,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of `random_resized_crop`'s part of a picture; None where none was found."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise HarvestError(f"crop_scale: expected 0 < smallest <= largest <= 1, got {scale}")
    draws = torch.rand(10, 4, dtype=torch.float64, generator=generator).tolist()
    for for_area, for_aspect, for_top, for_left in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + (high - low) * for_aspect)
        crop_w, crop_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            top = int(for_top * (height - crop_h + 1))
            left = int(for_left * (width - crop_w + 1))
            return top, left, crop_h, crop_w
    return None


def crop_batch(video: Tensor, boxes: Tensor, image_size: int) -> Tensor:
    """Crop, scale and mirror a batch in one pass, where it lies: uint8 `[B, T, 3, H, W]` to `[B, T, 3, S, S]`.

    `boxes` float `[B, 4]` are top, left, height and width in shares of the picture; a negative width mirrors.
    Scaling is `resize`'s, bicubic with antialiasing, as two products with small matrices a clip: within three
    levels of it, which rounds in between, for boxes of whole pixels.
    """
    _, T, C, H, W = video.shape
    boxes = send(boxes, video.device).to(torch.float32)
    rows = _weights(boxes[:, 0] * H, boxes[:, 2] * H, H, image_size)  # [B, S, H]
    columns = _weights(boxes[:, 1] * W, boxes[:, 3].abs() * W, W, image_size)  # [B, S, W]
    columns = torch.where((boxes[:, 3] < 0)[:, None, None], columns.flip(1), columns)
    part = video.flatten(1, 2).to(torch.float32) @ columns.mT[:, None]  # [B, T * C, H, S]
    part = rows[:, None] @ part  # [B, T * C, S, S]
    return part.round_().clamp_(0, 255).to(torch.uint8).unflatten(1, (T, C))  # type: ignore[no-untyped-call]


def _weights(start: Tensor, length: Tensor, num_in: int, num_out: int) -> Tensor:
    """How much each of `num_in` pixels counts for each of `num_out` that divide a stretch: `[B, num_out, num_in]`."""
    step = (length / num_out)[:, None, None]
    reach = step.clamp(min=1.0)  # a kernel as wide as what one pixel stands for
    places = torch.arange(num_out, device=start.device)[None, :, None] + 0.5
    pixels = torch.arange(num_in, device=start.device)[None, None] + 0.5
    x = ((pixels - (start[:, None, None] + places * step)) / reach).abs()
    a = -0.5  # Keys' cubic, as antialiased resizing has it everywhere
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    is_inside = (pixels > start[:, None, None]) & (pixels < (start + length)[:, None, None])
    weights = weights * is_inside
    return weights / weights.sum(dim=2, keepdim=True)


def side_crops(frames: Tensor, image_size: int, *, num_crops: int) -> list[Tensor]:
    """Squares along the longer side, from end to end at equal distances; one is the middle one.

    The shorter side must be `image_size` already.
    """
    height, width = frames.shape[-2:]
    if min(height, width) != image_size:
        raise ValueError(f"frames are {height}x{width}, the shorter side must be {image_size}")
    slack = max(height, width) - image_size
    starts = (
        [round(slack * crop / (num_crops - 1)) for crop in range(num_crops)]
        if num_crops > 1
        else [slack // 2]
    )
    if height > width:
        return [frames[..., start : start + image_size, :] for start in starts]
    return [frames[..., start : start + image_size] for start in starts]


def flip(frames: Tensor) -> Tensor:
    """Mirror left and right. Not for captions that speak of directions."""
    return frames.flip(-1)


def resize(frames: Tensor, height: int, width: int, interpolation: Interpolation = "bicubic") -> Tensor:
    """Scale frames `[..., 3, H, W]` with antialiasing, rounded back to uint8."""
    if frames.shape[-2:] == (height, width):
        return frames.contiguous()
    is_on_cpu = frames.device.type == "cpu"  # GPUs scale no bytes
    scaled = F.interpolate(
        frames if is_on_cpu else frames.float(),
        size=(height, width),
        mode=interpolation,
        antialias=True,
        align_corners=False,
    )
    return scaled if is_on_cpu else scaled.round().clamp(0, 255).byte()
