"""Which times of a stretch to look at. Pure functions: no file, no clock, no global generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from harvest.errors import HarvestError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Times = npt.NDArray[np.float64]

FrameOrder = Literal["forward", "reversed", "shuffled", "one_frame"]
"""How the frames of a clip are shown to a model: as they are, or so that time is taken from it."""
ViewPlaces = Literal["inner", "leading"]
"""Where in its segment clip c of n takes a frame in a test: at (c + 1) / (n + 1) of it (UMT, `kinetics_sparse`), or at
c / n (UMT, `ssv2`)."""


def segment_times(
    start_s: float,
    end_s: float,
    *,
    num_frames: int,
    generator: torch.Generator | None = None,
    num_clips: int = 1,
    view_places: ViewPlaces = "inner",
) -> Times:
    """One time from each of `num_frames` equal segments of the stretch (Temporal Segment Networks, 2016).

    With a generator the time is uniform in its segment, without one it is the middle. `num_clips` clips
    are interleaved, which is for tests: they differ in where in its segment a frame is taken (`ViewPlaces`; one clip takes the
    middle), and the times of clip c are `times[c::num_clips]`.
    Returns float64 `[num_frames * num_clips]`, not decreasing, `start_s <= t < end_s` (all `start_s` if it is empty).
    """
    _check(start_s, end_s, num_frames)
    if num_clips < 1 or (num_clips > 1 and generator is not None):
        raise HarvestError(f"num_clips must be at least 1, and 1 where times are random, got {num_clips}")
    places = np.arange(num_frames, dtype=np.float64)
    if generator is None:
        shares = np.arange(1, num_clips + 1) / (num_clips + 1)
        if view_places == "leading" and num_clips > 1:
            shares = np.arange(num_clips) / num_clips
        places = (places[:, None] + shares).flatten()
    else:
        import torch

        places = places + torch.rand(num_frames, dtype=torch.float64, generator=generator).numpy()
    return _inside(start_s + places * ((end_s - start_s) / num_frames), start_s, end_s)


def dense_times(
    start_s: float, end_s: float, *, num_frames: int, every_s: float, generator: torch.Generator | None = None
) -> Times:
    """`num_frames` times `every_s` apart: a window placed at random, or in the middle without a generator.

    A stretch shorter than the window begins at its start, and times past its end are its last moment.
    Returns float64 `[num_frames]`, not decreasing, `start_s <= t < end_s`.
    """
    _check(start_s, end_s, num_frames)
    if every_s <= 0:
        raise HarvestError(f"dense_times: every_s must be above 0, got {every_s}")
    slack_s = max(0.0, (end_s - start_s) - num_frames * every_s)
    share = 0.5
    if generator is not None:
        import torch

        share = float(torch.rand((), dtype=torch.float64, generator=generator))
    times = start_s + slack_s * share + np.arange(num_frames, dtype=np.float64) * every_s
    return _inside(times, start_s, end_s)


def _check(start_s: float, end_s: float, num_frames: int) -> None:
    if num_frames < 1:
        raise HarvestError(f"num_frames must be at least 1, got {num_frames}")
    if end_s < start_s:
        raise HarvestError(f"a stretch cannot end ({end_s} s) before it starts ({start_s} s)")


def _inside(times: Times, start_s: float, end_s: float) -> Times:
    """Rounding may reach the end itself, which belongs to the next stretch."""
    return times.clip(min=start_s).clip(max=np.nextafter(float(end_s), float(start_s)))


def frame_places(order: FrameOrder, num_frames: int, *, generator: torch.Generator) -> Tensor:
    """The frames to show in place of 0 .. num_frames - 1: int64 `[num_frames]`.

    "shuffled" draws among the orders that differ from the true one; "one_frame" shows the middle frame all the time.
    """
    import torch

    places = torch.arange(num_frames)
    if order == "reversed":
        return places.flip(0)
    if order == "one_frame":
        return torch.full_like(places, num_frames // 2)
    if order == "shuffled" and num_frames > 1:
        shuffled = places
        while torch.equal(shuffled, places):
            shuffled = torch.randperm(num_frames, generator=generator)
        return shuffled
    return places
