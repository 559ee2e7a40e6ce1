"""At given times, exactly the frames a player would show, and no others.

The clock is the file's own, set to zero at the smallest timestamp of its video stream; frame counts and frame rates
decide nothing. The frame shown at time t is the last one, in presentation order, whose timestamp is not after t.

Two ways lead to it. `read_in_order` decodes everything up to the last time and so defines what is right.
`read_by_key_frames` looks at the packets' timestamps first, seeks when a key frame lies between, decodes only
groups of pictures that hold a wanted frame and skips frames in them that no other frame refers to. Where a
file's timestamps do not allow this it declines, and the file is read in order. With another decoder than PyAV,
`data.video.second_decoder` is asked before both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harvest.data.sampling import ViewPlaces, segment_times
from harvest.data.video.decoding import first_frame, frames_in_order, read_in_order
from harvest.data.video.frames import Fitting, shown_size
from harvest.data.video.key_frames import read_by_key_frames
from harvest.data.video.opening import ROUNDING_S, SELF_CONTAINED, opened, rate_of, timeline_of
from harvest.data.video.pictures import (
    FOLDER_FPS,
    STILL_S,
    Pick,
    is_picture,
    pictures_in,
    probe_picture,
    read_folder,
    read_packed_pictures,
    read_picture,
    stacked,
)
from harvest.data.video.second_decoder import Decoder, find_decoder, read_by_torchcodec
from harvest.data.video.source import PackedVideo, Source, VideoError, VideoInfo, as_source, is_folder
from harvest.errors import HarvestError
from harvest.plain_types import Clip, Fit, Interpolation, Pixels

if TYPE_CHECKING:
    import torch


def read_clip(
    path: str | Path | PackedVideo,
    *,
    num_frames: int,
    image_size: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    generator: torch.Generator | None = None,
    num_clips: int = 1,
    view_places: ViewPlaces = "inner",
    fit: Fit | None = "crop",
    interpolation: Interpolation = "bicubic",
    folder_fps: float = FOLDER_FPS,
    decoder: Decoder = "pyav",
) -> Clip:
    """One frame from each of `num_frames` equal segments of a stretch: random with a generator, else the middle.

    `num_clips` of a test are interleaved as in `segment_times`. Without a `fit` the shorter side of the pictures is
    scaled to `image_size` and nothing is cut off. A folder of pictures is a video of `folder_fps`, a picture is a
    video of one frame. `times_s` of the result are those of the frames shown; a stretch that reaches beyond the video
    repeats its last frame.

    Raises VideoError with the reason for anything that cannot be read.
    """

    def pick(duration_s: float) -> npt.NDArray[np.float64]:
        if start_s > 0 and start_s >= duration_s + 0.5:
            raise VideoError(
                path, f"the stretch starts at {start_s:g} s, the video ends at {duration_s:.2f} s"
            )
        end = max(duration_s, start_s) if end_s is None else end_s
        return segment_times(
            start_s,
            end,
            num_frames=num_frames,
            generator=generator,
            num_clips=num_clips,
            view_places=view_places,
        )

    return _read(as_source(path), pick, Fitting(image_size, fit, interpolation), folder_fps, decoder)


def read_frames(
    path: str | Path | PackedVideo,
    times_s: npt.ArrayLike,
    *,
    image_size: int,
    fit: Fit | None = "crop",
    interpolation: Interpolation = "bicubic",
    folder_fps: float = FOLDER_FPS,
    decoder: Decoder = "pyav",
) -> Clip:
    """The frames shown at given times, which must not decrease: before the first frame the first, past the end the last."""
    wanted = np.asarray(times_s, np.float64)
    if wanted.ndim != 1 or len(wanted) == 0 or bool((np.diff(wanted) < 0).any()):
        raise HarvestError("read_frames: times_s must be a list of times that do not decrease")
    fitting = Fitting(image_size, fit, interpolation)
    return _read(as_source(path), lambda duration_s: wanted, fitting, folder_fps, decoder)


def stream_frames(
    path: str | Path,
    *,
    every_s: float,
    image_size: int,
    fit: Fit | None = "crop",
    interpolation: Interpolation = "bicubic",
) -> Iterator[tuple[float, Pixels]]:
    """The frames shown at 0, `every_s`, 2 `every_s`, … to the end of the file, as (time, uint8 `[3, H, W]`).

    Decoded once, in order, in the memory of one frame: for work on all of a long video. A frame shown at several
    of the times comes as the same array. The last time is at most `every_s` before the end of the last frame.

    Raises VideoError where the file cannot be read on, which may be after frames that it has given.
    """
    path = Path(path)
    if every_s <= 0:
        raise HarvestError(f"stream_frames: every_s must be above 0, got {every_s}")
    fitting = Fitting(image_size, fit, interpolation)
    if is_picture(path):
        yield 0.0, read_picture(path, fitting)[0]
        return
    with opened(path) as (container, stream):
        timeline = timeline_of(path, container, stream)
    clock = timeline.clock
    number = 0  # of the next time
    with opened(path) as (container, stream):
        shown: tuple[int, Any] | None = None
        for pts, frame in frames_in_order(container, stream, clock):
            until_s = clock.seconds(pts)
            if shown is not None and until_s > number * every_s + ROUNDING_S:
                picture = fitting.picture_of(shown[1], stream)
                while until_s > number * every_s + ROUNDING_S:
                    yield number * every_s, picture
                    number += 1
            shown = (pts, frame)
        if shown is None:
            raise VideoError(path, "the video has no frames")
        picture = fitting.picture_of(shown[1], stream)
        ended_s = clock.seconds(shown[0] + (shown[1].duration or 0))
    error: VideoError | None = None
    try:
        ended_s = timeline.end_s(path, ended_s)
    except VideoError as found:  # what is there is given first
        error = found
    while number * every_s < ended_s - ROUNDING_S or number == 0:
        yield number * every_s, picture
        number += 1
    if error is not None:
        raise error


def probe(path: str | Path | PackedVideo) -> VideoInfo:
    """What the file says of itself; its first frame is decoded, so that a video without frames is found."""
    path = as_source(path)
    if isinstance(path, PackedVideo) and path.times_s is not None:
        first, count = probe(PackedVideo(path.name, path.files[:1])), len(path.files)
        fps = count / path.duration_s if path.duration_s > 0 else None
        return VideoInfo(path.duration_s, count, fps, first.width, first.height, first.codec)
    if is_folder(path):
        pictures = pictures_in(path)
        first = probe(pictures[0])
        return VideoInfo(
            len(pictures) / FOLDER_FPS, len(pictures), FOLDER_FPS, first.width, first.height, first.codec
        )
    if is_picture(path):
        return probe_picture(path)
    with opened(path) as (container, stream):
        timeline = timeline_of(path, container, stream)
    with opened(path) as (container, stream):
        width, height = shown_size(first_frame(path, container, stream, timeline.clock), stream)
        rate = timeline.clock.rate or rate_of(container, stream)
        start_s = container.start_time / 1e6 if container.start_time else 0.0
        return VideoInfo(
            duration_s=timeline.duration_s,
            num_frames=stream.frames or None,
            fps=float(rate) if rate else None,
            width=width,
            height=height,
            codec=stream.codec_context.codec.canonical_name,
            delay_s=max(0.0, float(timeline.clock.zero * stream.time_base) - start_s),
        )


def _read(path: Source, pick: Pick, fitting: Fitting, folder_fps: float, decoder: Decoder) -> Clip:
    found = find_decoder(decoder)
    if isinstance(path, PackedVideo):
        if path.times_s is not None:
            return read_packed_pictures(path, pick, fitting)
    elif is_folder(path):
        return read_folder(path, pick, fitting, fps=folder_fps)
    if is_picture(path):
        picture, size = read_picture(path, fitting)
        count = len(pick(STILL_S))
        return Clip(np.stack([picture] * count), np.zeros(count), size)
    # Nothing of a stream is touched once its container is closed: its memory is gone.
    with opened(path) as (container, stream):
        timeline = timeline_of(path, container, stream)
        clock = timeline.clock
        times = pick(timeline.duration_s)
        targets = clock.ticks(times)
        shown = None
        if found != "pyav" and container.format.name in SELF_CONTAINED and not clock.counted:
            shown = read_by_torchcodec(path, stream, targets, fitting, found)
        if shown is None and timeline.packets is not None:
            shown = read_by_key_frames(container, stream, timeline, fitting, targets)
    if shown is None and timeline.packets is None and timeline.can_seek:
        with opened(path) as (container, stream):
            shown = read_by_key_frames(container, stream, timeline, fitting, targets)
    if shown is None:
        with opened(path) as (container, stream):
            shown = read_in_order(container, stream, clock, targets, fitting)
    if shown is None:
        raise VideoError(path, "the video has no frames")
    if shown.ended_at is not None:
        ended_s = clock.seconds(shown.ended_at)
        if timeline.falls_short(ended_s, float(times[-1])) and timeline.end_s(path, ended_s) == ended_s:
            # The container's duration was that of its sound: look again where there are pictures.
            targets = clock.ticks(pick(max(ended_s, 0.0)))
            with opened(path) as (container, stream):
                shown = read_in_order(container, stream, clock, targets, fitting)
            assert shown is not None  # it had frames a moment ago
    times_s = np.array([clock.seconds(pts) for pts in shown.pts])
    return Clip(stacked(path, shown.pictures), times_s, shown.size and (shown.size[1], shown.size[0]))
