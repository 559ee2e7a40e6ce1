"""From a decoded frame to a picture: upright, of square pixels, scaled, cropped."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.reformatter import Interpolation as Scaling

from harvest.data.geometry import cut_square, scaled_size
from harvest.data.video.source import Unreadable
from harvest.plain_types import Fit, Interpolation, Pixels

_MAX_ASPECT = 32  # a picture longer than this cannot be cropped to anything meaningful
_SCALINGS = {"bicubic": Scaling.BICUBIC, "bilinear": Scaling.BILINEAR}
_UNSPECIFIED = 2  # FFmpeg's number of the colour matrix
_scalers = threading.local()


def scaler() -> VideoReformatter:
    """One scaler a thread: setting one up for every clip costs as much as scaling a frame."""
    if not hasattr(_scalers, "scaler"):
        _scalers.scaler = VideoReformatter()
    return _scalers.scaler


_QUARTER_TURNS = {  # counterclockwise
    1: np.array([[0, -1], [1, 0]]),
    2: np.array([[-1, 0], [0, -1]]),
    3: np.array([[0, 1], [-1, 0]]),
}


def _orientation(frame: Any, stream: Any) -> np.ndarray | None:
    """The 2 x 2 part of the display matrix, rounded to quarter turns and mirrorings. None if upright."""
    # PyAV frees the name of a PNG's colour profile twice, once its side data were looked at
    if stream.codec_context.name in ("png", "apng"):
        return None
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except (
        ValueError
    ):  # PyAV stumbles over kinds of side data that it does not know; the angle it still tells
        return _QUARTER_TURNS.get(round(frame.rotation / 90) % 4)
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), dtype=np.int32)[:9].reshape(3, 3)[:2, :2] / 65536.0
    turn = np.round(matrix).astype(int)
    if not np.array_equal(np.abs(turn @ turn.T), np.eye(2, dtype=int)) or np.array_equal(turn, np.eye(2)):
        return None
    return turn


def shown_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Width and height as shown: square pixels, upright."""
    width, height = square_pixels(frame.width, stream), frame.height
    turn = _orientation(frame, stream)
    return (height, width) if turn is not None and turn[0, 0] == 0 else (width, height)


def square_pixels(width: int, stream: Any) -> int:
    aspect = stream.sample_aspect_ratio
    return max(1, round(width * aspect)) if aspect and aspect > 0 and aspect != 1 else width


def _colorspace(frame: Any) -> int | None:
    """BT.709 for HD that does not say what its colours are, as players have it; None for what the frame says."""
    is_untagged = frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb
    return int(Colorspace.ITU709) if is_untagged and (frame.width >= 1280 or frame.height > 576) else None


def check_shape(width: int, height: int) -> None:
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise Unreadable(f"pictures of {width} x {height} are too narrow to crop")


@dataclass(frozen=True)
class Fitting:
    """How frames become pictures of one size."""

    image_size: int
    fit: Fit | None = "crop"
    interpolation: Interpolation = "bicubic"

    def picture_of(self, frame: Any, stream: Any) -> Pixels:
        """RGB uint8 `[3, H, W]`, scaled by the decoder's own scaler, upright."""
        if frame.is_corrupt:
            raise Unreadable(f"the picture at {float((frame.pts or 0) * stream.time_base):.2f} s is damaged")
        shown_width, shown_height = shown_size(frame, stream)
        check_shape(shown_width, shown_height)
        height, width = scaled_size(shown_height, shown_width, self.image_size, self.fit)
        turn = _orientation(frame, stream)
        if turn is not None and turn[0, 0] == 0:
            width, height = height, width
        scaled = scaler().reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=_SCALINGS[self.interpolation],
            src_colorspace=_colorspace(frame),
            threads=1,
        )
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(scaled.height, plane.line_size)
        pixels = rows[:, : scaled.width * 3].reshape(scaled.height, scaled.width, 3)
        if turn is not None:
            pixels = _upright(pixels, turn)
        return cut_square(pixels.transpose(2, 0, 1), self.image_size, self.fit)


def _upright(picture: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Apply the display matrix [[a, b], [c, d]]: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    (a, b), (c, d) = turn.tolist()
    if a == 0:  # the axes change places
        picture = picture.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    if flip_x:
        picture = picture[:, ::-1]
    if flip_y:
        picture = picture[::-1]
    return picture
