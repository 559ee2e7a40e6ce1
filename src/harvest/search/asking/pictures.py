"""Pictures of moments: JPEGs for pages, half blocks for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.text import Text
from torch import Tensor

from harvest.data.video import read_frames, write_pictures

MOST_HEIGHT = 1080


def frames_at(path: Path, times_s: Sequence[float], *, height: int) -> Tensor:
    """The frames shown at times, uint8 `[n, 3, height', W]`: the short side is `height`. VideoError if unreadable."""
    return read_frames(path, torch.tensor(times_s, dtype=torch.float64), image_size=height, fit=None).frames


def thumbnail(path: Path, time_s: float, *, height: int) -> bytes:
    """The frame shown at a time as JPEG, with the picture's own proportions and `height` for its short side."""
    frames = frames_at(path, [time_s], height=height)
    height, width = (side - side % 2 for side in frames.shape[-2:])
    return write_pictures(frames[..., :height, :width])[0]


def half_blocks(pictures: Tensor, *, rows: int) -> Text:
    """Pictures `[n, 3, H, W]` side by side in `rows` lines of a terminal with colours."""
    height = 2 * rows
    width = max(2, round(pictures.shape[-1] * height / pictures.shape[-2]))
    small = F.interpolate(pictures, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    text = Text(no_wrap=True)
    for row in range(0, height, 2):
        for picture in small:
            upper, lower = picture[:, row].T.tolist(), picture[:, row + 1].T.tolist()
            for (r, g, b), (R, G, B) in zip(upper, lower, strict=True):
                text.append("▀", style=f"rgb({r},{g},{b}) on rgb({R},{G},{B})")
            text.append(" ")
        text.append("\n")
    return text
