"""Stretches of files, on disk or in a bucket behind fsspec: read by offset and size, and again where a network fails."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import fsspec

from harvest.data.video import VideoError
from harvest.errors import HarvestError

_TRIES = 5
_FIRST_PAUSE_S = 0.5  # then twice as long each time
_OPEN_FILES = 64

T = TypeVar("T")


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system for a path or address, and the path within it."""
    try:
        return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise HarvestError(
            f"{path}: {error}. Addresses need their library: pip install s3fs for s3://, gcsfs for gs://"
        ) from error


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def tried(function: Callable[[], T], what: str) -> T:
    """Call, and call again after a pause where a network or a disk fails; what is simply not there is told at once."""
    for number in range(_TRIES):
        try:
            return function()
        except FileNotFoundError as error:
            raise HarvestError(f"{what} does not exist") from error
        except PermissionError as error:
            raise HarvestError(f"{what} may not be read: {error}") from error
        except (OSError, TimeoutError, ConnectionError) as error:
            if number + 1 == _TRIES:
                raise HarvestError(f"{what} cannot be read after {_TRIES} tries: {error}") from error
            time.sleep(_FIRST_PAUSE_S * 2**number)
    raise AssertionError


class Reader:
    """Reads stretches of shards. Local files stay open, a few at a time."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, path: str, offset: int, size: int) -> bytes:
        if is_remote(path):
            return self.read_many([(path, offset, size)])[0]
        return tried(lambda: self._read_here(path, offset, size), path)

    def _read_here(self, path: str, offset: int, size: int) -> bytes:
        if path not in self._files:
            self._files[path] = os.open(path.removeprefix("file://"), os.O_RDONLY)
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(path)
        return os.pread(self._files[path], size, offset)

    def read_many(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Stretches (path, offset, size) of a bucket, asked for at the same time."""
        fs, _ = filesystem(places[0][0])
        paths = [filesystem(path)[1] for path, _, _ in places]
        starts = [offset for _, offset, _ in places]
        ends = [offset + size for _, offset, size in places]
        return tried(lambda: list(fs.cat_ranges(paths, starts, ends, on_error="raise")), places[0][0])


_READER = Reader()


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """A stretch of a file, near or far. Local files stay open, a few at a time."""
    data = _READER.read(path, offset, size)
    if len(data) < size:
        raise VideoError(f"{path}#@{offset}+{size}", f"{size - len(data)} of {size} bytes are missing")
    return data
