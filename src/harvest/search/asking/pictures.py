"""Pictures of moments: JPEGs for pages, half blocks for terminals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from rich.text import Text
from torch import Tensor

from harvest.data.video import read_frames

MOST_HEIGHT = 1080


def frames_at(path: Path, times_s: Sequence[float], *, height: int) -> Tensor:
    """The frames shown at times, uint8 `[n, 3, height', W]`: the short side is `height`. VideoError if unreadable."""
    return read_frames(path, torch.tensor(times_s, dtype=torch.float64), image_size=height, fit=None).frames


def jpeg(picture: Tensor) -> bytes:
    """A picture, uint8 `[3, H, W]`, as a JPEG."""
    height, width = (side - side % 2 for side in picture.shape[1:])
    frame = av.VideoFrame.from_ndarray(
        picture[:, :height, :width].permute(1, 2, 0).contiguous().numpy(), format="rgb24"
    )
    out = io.BytesIO()
    with av.open(out, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1, options={"qmin": "3", "qmax": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


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
