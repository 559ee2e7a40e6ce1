"""How a picture of any shape becomes a square."""

from __future__ import annotations

import numpy as np

from harvest.plain_types import Fit, Pixels


def scaled_size(height: int, width: int, image_size: int, fit: Fit | None) -> tuple[int, int]:
    """Height and width that a picture is scaled to before it is cropped or padded; without a fit it is neither.

    Rounded as torchvision's `Resize` does it, and OpenCLIP's padding.
    """
    if fit == "squash":
        return image_size, image_size
    if fit == "pad":
        ratio = image_size / max(height, width)
        return max(1, round(height * ratio)), max(1, round(width * ratio))
    short = min(height, width)
    return int(image_size * height / short), int(image_size * width / short)


def cut_square(frames: Pixels, image_size: int, fit: Fit | None) -> Pixels:
    """The middle square of scaled frames `[..., H, W]`, or the square of black around them, in memory of its own."""
    height, width = frames.shape[-2:]
    if fit == "pad":
        top, left = (image_size - height) // 2, (image_size - width) // 2
        square = np.zeros((*frames.shape[:-2], image_size, image_size), np.uint8)
        square[..., top : top + height, left : left + width] = frames
        return square
    if fit is None:
        return np.array(frames, order="C")
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return np.array(frames[..., top : top + image_size, left : left + image_size], order="C")
