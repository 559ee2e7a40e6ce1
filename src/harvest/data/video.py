"""The only place that opens a video: at given times, exactly the frames a player would show, and no others.

The clock is the file's own, set to zero at the start of its video stream; frame counts and frame rates decide
nothing. The frame shown at time t is the last one, in presentation order, whose timestamp is not after t.

Two ways lead to it. `_read_in_order` decodes everything up to the last time and so defines what is right.
`_read_by_key_frames` looks at the packets' timestamps first, seeks when a key frame lies between, decodes only
groups of pictures that hold a wanted frame and skips frames in them that no other frame refers to. Where a
file's timestamps do not allow this it declines, and the file is read in order.

All this is PyAV. With `decoder="torchcodec"`, or "torchcodec_cuda" on a GPU, that library fetches the frames of the
same times instead, where it can (`data.second_decoder`); their numbers and times are the same, their pixels a few levels
apart, since it scales and converts colours otherwise.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeGuard

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from harvest.data import second_decoder
from harvest.data.sampling import segment_times
from harvest.data.transforms import resize
from harvest.files import new_file
from harvest.interfaces import Clip, HarvestError

Crop = Literal["center", "squash", "none"]
Decoder = Literal["auto", "pyav", "torchcodec", "torchcodec_cuda"]
FOLDER_FPS = 12.0  # of a folder of pictures; Something-Something's own rate
_JPEG = b"\xff\xd8\xff"  # how its bytes begin
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_MAX_PIXELS = 2**26  # a picture of more would take gigabytes before it is scaled
_MAX_ASPECT = 32  # a picture longer than this cannot be cropped to anything meaningful
# Codecs in which a frame nobody refers to changes nothing but itself. VP8, VP9 and AV1 adapt their entropy
# coding even on such frames, so none is skipped there.
_SKIPPABLE = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "h263", "vc1", "wmv3"}
_TICK = Fraction(1, 90_000)  # of what is written
# Clips written for training are decoded far more often than they are encoded: no arithmetic coding, no deblocking,
# and runs of three B-frames that nothing refers to, so that a frame costs what leads to it and no more. Against
# x264's own choice 1.6 times the clips a second, a tenth more bytes and 0.2 dB less.
_QUICK_TO_DECODE = {"tune": "fastdecode", "bf": "3", "x264-params": "b-adapt=0:b-pyramid=none:ref=1"}
# Where torchcodec is asked: formats whose files name no other files (it cannot be told to open nothing else) and
# give every frame a time (AVI and MPEG program streams do not, and the two libraries guess apart).
_SELF_CONTAINED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"}
_SEEK_S = 5.0  # a stretch that starts later is sought
_SEEKABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_ROUNDING_S = 1e-6  # a time computed from a frame's timestamp still finds that frame

# What the decoder raises on bad files; everything else is a mistake of ours and must be seen.
_DECODER_ERRORS = (av.error.FFmpegError, OSError, EOFError, ValueError, OverflowError, MemoryError)

# Names and titles in bytes that are no UTF-8 are no reason to refuse a video; PyAV does so by itself from 19 on.
LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

_scalers = threading.local()


class VideoError(HarvestError):
    """A video that cannot be read. `path` and `reason` are for reports."""

    def __init__(self, path: str | Path | PackedVideo, reason: str) -> None:
        super().__init__(f"video {path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # crosses from a worker process
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True)
class PackedVideo:
    """A video whose bytes are at hand, as a sample of a tar shard: one file or, with times, its pictures."""

    name: str  # for reports
    files: tuple[bytes, ...]
    times_s: tuple[float, ...] | None = None  # when each picture is shown; None where the file is a video
    duration_s: float = 0.0  # of the pictures

    def __str__(self) -> str:
        return self.name


Source = Path | PackedVideo


class _Unreadable(Exception):
    """A reason of our own, where the path is not at hand."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of its video stream, as a player would show it."""

    duration_s: float
    num_frames: int | None  # None where the file does not say
    fps: float | None
    width: int  # after rotation and with square pixels
    height: int
    codec: str


def read_clip(
    path: str | Path | PackedVideo,
    *,
    num_frames: int,
    image_size: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    generator: torch.Generator | None = None,
    num_clips: int = 1,
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
        return segment_times(start_s, end, num_frames=num_frames, generator=generator, num_clips=num_clips)

    return _read(
        _source(path), pick, image_size=image_size, crop=crop, folder_fps=folder_fps, decoder=decoder
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
        _source(path),
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
    with _opened(path) as (container, stream):
        duration = _duration(path, container, stream)
    with _opened(path) as (container, stream):
        clock = _Clock(stream.time_base, stream.start_time or 0)
        number = 0  # of the next time
        before: tuple[int, Any] | None = None
        for pts, frame in _frames_in_order(container, stream):
            if before is not None and clock.seconds(pts) > number * every_s + _ROUNDING_S:
                picture = _tensor_of(before[1], stream, image_size, crop)
                while clock.seconds(pts) > number * every_s + _ROUNDING_S:
                    yield number * every_s, picture
                    number += 1
            before = (pts, frame)
        if before is None:
            raise VideoError(path, "the video has no frames")
        ended_s = clock.seconds(before[0] + (before[1].duration or 0))
        if number * every_s < ended_s - _ROUNDING_S or number == 0:
            picture = _tensor_of(before[1], stream, image_size, crop)
            while number * every_s < ended_s - _ROUNDING_S or number == 0:
                yield number * every_s, picture
                number += 1
    if duration.is_of_stream and duration.seconds - ended_s > max(0.5, 0.05 * duration.seconds):
        raise VideoError(
            path, f"cut short: it claims {duration.seconds:.2f} s, its frames end at {ended_s:.2f} s"
        )


def _source(path: str | Path | PackedVideo) -> Source:
    if isinstance(path, str) and "://" in path:
        raise VideoError(
            path, "an address: download the videos first (video2dataset does), then name the files"
        )
    return path if isinstance(path, PackedVideo) else Path(path)


def probe(path: str | Path | PackedVideo) -> VideoInfo:
    """What the file says of itself; its first frame is decoded, so that a video without frames is found."""
    path = _source(path)
    if isinstance(path, PackedVideo) and path.times_s is not None:
        first, count = probe(PackedVideo(path.name, path.files[:1])), len(path.files)
        fps = count / path.duration_s if path.duration_s > 0 else None
        return VideoInfo(path.duration_s, count, fps, first.width, first.height, first.codec)
    if is_folder(path):
        pictures = _pictures(path)
        first = probe(pictures[0])
        return VideoInfo(
            len(pictures) / FOLDER_FPS, len(pictures), FOLDER_FPS, first.width, first.height, first.codec
        )
    with _opened(path) as (container, stream):
        duration = _duration(path, container, stream)
    with _opened(path) as (container, stream):
        width, height = _shown_size(_first_frame(path, container, stream), stream)
        return VideoInfo(
            duration_s=duration.seconds,
            num_frames=stream.frames or None,
            fps=float(stream.average_rate) if stream.average_rate else None,
            width=width,
            height=height,
            codec=stream.codec_context.codec.canonical_name,
        )


def write_video(
    path: str | Path,
    frames: Tensor,
    *,
    fps: float,
    crf: int = 18,
    key_every: int = 12,
    preset: str = "veryfast",
) -> None:
    """Write uint8 `[T, 3, H, W]` as H.264 mp4, whole or not at all. H and W must be even (4:2:0 colour).

    The same frames give the same bytes with the same libraries. `crf` is x264's quality (0 lossless, 18 clean),
    `key_every` the largest distance of key frames.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or frames.shape[0] == 0:
        raise HarvestError(
            f"write_video: expected uint8 [T, 3, H, W], got {frames.dtype} {list(frames.shape)}"
        )
    height, width = frames.shape[-2:]
    if height % 2 or width % 2:
        raise HarvestError(f"write_video: H.264 needs even sides, got {width} x {height}")
    path = Path(path)
    pictures = frames.permute(0, 2, 3, 1).contiguous().numpy()
    options = {"crf": str(crf), "preset": preset, "g": str(key_every)}
    try:
        with (
            new_file(path, flush=False) as part,
            av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container,
        ):
            stream = container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1001), options=options
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.thread_count = 1
            scaler = _scaler()
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = scaler.reformat(
                    frame, format="yuv420p", interpolation=Interpolation.BICUBIC, threads=1
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except OSError as error:
        raise HarvestError(f"cannot write video {path}: {error}") from error


def transcode(
    path: str | Path | PackedVideo,
    *,
    short_side: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    key_every: int = 12,
    crf: int = 23,
    preset: str = "veryfast",
    max_fps: float | None = None,
) -> tuple[bytes, VideoInfo]:
    """A stretch of a video as the bytes of an H.264 mp4 without sound, and what it is.

    The short side is scaled down to `short_side` if it is longer, sides are made even. Frames keep their times,
    counted from `start_s`, so that a variable frame rate stays what it is; with `max_fps` those that come too
    soon after another are left out. `key_every` frames at most lie between key frames. The frame shown at
    `start_s` is the first.

    Raises VideoError for what cannot be read, and for a stretch that holds no frame.
    """
    path = _source(path)
    buffer = io.BytesIO()
    with _opened(path) as (container, stream):
        duration = _duration(path, container, stream)
    with _opened(path) as (container, stream):
        clock = _Clock(stream.time_base, stream.start_time or 0)
        first = clock.ticks(torch.tensor([start_s], dtype=torch.float64))[0]
        last = None if end_s is None else clock.ticks(torch.tensor([end_s], dtype=torch.float64))[0]
        if start_s > _SEEK_S and container.format.name in _SEEKABLE:
            container.seek(first, stream=stream, backward=True)
        fps = float(stream.average_rate or 25)
        writer = _Writer(buffer, fps if max_fps is None else min(fps, max_fps), key_every, crf, preset)
        least = 0 if max_fps is None else math.floor(0.9 / max_fps / stream.time_base)
        before: tuple[int, Any] | None = None
        written: int | None = None
        ended_at = 0
        for pts, frame in _frames_in_order(container, stream):
            if frame.is_corrupt:
                continue
            if last is not None and pts >= last:
                break
            ended_at = pts + (frame.duration or 0)
            if pts <= first:
                before = (pts, frame)
                continue
            if before is not None:
                writer.add(before[1], stream, short_side, 0.0)
                before, written = None, first
            if written is None or pts - written >= least:
                writer.add(frame, stream, short_side, float((pts - first) * stream.time_base))
                written = pts
        if before is not None and (ended_at > first or duration.seconds <= start_s):
            writer.add(before[1], stream, short_side, 0.0)
        ended_s = clock.seconds(ended_at)
    if writer.num_frames == 0:
        raise VideoError(path, f"no frame from {start_s:g} s on")
    wanted_s = duration.seconds if end_s is None else min(end_s, duration.seconds)
    if duration.is_of_stream and wanted_s - ended_s > max(0.5, 0.05 * duration.seconds):
        raise VideoError(
            path, f"cut short: it claims {duration.seconds:.2f} s, its frames end at {ended_s:.2f} s"
        )
    width, height = writer.close()
    length_s = max(0.0, min(ended_s, math.inf if end_s is None else end_s) - start_s)
    fps = writer.num_frames / length_s if length_s > 0 else fps
    return buffer.getvalue(), VideoInfo(length_s, writer.num_frames, fps, width, height, "h264")


def write_pictures(frames: Tensor, *, quality: int = 3) -> list[bytes]:
    """Each frame of uint8 `[T, 3, H, W]` as the bytes of a JPEG; `quality` is FFmpeg's, 2 (best) to 31."""
    files = []
    for picture in frames.permute(0, 2, 3, 1).contiguous().numpy():
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="image2pipe") as container:
            options = {"flags": "+qscale", "global_quality": str(quality * 118)}  # of FFmpeg's lambda
            stream = container.add_stream("mjpeg", rate=1, options=options)
            stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuvj420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        files.append(buffer.getvalue())
    return files


class _Writer:
    """An mp4 that takes its size from its first frame."""

    def __init__(self, buffer: io.BytesIO, fps: float, key_every: int, crf: int, preset: str) -> None:
        self.container = av.open(buffer, "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        self.stream = self.container.add_stream(
            "libx264",
            rate=rate,
            options={"crf": str(crf), "preset": preset, "g": str(key_every), **_QUICK_TO_DECODE},
        )
        self.stream.thread_count = 1
        self.stream.time_base = self.stream.codec_context.time_base = _TICK
        self.num_frames = 0
        self._last = -1

    def add(self, frame: Any, stream: Any, short_side: int, time_s: float) -> None:
        size = min(short_side, *_shown_size(frame, stream))
        picture = _picture(frame, stream, size, "none")
        height, width = (max(2, side // 2 * 2) for side in picture.shape[:2])
        if min(picture.shape[:2]) < 2:
            picture = np.resize(picture, (height, width, 3))
        if self.num_frames == 0:
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        elif (width, height) != (self.stream.width, self.stream.height):
            raise _Unreadable("the size of the pictures changes within the stretch")
        made = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        made = _scaler().reformat(made, format="yuv420p", interpolation=Interpolation.BICUBIC, threads=1)
        self._last = max(self._last + 1, round(time_s / _TICK))
        made.pts, made.time_base = self._last, _TICK
        self.container.mux(self.stream.encode(made))
        self.num_frames += 1

    def close(self) -> tuple[int, int]:
        """Width and height."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.stream.width, self.stream.height


# ---------------------------------------------------------------------------------------------------------------
# Opening


@contextmanager
def _opened(path: Source) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream with one decoding thread. Whatever the decoder raises is a VideoError."""
    container = None
    with _named(path):
        try:
            # "file:" and the white list keep a file that calls itself a playlist from opening anything else
            file: str | io.BytesIO
            if isinstance(path, PackedVideo):
                size, protocols, file = len(path.files[0]), "data", io.BytesIO(path.files[0])
            else:
                if not path.exists():
                    raise VideoError(path, "no such file")
                size, protocols, file = path.stat().st_size, "file,crypto,data", f"file:{path}"
            if size == 0:
                raise VideoError(path, "the file is empty (0 bytes)")
            container = av.open(file, options={"protocol_whitelist": protocols}, **LENIENT)
            streams = [
                s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
            ]
            if not streams:
                kinds = sorted({s.type for s in container.streams})
                raise VideoError(path, f"no video stream (it holds: {', '.join(kinds) or 'nothing'})")
            stream = streams[0]
            if stream.codec_context is None or stream.time_base is None:
                raise VideoError(path, "the video is in a format this decoder does not know")
            if stream.codec_context.width * stream.codec_context.height > _MAX_PIXELS:
                raise VideoError(
                    path,
                    f"pictures of {stream.codec_context.width} x {stream.codec_context.height} are too large",
                )
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield container, stream
        finally:
            if container is not None:
                container.close()


@contextmanager
def _named(path: Source) -> Iterator[None]:
    """Whatever the decoder raises, or we of a file, is a VideoError."""
    try:
        yield
    except _Unreadable as error:
        raise VideoError(path, str(error)) from error
    except _DECODER_ERRORS as error:
        raise VideoError(path, _reason(error)) from error


def is_folder(path: Source) -> TypeGuard[Path]:
    """VideoError for a name that the system does not take, or a place that may not be looked into."""
    with _named(path):
        return isinstance(path, Path) and path.is_dir()


def _reason(error: BaseException) -> str:
    """What the decoder said, without its `[Errno …]` and without the path, which VideoError names itself."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"the decoder says: {text}"


@dataclass(frozen=True)
class _Duration:
    seconds: float
    is_of_stream: bool  # the video's own, not the container's, in which sound may be longer
    needs_reopening: bool = False  # every packet was read to find it


def _duration(path: Source, container: Any, stream: Any) -> _Duration:
    if stream.duration is not None and stream.duration > 0:
        return _Duration(float(stream.duration * stream.time_base), True)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:  # Matroska's tag of a track: where it ends, counted from zero
        hours, minutes, seconds = tag.groups()
        end_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return _Duration(max(0.0, end_s - float((stream.start_time or 0) * stream.time_base)), True)
    if container.duration is not None and container.duration > 0:
        return _Duration(container.duration / 1e6, False)
    first = last = None
    for packet in container.demux(stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            first = stamp if first is None else min(first, stamp)
            end = stamp + (packet.duration or 0)
            last = end if last is None else max(last, end)
    if first is None or last is None:
        raise VideoError(path, "the video has no frames")
    return _Duration(float((last - first) * stream.time_base), False, needs_reopening=True)


def _first_frame(path: Source, container: Any, stream: Any) -> Any:
    for _, frame in _frames_in_order(container, stream):
        return frame
    raise VideoError(path, "the video has no frames")


# ---------------------------------------------------------------------------------------------------------------
# Reading


def _read(
    path: Source,
    pick: Callable[[float], Tensor],
    *,
    image_size: int,
    crop: Crop,
    folder_fps: float,
    decoder: Decoder,
) -> Clip:
    decoder = second_decoder.find_decoder(decoder)
    if isinstance(path, PackedVideo):
        if path.times_s is not None:
            return _read_pictures(path, pick, image_size=image_size, crop=crop)
    elif is_folder(path):
        return _read_folder(path, pick, image_size=image_size, crop=crop, fps=folder_fps)
    # Nothing of a stream is touched once its container is closed: its memory is gone.
    with _opened(path) as (container, stream):
        duration = _duration(path, container, stream)
        clock = _Clock(stream.time_base, stream.start_time or 0)
        times = pick(duration.seconds)
        shown = None
        if decoder != "pyav" and container.format.name in _SELF_CONTAINED:
            shown = _read_by_torchcodec(path, stream, clock.ticks(times), image_size, crop, decoder)
        if shown is None and not duration.needs_reopening:
            shown = _read_by_key_frames(container, stream, clock.ticks(times), image_size, crop)
    if shown is None:
        with _opened(path) as (container, stream):
            shown = _read_in_order(container, stream, clock.ticks(times), image_size, crop)
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
            with _opened(path) as (container, stream):
                shown = _read_in_order(container, stream, clock.ticks(times), image_size, crop)
            assert shown is not None  # it had frames a moment ago
    times_s = torch.tensor([clock.seconds(pts) for pts in shown.pts], dtype=torch.float64)
    return Clip(_stacked(path, shown.pictures), times_s, shown.size and (shown.size[1], shown.size[0]))


def _read_folder(
    path: Path, pick: Callable[[float], Tensor], *, image_size: int, crop: Crop, fps: float
) -> Clip:
    pictures = _pictures(path)
    places = (pick(len(pictures) / fps) * fps + 1e-6).floor().long().clamp(0, len(pictures) - 1).tolist()
    read: dict[int, np.ndarray] = {}
    for place in dict.fromkeys(places):
        read[place], (width, height) = _read_picture(pictures[place], image_size, crop)
    times_s = torch.tensor([place / fps for place in places], dtype=torch.float64)
    return Clip(_stacked(path, [read[place] for place in places]), times_s, (height, width))


def _read_pictures(
    packed: PackedVideo, pick: Callable[[float], Tensor], *, image_size: int, crop: Crop
) -> Clip:
    """Pictures taken at given times: at each time wanted the last one taken by then."""
    times = packed.times_s or ()
    if len(times) != len(packed.files) or list(times) != sorted(times) or not times:
        raise VideoError(
            packed, f"{len(packed.files)} pictures with {len(times)} times that must not decrease"
        )
    taken = torch.tensor(times, dtype=torch.float64)
    wanted = pick(max(packed.duration_s, times[-1]))
    places = (torch.searchsorted(taken, wanted + _ROUNDING_S, right=True) - 1).clamp(min=0).tolist()
    read: dict[int, np.ndarray] = {}
    for place in dict.fromkeys(places):
        one = PackedVideo(f"{packed.name} picture {place}", (packed.files[place],))
        read[place], (width, height) = _read_picture(one, image_size, crop)
    return Clip(_stacked(packed, [read[place] for place in places]), taken[places], (height, width))


def _read_picture(path: Source, image_size: int, crop: Crop) -> tuple[np.ndarray, tuple[int, int]]:
    """A file that is one picture, as [H, W, 3], and its width and height as shown."""
    with _named(path):
        data = path.files[0] if isinstance(path, PackedVideo) else path.read_bytes()
        if data.startswith(
            _JPEG
        ):  # opening a container would look for its streams by decoding it a first time
            decoder = av.CodecContext.create("mjpeg", "r")
            decoder.options = {"max_pixels": str(_MAX_PIXELS)}
            decoder.thread_count = 1
            for frame in [*decoder.decode(av.Packet(data)), *decoder.decode(None)]:
                return _picture(frame, decoder, image_size, crop), _shown_size(frame, decoder)
            raise _Unreadable("the picture is empty")
    with _opened(path) as (container, stream):
        frame = _first_frame(path, container, stream)
        return _picture(frame, stream, image_size, crop), _shown_size(frame, stream)


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in order of the numbers in their names (2 before 10)."""
    with _named(folder):
        found = os.listdir(folder)
    names = [name for name in found if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    if not names:
        raise VideoError(folder, f"no pictures in this folder (expected {', '.join(IMAGE_SUFFIXES)})")
    return [folder / name for name in sorted(names, key=_by_numbers)]


def _by_numbers(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], name


def _stacked(path: Source, pictures: list[np.ndarray]) -> Tensor:
    if len({picture.shape for picture in pictures}) > 1:
        raise VideoError(path, "the size of the pictures changes within the stretch")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class _Clock:
    """Seconds from the start of the stream, and the stream's own count."""

    time_base: Fraction
    start: int

    def ticks(self, times_s: Tensor) -> list[int]:
        per_second = float(1 / self.time_base)
        return [math.floor((t + _ROUNDING_S) * per_second) + self.start for t in times_s.tolist()]

    def seconds(self, ticks: int) -> float:
        return float((ticks - self.start) * self.time_base)


@dataclass
class _Shown:
    """The frames found, in the order of the times asked for."""

    pts: list[int]
    pictures: list[np.ndarray]  # [H, W, 3] each
    ended_at: int | None  # where the last frame ends, if the file ended before the last time
    size: tuple[int, int] | None = None  # width and height as shown


def _frames_in_order(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(timestamp, frame) in presentation order. A frame whose timestamp steps back is not shown.

    A packet that cannot be decoded ends the file with the decoder's error, unless no frame came before it:
    streams cut out of longer ones begin with frames whose references are missing.
    """
    last: int | None = None
    step = 1
    if stream.average_rate:
        step = max(1, round(1 / (stream.average_rate * stream.time_base)))
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if last is not None:
                raise
            continue
        for frame in frames:
            if frame.is_corrupt and last is None:
                continue
            pts = frame.pts
            if pts is None:
                pts = (stream.start_time or 0) if last is None else last + step
            if last is None or pts > last:
                last = pts
                yield pts, frame


def _read_in_order(
    container: Any, stream: Any, targets: list[int], image_size: int, crop: Crop
) -> _Shown | None:
    """Decode from the start to the last target: slow, and by definition right. None if there is no frame."""
    shown = _Shown([], [], None)
    before: tuple[int, Any] | None = None
    picture: np.ndarray | None = None

    def show(pts: int, frame: Any) -> None:
        nonlocal picture
        if picture is None:
            if frame.is_corrupt:
                raise _Unreadable(f"the picture at {float(pts * stream.time_base):.2f} s is damaged")
            picture = _picture(frame, stream, image_size, crop)
            shown.size = shown.size or _shown_size(frame, stream)
        shown.pts.append(pts)
        shown.pictures.append(picture)

    for pts, frame in _frames_in_order(container, stream):
        while len(shown.pts) < len(targets) and targets[len(shown.pts)] < pts:
            show(*(before or (pts, frame)))
        if len(shown.pts) == len(targets):
            return shown
        before, picture = (pts, frame), None
    if before is None:
        return None
    while len(shown.pts) < len(targets):
        show(*before)
    shown.ended_at = before[0] + (before[1].duration or 0)
    return shown


def _read_by_torchcodec(
    path: Source, stream: Any, targets: list[int], image_size: int, crop: Crop, decoder: Decoder
) -> _Shown | None:
    """The same frames by another library. None where it declines."""
    tick_s = float(stream.time_base)
    # Between one tick and the next nothing changes: half a tick on, rounding cannot step back to the frame before.
    times_s = [(target + 0.5) * tick_s for target in targets]
    source = path.files[0] if isinstance(path, PackedVideo) else str(path)
    found = second_decoder.fetch(source, times_s, stream=stream.index, name=decoder)
    if found is None:
        return None
    height, width = found.frames.shape[-2:]
    width = _square_pixels(width, stream)
    new_width, new_height = _scaled_size(width, height, image_size, crop)
    frames = resize(found.frames, new_height, new_width)
    if crop == "center":
        top, left = (new_height - image_size) // 2, (new_width - image_size) // 2
        frames = frames[..., top : top + image_size, left : left + image_size]
    is_over = found.end_s[-1] >= found.last_end_s - tick_s
    return _Shown(
        [round(start_s / tick_s) for start_s in found.start_s],
        list(frames.permute(0, 2, 3, 1).cpu().numpy()),
        round(found.last_end_s / tick_s) if is_over else None,
        (width, height),
    )


class _Decline(Exception):
    """This file's timestamps do not allow reading by key frames."""


def _read_by_key_frames(
    container: Any, stream: Any, targets: list[int], image_size: int, crop: Crop
) -> _Shown | None:
    """The same frames as `_read_in_order`, decoding little. None where the file has to be read in order."""
    try:
        return _KeyFrameReader(container, stream, image_size, crop).read(targets)
    except _Decline:
        return None
    except av.error.FFmpegError:
        return None  # let the reading in order say whether it is the file or the seeking


class _KeyFrameReader:
    """State of one reading: the packets since the last seek, and the pictures found so far."""

    def __init__(self, container: Any, stream: Any, image_size: int, crop: Crop) -> None:
        self.container, self.stream, self.codec = container, stream, stream.codec_context
        self.image_size, self.crop = image_size, crop
        self.can_skip = self.codec.name in _SKIPPABLE
        self.demuxer = container.demux(stream)
        self.packets: list[Any] = []  # since the last seek, in decoding order
        self.newest: int | None = None  # decoding time of the last of them
        self.reorder = 0  # largest distance seen between decoding and presentation time
        self.is_at_end = False
        self.wanted: set[int] = set()  # timestamps within these packets
        self.pictures: dict[int, np.ndarray] = {}
        self.size: tuple[int, int] | None = None
        if not self._can_start_anywhere():
            raise _Decline

    def _can_start_anywhere(self) -> bool:
        # AVI has no presentation times: with reordered frames those of its packets are guesses.
        if self.container.format.name == "avi" and self.codec.has_b_frames:
            return False
        # x264 once got 4:4:4 wrong; FFmpeg corrects it by the encoder's version, which it reads in the first
        # packet and forgets at a seek.
        return not (self.codec.name == "h264" and (self.codec.pix_fmt or "").startswith(("yuv444", "gbr")))

    def read(self, targets: list[int]) -> _Shown:
        shown: list[int] = []
        for target in targets:
            if self._key_frame_lies_ahead(target):
                self._decode_wanted()
                self._seek(target)
            self._look_ahead(target)
            shown.append(self._shown_at(target))
            self.wanted.add(shown[-1])
        last = max((p for p in self.packets if not p.is_discard), key=lambda p: p.pts)
        self._decode_wanted()
        ended_at = last.pts + (last.duration or 0) if self.is_at_end else None
        return _Shown(shown, [self.pictures[pts] for pts in shown], ended_at, self.size)

    def _key_frame_lies_ahead(self, target: int) -> bool:
        index = self.stream.index_entries
        if len(index) < 2 or self.is_at_end:
            return False
        place = index.search_timestamp(target - self.reorder, backward=True, any_frame=False)
        if place < 0:
            return False
        return bool(index[place].timestamp > (index[0].timestamp if self.newest is None else self.newest))

    def _seek(self, target: int) -> None:
        """To the last key frame shown at `target` or before. Indexes tell decoding times: one step more may be needed."""
        at = target
        for _ in range(4):
            self.container.seek(at, stream=self.stream, backward=True)
            self.demuxer = self.container.demux(self.stream)
            self.packets, self.newest, self.is_at_end = [], None, False
            self._look_ahead(target)
            if not self.packets:
                break
            first = self.packets[0]
            if first.pts <= target:
                return
            at = (first.pts if first.dts is None else first.dts) - 1
        raise _Decline

    def _look_ahead(self, target: int) -> None:
        """Take packets until no later one can be shown at `target`: presentation is never before decoding."""
        while not self.is_at_end and (self.newest is None or self.newest <= target):
            packet = next(self.demuxer, None)
            if packet is None or (packet.size == 0 and packet.dts is None):
                self.is_at_end = True
                return
            pts, dts = packet.pts, packet.dts
            if pts is None or (not self.packets and not packet.is_keyframe):
                raise _Decline
            self.packets.append(packet)
            if dts is None and self.newest is None:
                continue  # Matroska stores no decoding times: the first ones are unknown
            if dts is None or pts < dts or (self.newest is not None and dts < self.newest):
                raise _Decline
            self.reorder = max(self.reorder, pts - dts)
            self.newest = dts

    def _shown_at(self, target: int) -> int:
        stamps = [packet.pts for packet in self.packets if not packet.is_discard]
        if not stamps:
            raise _Decline
        before = [pts for pts in stamps if pts <= target]
        return max(before) if before else min(stamps)

    def _decode_wanted(self) -> None:
        """Decode, of the packets since the last seek, the groups that hold a wanted frame, each up to its last one."""
        groups: list[list[Any]] = []
        for packet in self.packets:
            if packet.is_keyframe:
                groups.append([])
            groups[-1].append(packet)
        place = 0
        while place < len(groups):
            if not any(packet.pts in self.wanted for packet in groups[place]):
                leads = place + 1 < len(groups) and self._wants_leading(groups[place + 1])
                if not leads:
                    place += 1
                    continue
            run = list(groups[place])
            # a frame shown before its key frame refers to the group before: both are decoded in one go
            while place + 1 < len(groups) and self._wants_leading(groups[place + 1]):
                place += 1
                run += groups[place]
            place += 1
            self._decode(run)
        if not self.wanted <= self.pictures.keys():
            raise _Decline
        self.wanted = set()

    def _wants_leading(self, group: list[Any]) -> bool:
        return any(packet.pts < group[0].pts and packet.pts in self.wanted for packet in group)

    def _decode(self, run: list[Any]) -> None:
        end = max(place for place, packet in enumerate(run) if packet.pts in self.wanted) + 1
        for packet in run[:end]:
            if self.can_skip:
                self.codec.skip_frame = "DEFAULT" if packet.pts in self.wanted else "NONREF"
            self._keep(self.codec.decode(packet))
        self._keep(self.codec.decode(None))
        self.codec.flush_buffers()

    def _keep(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame.pts in self.wanted and frame.pts not in self.pictures:
                if frame.is_corrupt:
                    raise _Decline
                self.pictures[frame.pts] = _picture(frame, self.stream, self.image_size, self.crop)
                self.size = self.size or _shown_size(frame, self.stream)


# ---------------------------------------------------------------------------------------------------------------
# From a decoded frame to a picture


def _scaler() -> VideoReformatter:
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


def _shown_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Width and height as shown: square pixels, upright."""
    width, height = _square_pixels(frame.width, stream), frame.height
    turn = _orientation(frame)
    return (height, width) if turn is not None and turn[0, 0] == 0 else (width, height)


def _square_pixels(width: int, stream: Any) -> int:
    aspect = stream.sample_aspect_ratio
    return max(1, round(width * aspect)) if aspect and aspect > 0 and aspect != 1 else width


def _scaled_size(width: int, height: int, image_size: int, crop: Crop) -> tuple[int, int]:
    """Width and height to which a picture shown as `width` x `height` is scaled before it is cropped."""
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise _Unreadable(f"pictures of {width} x {height} are too narrow to crop")
    if crop == "squash":
        return image_size, image_size
    ratio = image_size / min(width, height)
    return max(image_size, round(width * ratio)), max(image_size, round(height * ratio))


def _picture(frame: Any, stream: Any, image_size: int, crop: Crop) -> np.ndarray:
    """RGB uint8 [H, W, 3], scaled by the decoder's own scaler (bicubic), upright, cropped."""
    new_width, new_height = _scaled_size(*_shown_size(frame, stream), image_size, crop)
    turn = _orientation(frame)
    is_on_its_side = turn is not None and turn[0, 0] == 0
    scaled = _scaler().reformat(
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


def _tensor_of(frame: Any, stream: Any, image_size: int, crop: Crop) -> Tensor:
    if frame.is_corrupt:
        raise _Unreadable(f"the picture at {float(frame.pts * stream.time_base):.2f} s is damaged")
    return torch.from_numpy(_picture(frame, stream, image_size, crop)).permute(2, 0, 1)


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
