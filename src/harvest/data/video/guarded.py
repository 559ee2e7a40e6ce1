"""Reading in a process of its own, for whoever reads strangers' files one after another: an indexer, a service."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harvest.data.guard import Guard, Lost
from harvest.data.video.reading import probe, read_frames, stream_frames
from harvest.data.video.source import VideoError, VideoInfo
from harvest.interfaces import Clip

MAX_BYTES = 2**31  # a decoder's memory for pictures of 8K


class GuardedReader:
    """`probe`, `read_frames` and `stream_frames` of data.video, computed in a child process.

    A file that crashes the decoder, keeps it busy for `limit_s` (a picture) or `file_s` (all of the waiting for a file),
    or wants more than 2 GiB, is a VideoError with that reason, and the next file is read by a new child. Arguments,
    results and errors are those of data.video. One call at a time; `close()` ends the child, as does this process.
    Where processes cannot be forked the files are read here.

        with GuardedReader() as reader:
            for time_s, picture in reader.stream_frames(path, every_s=0.25, image_size=224): ...
    """

    def __init__(self, *, limit_s: float = 30.0, file_s: float = 4 * 3600.0) -> None:
        self.limit_s, self.file_s = limit_s, file_s
        self._guard = Guard(_call, limit_s=limit_s, max_bytes=MAX_BYTES) if hasattr(os, "fork") else None

    def __enter__(self) -> GuardedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._guard is not None:
            self._guard.close()

    def probe(self, path: str | Path) -> VideoInfo:
        info: VideoInfo = self._one(probe, path)
        return info

    def read_frames(self, path: str | Path, times_s: Tensor, **how: Any) -> Clip:
        """Keywords as of `data.video.read_frames`."""
        if self._guard is None:
            return read_frames(path, times_s, **how)
        frames, found_s, shown_as = self._one(_frames, path, times_s.numpy(), how)
        return Clip(torch.from_numpy(frames), torch.from_numpy(found_s), shown_as)

    def stream_frames(self, path: str | Path, **how: Any) -> Iterator[tuple[float, Tensor]]:
        """Keywords as of `data.video.stream_frames`; a picture that is shown on is the same tensor again."""
        if self._guard is None:
            yield from stream_frames(path, **how)
            return
        picture: Tensor | None = None
        try:
            for time_s, pixels in self._guard.stream(_stream, (path, how), total_s=self.file_s):
                if pixels is not None:
                    picture = torch.from_numpy(pixels)
                assert picture is not None  # the first is sent
                yield time_s, picture
        except Lost as error:
            raise VideoError(path, str(error)) from None

    def _one(self, function: Callable[..., Any], path: str | Path, *args: Any) -> Any:
        if self._guard is None:
            return function(path, *args)
        try:
            return self._guard(function, (path, *args))
        except Lost as error:
            raise VideoError(path, str(error)) from None


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(*args)


def _frames(path: str | Path, times_s: np.ndarray, how: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, Any]:
    clip = read_frames(path, torch.from_numpy(times_s), **how)
    return clip.frames.numpy(), clip.times_s.numpy(), clip.shown_as


def _stream(path: str | Path, how: dict[str, Any]) -> Generator[tuple[float, np.ndarray | None]]:
    before: Tensor | None = None
    for time_s, picture in stream_frames(path, **how):
        yield time_s, None if picture is before else picture.numpy()
        before = picture
