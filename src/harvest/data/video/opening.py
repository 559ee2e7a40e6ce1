"""A container opened safely, its video stream, its length and its clock."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from torch import Tensor

from harvest.data.video.source import PackedVideo, Source, VideoError, named

MAX_PIXELS = 2**26  # a picture of more would take gigabytes before it is scaled
SEEK_S = 5.0  # a stretch that starts later is sought
SEEKABLE = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
ROUNDING_S = 1e-6  # a time computed from a frame's timestamp still finds that frame
# Where torchcodec is asked: formats whose files name no other files (it cannot be told to open nothing else) and
# give every frame a time (AVI and MPEG program streams do not, and the two libraries guess apart).
SELF_CONTAINED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"}

# Names and titles in bytes that are no UTF-8 are no reason to refuse a video; PyAV does so by itself from 19 on.
LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened(path: Source) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream with one decoding thread. Whatever the decoder raises is a VideoError."""
    container = None
    with named(path):
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
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
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


@dataclass(frozen=True)
class Duration:
    seconds: float
    is_of_stream: bool  # the video's own, not the container's, in which sound may be longer
    needs_reopening: bool = False  # every packet was read to find it


def duration_of(path: Source, container: Any, stream: Any) -> Duration:
    if stream.duration is not None and stream.duration > 0:
        return Duration(float(stream.duration * stream.time_base), True)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:  # Matroska's tag of a track: where it ends, counted from zero
        hours, minutes, seconds = tag.groups()
        end_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return Duration(max(0.0, end_s - float((stream.start_time or 0) * stream.time_base)), True)
    if container.duration is not None and container.duration > 0:
        return Duration(container.duration / 1e6, False)
    first = last = None
    for packet in container.demux(stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            first = stamp if first is None else min(first, stamp)
            end = stamp + (packet.duration or 0)
            last = end if last is None else max(last, end)
    if first is None or last is None:
        raise VideoError(path, "the video has no frames")
    return Duration(float((last - first) * stream.time_base), False, needs_reopening=True)


@dataclass(frozen=True)
class Clock:
    """Seconds from the start of the stream, and the stream's own count."""

    time_base: Fraction
    start: int

    def ticks(self, times_s: Tensor) -> list[int]:
        per_second = float(1 / self.time_base)
        return [math.floor((t + ROUNDING_S) * per_second) + self.start for t in times_s.tolist()]

    def seconds(self, ticks: int) -> float:
        return float((ticks - self.start) * self.time_base)
