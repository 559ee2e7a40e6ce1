"""At given times, exactly the frames a player would show, and no others.

The clock is the file's own, set to zero at the start of its video stream; frame counts and frame rates decide
nothing. The frame shown at time t is the last one, in presentation order, whose timestamp is not after t.

Two ways lead to it. `read_in_order` decodes everything up to the last time and so defines what is right.
`read_by_key_frames` looks at the packets' timestamps first, seeks when a key frame lies between, decodes only
groups of pictures that hold a wanted frame and skips frames in them that no other frame refers to. Where a
file's timestamps do not allow this it declines, and the file is read in order. With another decoder than PyAV,
`data.video.second_decoder` is asked before both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harvest.data.sampling import ViewPlaces, segment_times
from harvest.data.video.decoding import first_frame, frames_in_order, read_in_order
from harvest.data.video.frames import Crop, shown_size, tensor_of
from harvest.data.video.key_frames import read_by_key_frames
from harvest.data.video.opening import ROUNDING_S, SELF_CONTAINED, Clock, duration_of, opened
from harvest.data.video.pictures import FOLDER_FPS, pictures_in, read_folder, read_packed_pictures, stacked
from harvest.data.video.second_decoder import Decoder, find_decoder, read_by_torchcodec
from harvest.data.video.source import PackedVideo, Source, VideoError, VideoInfo, as_source, is_folder
from harvest.interfaces import Clip, HarvestError


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
    crop: Crop = "center",
    folder_fps: float = FOLDER_FPS,
    decoder: Decoder = "pyav",
) -> Clip:
    """One frame from each of `num_frames` equal segments of a stretch: random with a generator, else the middle.

    `num_clips` of a test are interleaved as in `segment_times`.

    `crop`: "center" scales the short side to `image_size` and takes the middle square, "squash" scales to the
    square, "none" only scales the short side. A folder of pictures is a video of `folder_fps`, a picture is a
    video of one frame. `times_s` of the result are those of the frames shown; a stretch that reaches beyond
    the video repeats its last frame.

    Raises VideoError with the reason for anything that cannot be read.
    """

    def pick(duration_s: float) -> Tensor:
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

    return _read(
        as_source(path), pick, image_size=image_size, crop=crop, folder_fps=folder_fps, decoder=decoder
    )


def read_frames(
    path: str | Path | PackedVideo,
    times_s: Tensor,
    *,
    image_size: int,
    crop: Crop = "center",
    folder_fps: float = FOLDER_FPS,
    decoder: Decoder = "pyav",
) -> Clip:
    """The frames shown at given times, which must not decrease: before the first frame the first, past the end the last."""
    if times_s.ndim != 1 or len(times_s) == 0 or bool((times_s.diff() < 0).any()):
        raise HarvestError("read_frames: times_s must be a list of times that do not decrease")
    wanted = times_s.to(torch.float64)
    return _read(
        as_source(path),
        lambda duration_s: wanted,
        image_size=image_size,
        crop=crop,
        folder_fps=folder_fps,
        decoder=decoder,
    )


def stream_frames(
    path: str | Path, *, every_s: float, image_size: int, crop: Crop = "center"
) -> Iterator[tuple[float, Tensor]]:
    """The frames shown at 0, `every_s`, 2 `every_s`, … to the end of the file, as (time, uint8 `[3, H, W]`).

    Decoded once, in order, in the memory of one frame: for work on all of a long video. A frame shown at several
    of the times comes as the same tensor. The last time is at most `every_s` before the end of the last frame.

    Raises VideoError where the file cannot be read on, which may be after frames that it has given.
    """
    path = Path(path)
    if every_s <= 0:
        raise HarvestError(f"stream_frames: every_s must be above 0, got {every_s}")
    with opened(path) as (container, stream):
        duration = duration_of(path, container, stream)
    with opened(path) as (container, stream):
        clock = Clock(stream.time_base, stream.start_time or 0)
        number = 0  # of the next time
        before: tuple[int, Any] | None = None
        for pts, frame in frames_in_order(container, stream):
            if before is not None and clock.seconds(pts) > number * every_s + ROUNDING_S:
                picture = tensor_of(before[1], stream, image_size, crop)
                while clock.seconds(pts) > number * every_s + ROUNDING_S:
                    yield number * every_s, picture
                    number += 1
            before = (pts, frame)
        if before is None:
            raise VideoError(path, "the video has no frames")
        ended_s = clock.seconds(before[0] + (before[1].duration or 0))
        if number * every_s < ended_s - ROUNDING_S or number == 0:
            picture = tensor_of(before[1], stream, image_size, crop)
            while number * every_s < ended_s - ROUNDING_S or number == 0:
                yield number * every_s, picture
                number += 1
    if duration.is_of_stream and duration.seconds - ended_s > max(0.5, 0.05 * duration.seconds):
        raise VideoError(
            path, f"cut short: it claims {duration.seconds:.2f} s, its frames end at {ended_s:.2f} s"
        )


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
    with opened(path) as (container, stream):
        duration = duration_of(path, container, stream)
    with opened(path) as (container, stream):
        width, height = shown_size(first_frame(path, container, stream), stream)
        return VideoInfo(
            duration_s=duration.seconds,
            num_frames=stream.frames or None,
            fps=float(stream.average_rate) if stream.average_rate else None,
            width=width,
            height=height,
            codec=stream.codec_context.codec.canonical_name,
        )


def _read(
    path: Source,
    pick: Callable[[float], Tensor],
    *,
    image_size: int,
    crop: Crop,
    folder_fps: float,
    decoder: Decoder,
) -> Clip:
    found = find_decoder(decoder)
    if isinstance(path, PackedVideo):
        if path.times_s is not None:
            return read_packed_pictures(path, pick, image_size=image_size, crop=crop)
    elif is_folder(path):
        return read_folder(path, pick, image_size=image_size, crop=crop, fps=folder_fps)
    # Nothing of a stream is touched once its container is closed: its memory is gone.
    with opened(path) as (container, stream):
        duration = duration_of(path, container, stream)
        clock = Clock(stream.time_base, stream.start_time or 0)
        times = pick(duration.seconds)
        shown = None
        if found != "pyav" and container.format.name in SELF_CONTAINED:
            shown = read_by_torchcodec(path, stream, clock.ticks(times), image_size, crop, found)
        if shown is None and not duration.needs_reopening:
            shown = read_by_key_frames(container, stream, clock.ticks(times), image_size, crop)
    if shown is None:
        with opened(path) as (container, stream):
            shown = read_in_order(container, stream, clock.ticks(times), image_size, crop)
    if shown is None:
        raise VideoError(path, "the video has no frames")
    if shown.ended_at is not None:
        ended_s = clock.seconds(shown.ended_at)
        missing_s = min(float(times[-1]), duration.seconds) - ended_s
        if missing_s > max(0.5, 0.05 * duration.seconds):
            if duration.is_of_stream:
                raise VideoError(
                    path, f"cut short: it claims {duration.seconds:.2f} s, its frames end at {ended_s:.2f} s"
                )
            # The container's duration was that of its sound: look again where there are pictures.
            times = pick(max(ended_s, 0.0))
            with opened(path) as (container, stream):
                shown = read_in_order(container, stream, clock.ticks(times), image_size, crop)
            assert shown is not None  # it had frames a moment ago
    times_s = torch.tensor([clock.seconds(pts) for pts in shown.pts], dtype=torch.float64)
    return Clip(stacked(path, shown.pictures), times_s, shown.size and (shown.size[1], shown.size[0]))
