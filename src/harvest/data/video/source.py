"""What can be asked for: a file, a folder, bytes at hand; and what is said where it cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import av

from harvest.errors import HarvestError

# What the decoder raises on bad files; everything else is a mistake of ours and must be seen.
_DECODER_ERRORS = (av.error.FFmpegError, OSError, EOFError, ValueError, OverflowError, MemoryError)


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


class Unreadable(Exception):
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
    is_picture: bool = False
    delay_s: float = (
        0.0  # from the file's start to the first picture, by which a player's clock is ahead of ours
    )


def as_source(path: str | Path | PackedVideo) -> Source:
    if isinstance(path, str) and "://" in path:
        raise VideoError(
            path, "an address: download the videos first (video2dataset does), then name the files"
        )
    return path if isinstance(path, PackedVideo) else Path(path)


@contextmanager
def named(path: Source) -> Iterator[None]:
    """Whatever the decoder raises, or we of a file, is a VideoError."""
    try:
        yield
    except Unreadable as error:
        raise VideoError(path, str(error)) from error
    except _DECODER_ERRORS as error:
        raise VideoError(path, _reason(error)) from error


def is_folder(path: Source) -> TypeGuard[Path]:
    """VideoError for a name that the system does not take, or a place that may not be looked into."""
    with named(path):
        return isinstance(path, Path) and path.is_dir()


def _reason(error: BaseException) -> str:
    """What the decoder said, without its `[Errno …]` and without the path, which VideoError names itself."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"the decoder says: {text}"
