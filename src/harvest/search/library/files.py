"""Which files of a folder are videos, and which of them are the same as before."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from harvest.errors import HarvestError

VIDEO_SUFFIXES = frozenset(
    [
        ".264",
        ".265",
        ".3g2",
        ".3gp",
        ".3gpp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".gif",
        ".h264",
        ".h265",
        ".hevc",
        ".insv",
        ".m2t",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ps",
        ".qt",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
# Folders that systems and network drives make for themselves; hidden ones, such as .Trash, are left out as well.
_SYSTEM_FOLDERS = frozenset(["@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"])
_BLOCK = 1 << 20
_MOST_NS = 2**63 - 1  # the year 2262: later dates, which a broken clock gives, count as that


class File(NamedTuple):
    """A file with a video's suffix."""

    path: str  # relative to the root, with forward slashes
    size_bytes: int
    modified_ns: int
    reason: str | None = None  # why it will not be opened


@dataclass
class Scan:
    """A folder, a part of it, or one file of it, and what was found there."""

    root: Path
    part: str = ""
    """Relative to the root; empty is all."""
    files: list[File] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """How many files were left out, by suffix or kind."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folders that could not be listed, relative to the root, and why: what was indexed of them is kept."""

    def covers(self, root: str, path: str) -> bool:
        """Whether a file is in what was scanned."""
        try:
            relative = PurePosixPath(root, path).relative_to(self.root.as_posix())
        except ValueError:
            return False
        return not self.part or relative.is_relative_to(self.part)

    def says_of(self, root: str, path: str) -> bool:
        """Whether the scan could have found a file that it covers."""
        relative = PurePosixPath(root, path).relative_to(self.root.as_posix())
        return not any(relative.is_relative_to(folder) for folder in self.unreadable)


def scan(paths: Sequence[Path], roots: Sequence[str] = (), *, trusted: Sequence[str] = ()) -> list[Scan]:
    """Find the videos of folders and single files. What lies in a folder that is given, or that is one of a library's
    `roots` already, belongs to that.

    Hidden files and those of other suffixes are left out, links to folders are not followed. A link to a file outside
    its root and the `trusted` folders is named with that reason. HarvestError where something is missing or a folder
    holds no video, so that an unmounted disk empties no library.
    """
    known = [Path(root) for root in roots]
    resolved = []
    for path in paths:
        if not path.exists():
            raise HarvestError(f"no such folder or file: {path}")
        real = path.resolve()
        above = next((root for root in known if real.is_relative_to(root)), None)
        root = above or (real if real.is_dir() else real.parent)
        part = real.relative_to(root).as_posix()
        resolved.append(Scan(root, "" if part == "." else part))
    scans: list[Scan] = []
    for one in sorted(resolved, key=lambda one: (len(one.root.parts), len(one.part))):
        if not any(other.covers(str(one.root), one.part) for other in scans):
            scans.append(one)
    for one in scans:
        start = one.root / one.part
        one.files = sorted(_look(one, trusted)) if start.is_dir() else [_file(one, start, trusted)]
        if not one.files:
            known_suffixes = " ".join(sorted(VIDEO_SUFFIXES))
            raise HarvestError(
                f"{start} holds no videos (files ending in {known_suffixes}); nothing was changed"
            )
    return scans


def _look(found: Scan, trusted: Sequence[str]) -> Iterator[File]:
    def note(error: OSError) -> None:
        folder = Path(error.filename).relative_to(found.root).as_posix()
        found.unreadable[folder] = error.strerror or str(error)

    for folder, folders, names in os.walk(found.root / found.part, onerror=note):
        found.left_out["links to folders"] += sum(
            os.path.islink(os.path.join(folder, name)) for name in folders
        )
        folders[:] = [n for n in folders if not n.startswith(".") and n.lower() not in _SYSTEM_FOLDERS]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith(".") and suffix in VIDEO_SUFFIXES:
                yield _file(found, Path(folder) / name, trusted)
            elif not name.startswith("."):
                found.left_out[suffix or "no suffix"] += 1
    found.left_out = +found.left_out


def _file(found: Scan, path: Path, trusted: Sequence[str]) -> File:
    relative = path.relative_to(found.root).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        shown = relative.encode(errors="surrogateescape").decode(errors="backslashreplace")
        return File(shown, 0, 0, "its name is not UTF-8: rename it")
    try:
        about, real = path.stat(), path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        return File(relative, 0, 0, getattr(error, "strerror", None) or str(error))
    if not any(real.is_relative_to(root) for root in (str(found.root), *trusted)):
        return File(
            relative, 0, 0, "a link to a file outside the folder (--trust names folders it may lead to)"
        )
    if not stat.S_ISREG(about.st_mode):
        return File(relative, 0, 0, "not a file, but a pipe, a socket or a device")
    return File(relative, about.st_size, max(-_MOST_NS, min(about.st_mtime_ns, _MOST_NS)))


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
