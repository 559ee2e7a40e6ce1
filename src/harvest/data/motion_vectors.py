"""How much every tubelet moves by the file's own account: motion vectors, which the encoder of the video has found.

Most codecs say of each block where in another frame it is to be copied from. The decoder hands these vectors out with
the frames, so motion is known without looking at a pixel. Pictures, and videos of key frames alone, have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harvest.data.video import (
    PackedVideo,
    VideoError,
    _Clock,
    _frames_in_order,
    _opened,
    _orientation,
    _shown_size,
    is_folder,
)
from harvest.interfaces import Grid, HarvestError


def codec_change(path: str | Path | PackedVideo, times_s: Tensor, grid: Grid) -> Tensor:
    """How far each tubelet moves, fp32 `[N]`, in pixels of the model's picture: what `motion_keep` takes as `change`.

    `times_s` `[T]` are those of the frames of a clip (`Clip.times_s`), cropped to the middle square. The vectors of all
    frames since the clip's frame before count, averaged over what of a patch they cover, patches that no block moves
    into as 0; the first frame, which none leads to, moves as the second. A tubelet moves as its most moving frame.

    Raises VideoError where the file holds no motion vectors in this stretch: choose by `tubelet_change` then.
    """
    path = path if isinstance(path, PackedVideo) else Path(path)
    T, side = len(times_s), round(grid.num_places**0.5)
    if grid.num_times * grid.tubelet_size < T or side**2 != grid.num_places:
        raise HarvestError(f"{T} frames do not fit into {grid.num_times} tubelets of {grid.tubelet_size}")
    is_pictures = path.times_s is not None if isinstance(path, PackedVideo) else is_folder(path)
    if is_pictures:
        raise VideoError(path, "a folder of pictures has no motion vectors; choose with keep motion")
    moved = np.zeros((T, side, side))
    found = False
    with _opened(path) as (container, stream):
        stream.codec_context.options = {"flags2": "+export_mvs"}
        clock, codec = _Clock(stream.time_base, stream.start_time or 0), stream.codec_context.name
        shown = torch.tensor(clock.ticks(times_s.double()))
        for pts, frame in _frames_in_order(container, stream):
            place = int((shown < pts).sum())  # of the clip's first frame that is not before this one
            if place == T:
                break
            vectors = frame.side_data.get("MOTION_VECTORS") if place else None
            if vectors is not None and len(vectors):
                if _orientation(frame) is not None:
                    raise VideoError(
                        path, "motion vectors of turned videos are not read; choose with keep motion"
                    )
                moved[place] += _by_place(frame, stream, vectors.to_ndarray(), side, grid.patch_size)
                found = True
    if not found:
        raise VideoError(
            path, f"no motion vectors between the frames of the clip (codec {codec}); choose with keep motion"
        )
    return of_tubelets(moved, grid)


def of_tubelets(moved: np.ndarray, grid: Grid) -> Tensor:
    """Motion of the places of frames `[T, side, side]`, each since the frame before, as that of tubelets, fp32 `[N]`."""
    T = len(moved)
    moved = np.concatenate([moved[min(1, T - 1)][None], moved[1:]])  # the first moves as the second
    moved = np.concatenate([moved, np.repeat(moved[-1:], grid.num_times * grid.tubelet_size - T, axis=0)])
    tubelets = moved.reshape(grid.num_times, grid.tubelet_size, grid.num_places).max(axis=1)
    return torch.from_numpy(tubelets.astype(np.float32)).flatten()


def stream_motion(path: str | Path, *, every_s: float, grid: Grid) -> Iterator[np.ndarray | None]:
    """How far each place `[side, side]` moves up to each of the times 0, `every_s`, 2 `every_s`, … since the one before.

    The companion of `video.stream_frames`, for work on all of a long video: one pass, in order. None stands for a
    stretch without motion vectors, which is a still one or of a file that has none; the first is of no time. Ends with
    the last frame. Raises VideoError where the file cannot be read on, or is turned.
    """
    path, side = Path(path), round(grid.num_places**0.5)
    with _opened(path) as (container, stream):
        stream.codec_context.options = {"flags2": "+export_mvs"}
        clock = _Clock(stream.time_base, stream.start_time or 0)
        number = 0  # of the next time
        moved: np.ndarray | None = None
        for pts, frame in _frames_in_order(container, stream):
            while pts > clock.ticks(torch.tensor([number * every_s], dtype=torch.float64))[0]:
                yield moved
                moved, number = None, number + 1
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None and len(vectors):
                if _orientation(frame) is not None:
                    raise VideoError(
                        path, "motion vectors of turned videos are not read; choose with keep motion"
                    )
                own = _by_place(frame, stream, vectors.to_ndarray(), side, grid.patch_size)
                moved = own if moved is None else moved + own
        yield moved


def _by_place(frame: Any, stream: Any, vectors: np.ndarray, side: int, patch_size: int) -> np.ndarray:
    """Mean length of the vectors of one frame in each place `[side, side]`, by the area of their blocks."""
    width, height = _shown_size(frame, stream)
    scale = side * patch_size / min(width, height)  # the short side fills the model's picture
    wide, high = scale * width / frame.width, scale * height / frame.height  # of a pixel of the file
    column = (vectors["dst_x"] * wide - (scale * width - side * patch_size) / 2) // patch_size
    row = (vectors["dst_y"] * high - (scale * height - side * patch_size) / 2) // patch_size
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    vectors, place = vectors[inside], (row * side + column)[inside].astype(np.int64)
    area = vectors["w"].astype(np.float64) * wide * vectors["h"] * high
    parts = np.maximum(vectors["motion_scale"], 1)
    length = np.hypot(vectors["motion_x"] / parts * wide, vectors["motion_y"] / parts * high)
    total = np.bincount(place, weights=area * length, minlength=side * side)
    covered = np.bincount(place, weights=area, minlength=side * side)
    return (total / np.maximum(covered, patch_size**2)).reshape(side, side)
