"""From a decoded frame to a picture: upright, of square pixels, scaled, cropped."""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from harvest.data.video.source import Unreadable

Crop = Literal["center", "squash", "none"]
_MAX_ASPECT = 32  # a picture longer than this cannot be cropped to anything meaningful
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


def _orientation(frame: Any) -> np.ndarray | None:
    """The 2 x 2 part of the display matrix, rounded to quarter turns and mirrorings. None if upright."""
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
    turn = _orientation(frame)
    return (height, width) if turn is not None and turn[0, 0] == 0 else (width, height)


def square_pixels(width: int, stream: Any) -> int:
    aspect = stream.sample_aspect_ratio
    return max(1, round(width * aspect)) if aspect and aspect > 0 and aspect != 1 else width


def scaled_size(width: int, height: int, image_size: int, crop: Crop) -> tuple[int, int]:
    """Width and height to which a picture shown as `width` x `height` is scaled before it is cropped."""
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise Unreadable(f"pictures of {width} x {height} are too narrow to crop")
    if crop == "squash":
        return image_size, image_size
    ratio = image_size / min(width, height)
    return max(image_size, round(width * ratio)), max(image_size, round(height * ratio))


def picture_of(frame: Any, stream: Any, image_size: int, crop: Crop) -> np.ndarray:
    """RGB uint8 [H, W, 3], scaled by the decoder's own scaler (bicubic), upright, cropped."""
    new_width, new_height = scaled_size(*shown_size(frame, stream), image_size, crop)
    turn = _orientation(frame)
    is_on_its_side = turn is not None and turn[0, 0] == 0
    scaled = scaler().reformat(
        frame,
        width=new_height if is_on_its_side else new_width,
        height=new_width if is_on_its_side else new_height,
        format="rgb24",
        interpolation=Interpolation.BICUBIC,
        threads=1,
    )
    plane = scaled.planes[0]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(scaled.height, plane.line_size)
    picture: np.ndarray = rows[:, : scaled.width * 3].reshape(scaled.height, scaled.width, 3)
    if turn is not None:
        picture = _upright(picture, turn)
    if crop == "center":
        top, left = (picture.shape[0] - image_size) // 2, (picture.shape[1] - image_size) // 2
        picture = picture[top : top + image_size, left : left + image_size]
    return picture.copy()


def tensor_of(frame: Any, stream: Any, image_size: int, crop: Crop) -> Tensor:
    if frame.is_corrupt:
        raise Unreadable(f"the picture at {float(frame.pts * stream.time_base):.2f} s is damaged")
    return torch.from_numpy(picture_of(frame, stream, image_size, crop)).permute(2, 0, 1)


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
