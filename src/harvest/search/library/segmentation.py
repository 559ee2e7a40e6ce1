"""A video becomes moments: shots, and within long shots windows that overlap.

The video is decoded once, in order, in the memory of one window. Pictures are taken twice as often as an encoder
wants them, so that each window finds its own, and overlapping windows of a shot find the same ones: what was
decoded, or by a frame-wise tower encoded, for one of them serves the next. Where frames are counted by the second
(`Segmentation.frames_per_s`), the second, fourth, … picture of a shot are seen, by every window that they are in.

A cut is a change from one picture to the next that stands out from those around it, seen in the pictures that are
decoded anyway. (PySceneDetect finds such hard cuts too, by a second pass of decoding and with 150 MB of OpenCV.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harvest.data.video import VideoError, probe, stream_frames
from harvest.data.video.opening import opened
from harvest.data.video.source import as_source
from harvest.errors import HarvestError
from harvest.plain_types import Pixels, Selector, Squares
from harvest.ranges import Range, check_ranges

if TYPE_CHECKING:
    from harvest.tokens import Selection

PICTURES_PER_FRAME = 2  # taken for each frame that a window shows to the encoder
LONGEST = 1.5  # windows: a shot up to this is one moment
SHORTEST_S = 0.5  # a cut sooner after the last is a flash, not a shot
GRID = 24  # side of the pictures that cuts are found in
LEAST_CHANGE = 4.0  # of 255, of a cut: less is noise


@dataclass(frozen=True)
class Segmentation:
    """How videos become moments; the same for all of a library."""

    window_s: Annotated[float, Range(least=0.1, most=600)] = 4.0
    """Longest moments are half as long again; longer shots are cut into windows of this length."""
    overlap: Annotated[float, Range(least=0, most=0.9)] = 0.5
    """Share of a window that it has in common with the next."""
    num_frames: Annotated[int | None, Range(least=1, most=256)] = None
    """Frames looked at in a moment; None is the model's own number."""
    frames_per_s: Annotated[float | None, Range(above=0, most=30)] = None
    """Frames looked at in a second, in place of a number in each moment, by a tower that sees each frame alone."""
    budget: Annotated[int | None, Range(least=1)] = None
    """Tubelets of a moment that the encoder sees; None is all."""
    selector: Selector = "motion"
    """Which those are, as in `tokens.Selection`."""

    @property
    def selection(self) -> Selection | None:
        """Which tubelets of a moment the encoder sees; None for all."""
        from harvest.tokens import see

        return see(self.budget, self.selector)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.frames_per_s is not None and self.num_frames is not None:
            raise HarvestError(
                "frames_per_s counts by the second, num_frames by the moment: give one of them"
            )

    def frame_s(self, num_frames: int) -> float:
        """The seconds from one frame that the encoder sees to the next, in a window of `num_frames`."""
        if self.frames_per_s is None:
            return self.window_s / num_frames
        return min(1 / self.frames_per_s, self.window_s)


class Window(NamedTuple):
    """A moment before it is embedded."""

    start_s: float
    end_s: float
    pictures: tuple[Pixels, ...]  # [3, H, W] each; those shared with another window are the same arrays


class Cut(NamedTuple):
    """The end of a video: how long it was, and what was wrong with it, if not all of it could be read."""

    duration_s: float
    offset_s: float  # how much later the picture starts than the sound, and so than a player's clock
    damage: str | None


def windows(
    path: str | Path, segmentation: Segmentation, *, num_frames: int, squares: Squares
) -> Iterator[Window | Cut]:
    """Cut a video: its windows in the order of their starts, then one `Cut`.

    Raises VideoError where nothing can be read at all.
    """
    every_s = segmentation.frame_s(num_frames) / PICTURES_PER_FRAME
    shot = _Shot(segmentation, num_frames, 0.0)
    end_s = 0.0
    damage: str | None = None
    claimed_s = probe(path).duration_s
    pictures = stream_frames(path, every_s=every_s, **squares)
    try:
        for time_s, picture, is_first in _with_cuts(pictures):
            if is_first and time_s - shot.start_s >= SHORTEST_S:
                yield from shot.close(time_s)
                shot = _Shot(segmentation, num_frames, time_s)
            yield from shot.add(time_s, picture)
            end_s = time_s + every_s
    except VideoError as error:
        if not end_s:
            raise
        damage = f"read only to {end_s:.1f} s: {error.reason}"
    if end_s - every_s < claimed_s < end_s:  # the last picture was not shown for all of its time
        end_s = claimed_s
    yield from shot.close(end_s)
    yield Cut(end_s, _offset_s(path), damage)


def _offset_s(path: str | Path) -> float:
    """Players count from the earliest stream on, Harvest from the first picture."""
    with opened(as_source(path)) as (container, video):
        starts = [
            float(stream.start_time * stream.time_base)
            for stream in container.streams
            if stream.type in ("audio", "video") and stream.start_time is not None and stream.time_base
        ]
        if video.start_time is None:
            return 0.0
        return round(max(0.0, float(video.start_time * video.time_base) - min(starts)), 3)


def _with_cuts(pictures: Iterator[tuple[float, Pixels]]) -> Iterator[tuple[float, Pixels, bool]]:
    """Each picture, one later, with whether it is the first of a shot."""
    changes = [0.0, 0.0, 0.0]  # that led to the two pictures before the waiting one, and to it
    waiting: tuple[float, Pixels] | None = None
    small: npt.NDArray[np.float64] | None = None
    broken: VideoError | None = None
    while broken is None:
        try:
            item = next(pictures, None)
        except VideoError as error:  # the picture that waits is still good
            broken, item = error, None
        if item is None:
            break
        before, small = small, _small(item[1])
        change = 0.0 if before is None else _lower_median(np.abs(small - before))
        if waiting is not None:
            yield *waiting, is_cut(changes[2], around=(changes[0], changes[1], change))
            changes = [changes[1], changes[2], change]
        waiting = item
    if waiting is not None:
        yield *waiting, is_cut(changes[2], around=(changes[0], changes[1]))
    if broken is not None:
        raise broken


def _lower_median(values: npt.NDArray[np.float64]) -> float:
    return float(np.partition(values, (values.size - 1) // 2, axis=None)[(values.size - 1) // 2])


def is_cut(change: float, *, around: tuple[float, ...]) -> bool:
    """Whether a change from one picture to the next, given those before and after it, begins a shot.

    A change is the median over the picture of the difference in brightness, of 255: a thing that comes or goes in
    front of the same background changes less than half of it. Fast movement and flashes come with equals beside them.
    """
    return change >= 2 * max(around) + LEAST_CHANGE


def _small(picture: Pixels) -> npt.NDArray[np.float64]:
    """The brightness of a picture `[3, H, W]` in `[GRID, GRID]` windows, which overlap where a side is no multiple."""
    grey = picture[0].astype(np.uint16) + picture[1] + picture[2]
    rows, heights = _window_sums(grey)
    columns, widths = _window_sums(rows.T)
    return columns.T / (3.0 * heights[:, None] * widths)


def _window_sums(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Sums `[GRID, W]` over GRID equal windows of the rows `[H, W]`, and how many rows each has."""
    windows = np.arange(GRID)
    first, end = windows * len(values) // GRID, -(-(windows + 1) * len(values) // GRID)
    bounds = np.unique(np.concatenate([first, end]))
    parts = np.add.reduceat(values, bounds[:-1], axis=0, dtype=np.int32)
    below = np.concatenate([np.zeros_like(parts[:1]), parts.cumsum(axis=0, dtype=np.int32)])
    return below[np.searchsorted(bounds, end)] - below[np.searchsorted(bounds, first)], end - first


class _Shot:
    """The pictures of the shot that is being read, from the start of its next window on."""

    def __init__(self, segmentation: Segmentation, num_frames: int, start_s: float) -> None:
        self.window_s = segmentation.window_s
        self.num_frames = num_frames
        self.is_by_second = segmentation.frames_per_s is not None
        self.frame_s = segmentation.frame_s(num_frames)
        # The step is a whole number of pictures, or of frames, so that windows that overlap look at the same ones.
        unit_s = self.frame_s / (1 if self.is_by_second else PICTURES_PER_FRAME)
        self.step_s = max(1, round(segmentation.window_s * (1 - segmentation.overlap) / unit_s)) * unit_s
        self.start_s = start_s
        self.next_s = start_s
        self.times_s: list[float] = []
        self.pictures: list[Pixels] = []

    def add(self, time_s: float, picture: Pixels) -> Iterator[Window]:
        self.times_s.append(time_s)
        self.pictures.append(picture)
        while time_s - self.next_s > LONGEST * self.window_s:
            yield self._window(self.next_s + self.window_s)
            self.next_s += self.step_s
            first = next(i for i, t in enumerate(self.times_s) if t > self.next_s - 1e-6)
            del self.times_s[:first], self.pictures[:first]

    def close(self, end_s: float) -> Iterator[Window]:
        if self.pictures:
            yield self._window(end_s)

    def _window(self, end_s: float) -> Window:
        if self.is_by_second:
            return Window(self.next_s, end_s, self._every_frame(end_s))
        length_s = end_s - self.next_s
        chosen: list[int] = []
        place = 0
        for number in range(self.num_frames):
            middle_s = self.next_s + (number + 0.5) * length_s / self.num_frames
            while place + 1 < len(self.times_s) and self.times_s[place + 1] <= middle_s + 1e-6:
                place += 1
            chosen.append(place)
        pictures = tuple(self.pictures[place] for place in chosen)
        return Window(self.next_s, end_s, pictures)

    def _every_frame(self, end_s: float) -> tuple[Pixels, ...]:
        """The pictures in the middles of the window's frames, or its first where it is shorter than half of one."""
        shown = [
            picture
            for time_s, picture in zip(self.times_s, self.pictures, strict=True)
            if time_s < end_s - 1e-6
            and round(PICTURES_PER_FRAME * (time_s - self.start_s) / self.frame_s) % PICTURES_PER_FRAME
        ]
        return tuple(shown or self.pictures[:1])
