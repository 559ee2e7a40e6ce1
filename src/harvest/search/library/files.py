"""Which files of a folder are videos, and which of them are the same as before."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harvest.interfaces import HarvestError

VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ps",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
_BLOCK = 1 << 20


class File(NamedTuple):
    """A file with a video's suffix."""

    path: str  # relative to the root, with forward slashes
    size_bytes: int
    modified_ns: int
    reason: str | None = None  # why it will not be opened


def video_files(root: Path) -> list[File]:
    """All files below `root` whose suffix is a video's, by path. Hidden files and folders are left out.

    Links to folders are not followed; a link to a file outside the folder is named with that reason.
    HarvestError where the folder is missing or holds no such file, so that an unmounted disk empties no library.
    """
    if not root.is_dir():
        raise HarvestError(f"no such folder: {root}")
    found = sorted(_walk(root))
    if not found:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        raise HarvestError(f"{root} holds no videos (files ending in {known}); nothing was changed")
    return found


def _walk(root: Path) -> Iterator[File]:
    real_root = root.resolve()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in VIDEO_SUFFIXES:
                continue
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            try:
                relative.encode()
            except UnicodeEncodeError:
                shown = relative.encode(errors="surrogateescape").decode(errors="backslashreplace")
                yield File(shown, 0, 0, "its name is not UTF-8: rename it")
                continue
            try:
                about = path.stat()
                inside = path.resolve().is_relative_to(real_root)
            except OSError as error:
                yield File(relative, 0, 0, error.strerror or str(error))
                continue
            if not inside:
                yield File(relative, 0, 0, "a link to a file outside the folder")
            elif stat.S_ISREG(about.st_mode):
                yield File(relative, about.st_size, about.st_mtime_ns)


def is_gone(path: Path) -> bool:
    """Whether there is no such file; not so where that cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def digest(path: Path) -> str:
    """A digest of a file's content: 128 bits of BLAKE2b."""
    made = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            made.update(block)
    return made.hexdigest()
