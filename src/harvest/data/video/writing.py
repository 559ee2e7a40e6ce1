"""Writing H.264: clips from arrays, stretches of videos encoded anew."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from harvest.data.video.decoding import frames_in_order
from harvest.data.video.frames import Fitting, scaler, shown_size
from harvest.data.video.opening import SEEK_S, SEEKABLE, opened, rate_of, timeline_of
from harvest.data.video.source import PackedVideo, Unreadable, VideoError, VideoInfo, as_source
from harvest.errors import HarvestError
from harvest.files import new_file

_TICK = Fraction(1, 90_000)  # of what is written
# Clips written for training are decoded far more often than they are encoded: no arithmetic coding, no deblocking,
# and runs of three B-frames that nothing refers to, so that a frame costs what leads to it and no more. Against
# x264's own choice 1.6 times the clips a second, a tenth more bytes and 0.2 dB less.
_QUICK_TO_DECODE = {"tune": "fastdecode", "bf": "3", "x264-params": "b-adapt=0:b-pyramid=none:ref=1"}


def write_video(
    path: str | Path,
    frames: npt.ArrayLike,
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
    pixels = np.asarray(frames)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != np.uint8 or pixels.shape[0] == 0:
        raise HarvestError(
            f"write_video: expected uint8 [T, 3, H, W], got {pixels.dtype} {list(pixels.shape)}"
        )
    height, width = pixels.shape[-2:]
    if height % 2 or width % 2:
        raise HarvestError(f"write_video: H.264 needs even sides, got {width} x {height}")
    path = Path(path)
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
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24"
                )
                frame = scaler().reformat(
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
    path = as_source(path)
    buffer = io.BytesIO()
    with opened(path) as (container, stream):
        timeline = timeline_of(path, container, stream)
    clock = timeline.clock
    first = clock.ticks([start_s])[0]
    last = None if end_s is None else clock.ticks([end_s])[0]
    wanted_s = math.inf if end_s is None else end_s
    with opened(path) as (container, stream):
        if start_s > SEEK_S and container.format.name in SEEKABLE and not clock.counted:
            container.seek(first, stream=stream, backward=True)
        fps = float(clock.rate or rate_of(container, stream) or 25)
        writer = _Writer(buffer, fps if max_fps is None else min(fps, max_fps), key_every, crf, preset)
        least = 0 if max_fps is None else math.floor(0.9 / max_fps / stream.time_base)
        before = written = None
        ended_at = 0
        for pts, frame in frames_in_order(container, stream, clock):
            if frame.is_corrupt:
                continue
            if last is not None and pts >= last:
                break
            ended_at = pts + (frame.duration or 0)
            if pts <= first:
                before = frame
                continue
            if before is not None:
                writer.add(before, stream, short_side, 0.0)
                before, written = None, first
            if written is None or pts - written >= least:
                writer.add(frame, stream, short_side, float((pts - first) * stream.time_base))
                written = pts
        ended_s = clock.seconds(ended_at)
        if timeline.falls_short(ended_s, wanted_s):
            ended_s = timeline.end_s(path, ended_s)
        if before is not None and (ended_s > start_s or timeline.duration_s <= start_s):
            writer.add(before, stream, short_side, 0.0)
    if writer.num_frames == 0:
        raise VideoError(path, f"no frame from {start_s:g} s on")
    length_s = max(0.0, min(ended_s, wanted_s) - start_s)
    width, height = writer.close(length_s)
    fps = writer.num_frames / length_s if length_s > 0 else fps
    return buffer.getvalue(), VideoInfo(length_s, writer.num_frames, fps, width, height, "h264")


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
        self._newest: Any = None
        self._first_dts = 0

    def add(self, frame: Any, stream: Any, short_side: int, time_s: float) -> None:
        size = min(short_side, *shown_size(frame, stream))
        picture = Fitting(size, fit=None).picture_of(frame, stream).transpose(1, 2, 0)
        height, width = (max(2, side // 2 * 2) for side in picture.shape[:2])
        if min(picture.shape[:2]) < 2:
            picture = np.resize(picture, (height, width, 3))
        if self.num_frames == 0:
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        elif (width, height) != (self.stream.width, self.stream.height):
            raise Unreadable("the size of the pictures changes within the stretch")
        made = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        made = scaler().reformat(made, format="yuv420p", interpolation=Interpolation.BICUBIC, threads=1)
        self._last = max(self._last + 1, round(time_s / _TICK))
        made.pts, made.time_base = self._last, _TICK
        self._mux(self.stream.encode(made))
        self.num_frames += 1

    def _mux(self, packets: list[Any]) -> None:
        """Write all but the newest packet, whose length is known when the next comes or the clip ends."""
        for packet in packets:
            if self._newest is None:
                self._first_dts = packet.dts
            else:
                self.container.mux(self._newest)
            self._newest = packet

    def close(self, length_s: float) -> tuple[int, int]:
        """Hold the last frame until `length_s`. Width and height."""
        self._mux(self.stream.encode(None))
        assert self._newest is not None
        rest = round(length_s / _TICK) + self._first_dts - self._newest.dts
        self._newest.duration = max(rest, self._newest.duration)
        self.container.mux(self._newest)
        self.container.close()
        return self.stream.width, self.stream.height
