"""Pictures of moments: JPEGs for pages, half blocks for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.text import Text

from harvest.data.video import read_frames, write_pictures
from harvest.plain_types import Pixels

MOST_HEIGHT = 1080


def frames_at(path: Path, times_s: Sequence[float], *, height: int) -> Pixels:
    """The frames shown at times, uint8 `[n, 3, height', W]`: the short side is `height`. VideoError if unreadable."""
    return read_frames(path, times_s, image_size=height, fit=None).pixels


def thumbnail(path: Path, time_s: float, *, height: int) -> bytes:
    """The frame shown at a time as JPEG, with the picture's own proportions and `height` for its short side."""
    frames = frames_at(path, [time_s], height=height)
    height, width = (side - side % 2 for side in frames.shape[-2:])
    return write_pictures(frames[..., :height, :width])[0]


def half_blocks(pictures: Pixels, *, rows: int) -> Text:
    """Pictures `[n, 3, H, W]` side by side in `rows` lines of a terminal with colours."""
    height = 2 * rows
    width = max(2, round(pictures.shape[-1] * height / pictures.shape[-2]))
    small = [
        np.asarray(
            Image.fromarray(picture.transpose(1, 2, 0)).resize((width, height), Image.Resampling.BICUBIC)
        )
        for picture in pictures
    ]
    text = Text(no_wrap=True)
    for row in range(0, height, 2):
        for picture in small:
            upper, lower = picture[row].tolist(), picture[row + 1].tolist()
            for (r, g, b), (R, G, B) in zip(upper, lower, strict=True):
                text.append("▀", style=f"rgb({r},{g},{b}) on rgb({R},{G},{B})")
            text.append(" ")
        text.append("\n")
    return text
