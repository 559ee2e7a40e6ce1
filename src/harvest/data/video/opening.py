"""A container opened safely, its video stream, its length and its clock."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from harvest.data.video.source import PackedVideo, Source, Unreadable, VideoError, named

ROUNDING_S = 1e-6  # a time computed from a frame's timestamp still finds that frame
SEEK_S = 5.0  # a stretch that starts later is sought
MAX_PIXELS = 2**26  # of a frame: more would take gigabytes before it is scaled
MAX_LENGTH_S = 7 * 24 * 3600.0  # that a file may claim
STILL_S = 60.0  # from which on a frame counts as held
MAX_HELD_S = 4 * 3600.0  # for which frames may be held in one file
RESTART_S = 0.1  # by which a clock that starts again steps back
JUMP_S = 10.0  # by which it jumps ahead

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_MATROSKA = "matroska,webm"
_RAW = {"h264", "hevc", "vvc", "obu", "m4v", "mpegvideo", "h263"}  # frames without times
# Formats of one file. What names other files (playlists, lists of files, patterns, image sequences, devices) is not
# opened, whatever a file is called or holds.
FORMATS = ",".join(
    [
        *(
            _MP4,
            _MATROSKA,
            "mpegts",
            "mpeg",
            "avi",
            "flv",
            "asf",
            "ogg",
            "gif",
            "rm",
            "ivf",
            "dv",
            "mxf",
            "nut",
        ),
        *("yuv4mpegpipe", "wtv", "gxf", "av1", *sorted(_RAW)),
    ]
)
SEEKABLE = {_MP4, _MATROSKA}
# Where torchcodec is asked: formats that give every frame a time (AVI and MPEG program streams do not, and the two
# libraries guess apart) and whose clock runs on.
SELF_CONTAINED = {_MP4, _MATROSKA}
# Recordings may be joined by writing one behind the other; the clock then starts again, as players expect it to.
_JOINABLE = {"mpegts", "mpeg"}


@contextmanager
def opened(path: Source) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream with one decoding thread. Whatever the decoder raises is a VideoError.

    The file is opened first and handed on by its descriptor, so that its name decides nothing.
    """
    container = None
    descriptor = -1
    with named(path):
        try:
            options = {"format_whitelist": FORMATS}
            file: str | io.BytesIO
            if isinstance(path, PackedVideo):
                size, file = len(path.files[0]), io.BytesIO(path.files[0])
                options["protocol_whitelist"] = "data"
            else:
                descriptor, size = open_file(path)
                file = "fd:"
                options |= {"fd": str(descriptor), "protocol_whitelist": "fd"}
            if size == 0:
                raise VideoError(path, "the file is empty (0 bytes)")
            try:
                container = av.open(file, options=options, metadata_errors="ignore")
            except av.error.ArgumentError as error:  # what FFmpeg says of a format that is not listed
                raise VideoError(
                    path,
                    "not in a container format that is opened here (playlists and lists of files never are)",
                ) from error
            stream = _video_stream(path, container)
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {
                "max_pixels": str(MAX_PIXELS)
            }  # also where the size changes later
            yield container, stream
        finally:
            if container is not None:
                container.close()
            if descriptor >= 0:
                os.close(descriptor)


def open_file(path: os.PathLike[str]) -> tuple[int, int]:
    """Descriptor and size of a regular file; a pipe, a device or a folder is never waited for. Raises Unreadable."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise Unreadable("not a file, but a folder, a pipe or a device")
    return descriptor, found.st_size


def _video_stream(path: Source, container: Any) -> Any:
    """The track that a player shows: moving pictures before a cover, the default, the larger, the first."""
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = sorted({s.type for s in container.streams})
        raise VideoError(path, f"no video stream (it holds: {', '.join(kinds) or 'nothing'})")
    known = [s for s in streams if s.codec_context is not None and s.time_base is not None]
    if not known:
        raise VideoError(path, "the video is in a format this decoder does not know")

    def rank(stream: Any) -> tuple[bool, bool, int]:
        context = stream.codec_context
        is_picture = context.name in ("mjpeg", "png", "bmp", "gif", "tiff", "webp") or stream.frames == 1
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return not is_picture, is_default, context.width * context.height

    stream = max(known, key=rank)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(path, f"pictures of {width} x {height} are too large")
    return stream


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets from here on, and an empty one at the end of the file."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:  # PyAV's, at the first packet of a track that begins within the file
            continue


@dataclass(frozen=True)
class Clock:
    """Seconds from the smallest timestamp of the stream on, and the stream's own count."""

    time_base: Fraction
    zero: int
    step: int  # between frames that have no timestamps
    restarts: bool = False  # recordings were joined: where the clock starts again or jumps, it is counted on
    counted: bool = False  # the frames' times are lost: they are counted by the header's rate

    def ticks(self, times_s: npt.ArrayLike) -> list[int]:
        per_second = float(1 / self.time_base)
        return [
            math.floor((t + ROUNDING_S) * per_second) + self.zero
            for t in np.asarray(times_s, np.float64).tolist()
        ]

    def seconds(self, ticks: int) -> float:
        return float((ticks - self.zero) * self.time_base)

    @property
    def rate(self) -> Fraction | None:
        """Of frames that are counted: so many a second."""
        return 1 / (self.step * self.time_base) if self.counted else None

    def is_broken(self, before: int, after: int) -> bool:
        """Whether from one timestamp to the next the clock starts again, or jumps."""
        return not -RESTART_S < (after - before) * self.time_base < JUMP_S


@dataclass(frozen=True)
class Timeline:
    """What is known of a stream's times before a frame is decoded."""

    clock: Clock
    duration_s: float
    is_of_stream: bool  # the duration is the video's own, not the container's, in which sound may be longer
    packets: (
        Iterator[Any] | None
    )  # of the stream, from the first on; None where all were read to find the times
    can_seek: bool = True  # its frames have times of their own, on one clock

    def falls_short(self, ended_s: float, wanted_s: float = math.inf) -> bool:
        """Whether frames that end at `ended_s` end well before the claimed end, or before `wanted_s`."""
        return min(wanted_s, self.duration_s) - ended_s > max(0.5, 0.05 * self.duration_s)

    def end_s(self, path: Source, ended_s: float) -> float:
        """Until when the last frame, which ends at `ended_s`, is shown. VideoError where frames are missing.

        Matroska does not say how long a frame lasts: in a file that is whole the last one lasts to the claimed end.
        """
        if not self.is_of_stream or not self.falls_short(ended_s):
            return ended_s
        if self.duration_s - ended_s < MAX_HELD_S and _is_whole_matroska(path):
            return self.duration_s
        raise VideoError(
            path, f"cut short: it claims {self.duration_s:.2f} s, its frames end at {ended_s:.2f} s"
        )


def timeline_of(path: Source, container: Any, stream: Any) -> Timeline:
    """Read the times of the first packets, or of all where the container does not say how long the video is."""
    name = container.format.name
    packets = packets_of(container, stream)
    rate = rate_of(container, stream)
    step = max(1, round(1 / (rate * stream.time_base))) if rate else 0
    claim = None if name in _JOINABLE or name in _RAW else _claimed_end_s(container, stream)
    head, smallest = _first_packets(packets)
    packets = itertools.chain(head, packets)
    if claim is None or _at_one_time(head):
        timeline = _measured(path, stream, packets, step, name)
    else:
        zero = (stream.start_time or 0) if smallest is None or name == "avi" else smallest
        length_s = max(0.0, claim[0] - float(zero * stream.time_base))
        clock = Clock(stream.time_base, zero, step or 1)
        timeline = Timeline(clock, length_s, claim[1], packets)
    if timeline.duration_s > MAX_LENGTH_S:
        hours = f"{timeline.duration_s / 3600:,.0f} hours, more than the {MAX_LENGTH_S / 3600:.0f}"
        raise VideoError(path, f"it claims to last {hours} that are read")
    return timeline


def rate_of(container: Any, stream: Any) -> Fraction | None:
    """Frames a second: of an elementary stream what its header says, where that can be."""
    said = _said_rate(stream) if container.format.name in _RAW else None
    return said or stream.average_rate


def _said_rate(stream: Any) -> Fraction | None:
    said: Fraction | None = stream.codec_context.framerate
    return said if said and 1 <= said <= 240 else None


def _claimed_end_s(container: Any, stream: Any) -> tuple[float, bool] | None:
    """Where the video ends on the file's own clock, and whether that is said of the video and not of all tracks."""
    if stream.duration is not None and stream.duration > 0:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base), True
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:  # Matroska's of a track
        hours, minutes, seconds = tag.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds), True
    if container.duration is not None and container.duration > 0:
        return ((container.start_time or 0) + container.duration) / 1e6, False
    return None


def _first_packets(packets: Iterator[Any]) -> tuple[list[Any], int | None]:
    """Three packets or more, until none that follows can have a smaller timestamp, and the smallest."""
    head: list[Any] = []
    smallest: int | None = None
    for packet in itertools.islice(packets, 64):
        head.append(packet)
        if packet.pts is None:
            break
        if not packet.is_discard:
            smallest = packet.pts if smallest is None else min(smallest, packet.pts)
            if packet.dts is not None and packet.dts >= smallest and len(head) >= 3:
                break
    return head, smallest


def _at_one_time(packets: list[Any]) -> bool:
    """Whether the first packets are decoded at one time, which no file says that has times of its own."""
    return len(packets) >= 3 and len({packet.dts for packet in packets[:3]}) == 1


def _measured(path: Source, stream: Any, packets: Iterator[Any], step: int, name: str) -> Timeline:
    """By the times of all packets; where there are none, or most are no time of their own, by their number.

    A step of 0 is not known.
    """
    clock = Clock(stream.time_base, 0, step or 1)
    zero = end = before = None
    shift = number = 0
    restarts = False
    times = set()
    for packet in packets:
        if not packet.size:
            continue
        number += 1
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            continue
        order = stamp if packet.dts is None else packet.dts
        if end is None:
            zero = end = stamp
        elif name in _JOINABLE and before is not None and clock.is_broken(before, order):
            restarts, shift = True, end - stamp
        elif before is not None and not step:
            step = max(0, order - before)
        before = order
        zero = min(zero, stamp + shift)
        times.add(stamp + shift)
        end = max(end, stamp + shift + (packet.duration or step))
    if not number:
        raise VideoError(path, "the video has no frames")
    if zero is None or end is None:
        return Timeline(clock, float(number * clock.step * stream.time_base), False, None, can_seek=False)
    if number > 2 * max(1, len(times)):
        rate = _said_rate(stream)
        if rate is None:
            raise VideoError(
                path,
                f"its {number} frames have {len(times)} different times and its header names no rate: write it anew"
                " with `ffmpeg -r RATE -i IN OUT`",
            )
        clock = Clock(stream.time_base, zero, max(1, round(1 / (rate * stream.time_base))), counted=True)
        return Timeline(clock, float(number * clock.step * stream.time_base), False, None, can_seek=False)
    clock = Clock(stream.time_base, zero, step or 1, restarts)
    can_seek = name in _JOINABLE and not restarts
    return Timeline(clock, clock.seconds(end), False, None, can_seek)


def _is_whole_matroska(path: Source) -> bool:
    """Whether a Matroska or WebM file is as long as its segment says. RFC 8794, EBML."""
    if isinstance(path, PackedVideo):
        start, size = path.files[0][:4096], len(path.files[0])
    else:
        with open(path, "rb") as file:
            start, size = file.read(4096), path.stat().st_size
    place = 0
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # the header, the segment
        if not start.startswith(name, place) or len(start) < place + 12:
            return False
        place += len(name)
        length = 9 - start[place].bit_length()  # of the number itself; its first bit that is set says it
        if length > 8:
            return False
        value = int.from_bytes(start[place : place + length]) - (1 << (7 * length))
        place += length + value
    return value != (1 << (7 * length)) - 1 and place <= size  # all ones: unknown
