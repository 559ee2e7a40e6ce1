"""Every frame in presentation order: slow, and by definition right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from harvest.data.video.frames import Crop, picture_of, shown_size
from harvest.data.video.source import Source, Unreadable, VideoError


@dataclass
class Shown:
    """The frames found, in the order of the times asked for."""

    pts: list[int]
    pictures: list[np.ndarray]  # [H, W, 3] each
    ended_at: int | None  # where the last frame ends, if the file ended before the last time
    size: tuple[int, int] | None = None  # width and height as shown


def frames_in_order(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
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


def first_frame(path: Source, container: Any, stream: Any) -> Any:
    for _, frame in frames_in_order(container, stream):
        return frame
    raise VideoError(path, "the video has no frames")


def read_in_order(
    container: Any, stream: Any, targets: list[int], image_size: int, crop: Crop
) -> Shown | None:
    """Decode from the start to the last target: slow, and by definition right. None if there is no frame."""
    shown = Shown([], [], None)
    before: tuple[int, Any] | None = None
    picture: np.ndarray | None = None

    def show(pts: int, frame: Any) -> None:
        nonlocal picture
        if picture is None:
            if frame.is_corrupt:
                raise Unreadable(f"the picture at {float(pts * stream.time_base):.2f} s is damaged")
            picture = picture_of(frame, stream, image_size, crop)
            shown.size = shown.size or shown_size(frame, stream)
        shown.pts.append(pts)
        shown.pictures.append(picture)

    for pts, frame in frames_in_order(container, stream):
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
