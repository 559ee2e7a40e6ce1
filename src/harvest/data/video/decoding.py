"""Every frame in presentation order: slow, and by definition right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av

from harvest.data.video.frames import Fitting, shown_size
from harvest.data.video.opening import MAX_HELD_S, STILL_S, Clock, packets_of
from harvest.data.video.source import Source, Unreadable, VideoError
from harvest.plain_types import Pixels


@dataclass
class Shown:
    """The frames found, in the order of the times asked for."""

    pts: list[int]
    pictures: list[Pixels]  # uint8 [3, H, W] each
    ended_at: int | None  # where the last frame ends, if the file ended before the last time
    size: tuple[int, int] | None = None  # width and height as shown


def frames_in_order(container: Any, stream: Any, clock: Clock) -> Iterator[tuple[int, Any]]:
    """(timestamp, frame) in presentation order. A frame whose timestamp steps back is not shown.

    A packet that cannot be decoded ends the file with the decoder's error, unless no frame came before it:
    streams cut out of longer ones begin with frames whose references are missing.

    Raises Unreadable where frames would be shown for hours: a timestamp has gone wrong.
    """
    is_avi = container.format.name == "avi"  # has no presentation times: those of FFmpeg are guesses
    last: int | None = None
    shift = length = 0
    held_s = 0.0
    for packet in packets_of(container, stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if last is not None:
                raise
            continue
        for frame in frames:
            if frame.is_corrupt and last is None:
                continue
            pts = None if clock.counted else frame.dts if is_avi else frame.pts
            if is_avi and last is None and pts is not None:
                shift = clock.zero - pts
            if pts is None:
                pts = clock.zero if last is None else last + clock.step - shift
            elif last is not None and clock.restarts and clock.is_broken(last - shift, pts):
                shift = last + length - pts
            pts += shift
            if last is not None and pts <= last:
                continue
            gap_s = 0.0 if last is None else float((pts - last) * clock.time_base)
            held_s += gap_s if gap_s > STILL_S else 0.0
            if held_s > MAX_HELD_S:
                raise Unreadable(
                    f"up to {clock.seconds(pts):,.0f} s frames are held for {held_s / 3600:,.1f} hours in all, more than"
                    f" the {MAX_HELD_S / 3600:.0f} that are read"
                )
            last, length = pts, frame.duration or clock.step
            yield pts, frame


def first_frame(path: Source, container: Any, stream: Any, clock: Clock) -> Any:
    for _, frame in frames_in_order(container, stream, clock):
        return frame
    raise VideoError(path, "the video has no frames")


def read_in_order(
    container: Any, stream: Any, clock: Clock, targets: list[int], fitting: Fitting
) -> Shown | None:
    """Decode from the start to the last target. None if there is no frame."""
    shown = Shown([], [], None)
    before: tuple[int, Any] | None = None
    picture: Pixels | None = None

    def show(pts: int, frame: Any) -> None:
        nonlocal picture
        if picture is None:
            picture = fitting.picture_of(frame, stream)
            shown.size = shown.size or shown_size(frame, stream)
        shown.pts.append(pts)
        shown.pictures.append(picture)

    for pts, frame in frames_in_order(container, stream, clock):
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
