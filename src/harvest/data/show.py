"""What a model is shown of a clip, whatever the clip is given as: a file, a picture in memory, decoded frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harvest.data.sampling import segment_times
from harvest.data.transforms import fit_square
from harvest.data.video import read_clip
from harvest.data.video.frames import Fitting
from harvest.data.video.pictures import fit_picture
from harvest.data.video.source import Unreadable
from harvest.interfaces import Fit, HarvestError, Interpolation


def show(
    clip: Any,
    *,
    num_frames: int,
    image_size: int,
    fit: Fit = "crop",
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Frames uint8 `[num_frames, 3, S, S]`: those in the middle of equal segments of the clip, as squares.

    `clip` is the path of a video, picture or folder of pictures, a Pillow picture, or anything that `as_frames` takes.
    """
    if isinstance(clip, str | Path):
        squares = {"image_size": image_size, "fit": fit, "interpolation": interpolation}
        return read_clip(clip, num_frames=num_frames, **squares).frames  # type: ignore[arg-type]
    if isinstance(clip, Image.Image):  # scaled as a file of a picture is
        try:
            picture = fit_picture(clip, Fitting(image_size, fit, interpolation))
        except Unreadable as error:
            raise HarvestError(f"a picture in memory: {error}") from error
        return torch.from_numpy(picture).expand(num_frames, -1, -1, -1)
    frames = as_frames(clip)
    places = segment_times(0.0, float(len(frames)), num_frames=num_frames).astype(int)
    return fit_square(frames[places], image_size, fit=fit, interpolation=interpolation)


def as_frames(clip: Any) -> Tensor:
    """Decoded frames as uint8 `[T, 3, H, W]`.

    `clip` is a tensor or an array, uint8 `[T, 3, H, W]` or `[T, H, W, 3]`, or without T one picture; a Pillow picture; or a
    list of pictures. Raises HarvestError for anything else, also where the shape could be read both ways.
    """
    if isinstance(clip, list | tuple) and clip:
        frames = [as_frames(frame) for frame in clip]
        if len({frame.shape for frame in frames}) > 1:
            raise HarvestError(
                f"the frames of a clip differ in size: {sorted({tuple(frame.shape[-2:]) for frame in frames})}"
            )
        return torch.cat(frames)
    if isinstance(clip, Image.Image):
        clip = np.array(clip.convert("RGB"))
    found = torch.from_numpy(clip) if isinstance(clip, np.ndarray) else clip
    if isinstance(found, Tensor) and found.dtype == torch.uint8 and found.ndim in (3, 4) and len(found):
        frames_in = found if found.ndim == 4 else found[None]
        is_first, is_last = frames_in.shape[1] == 3, frames_in.shape[3] == 3
        if is_first != is_last:
            return frames_in if is_first else frames_in.permute(0, 3, 1, 2)
    what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(clip).__name__
    raise HarvestError(
        f"expected frames uint8 [T, 3, H, W] or [T, H, W, 3], a picture, or a list of pictures, got {what}"
    )
