"""Where the videos of a set are, by their names: a folder is listed once, with its folders up to three levels down.

A folder named like a video is that video as pictures, and is not listed itself. Members of tar files in the folder are
files like others. Names are compared in Unicode's composed form, whichever form the disk has.
"""

from __future__ import annotations

import os
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from harvest.interfaces import HarvestError

SUFFIXES = (
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".3g2", ".mts", ".m2ts", ".gif"),
)
"""Of two files of one name the one whose suffix comes first is taken."""
_DEPTH = 3


class VideoFolder:
    """A folder of videos, listed once for the names that are looked for in it."""

    def __init__(self, folder: str | Path, names: Iterable[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise HarvestError(f"the folder of videos {self.folder} does not exist")
        wanted = {_stem(part) for name in names for part in (name, _last(name))}
        try:
            found = sorted(_listed(self.folder, wanted))
        except OSError as error:
            raise HarvestError(f"the folder of videos {self.folder} cannot be listed: {error}") from error
        self._paths: dict[str, str] = {}  # a name without suffix, with and without its folder -> path to open
        for _, _, path, name in found:
            self._paths.setdefault(_stem(name), path)
        for _, _, path, name in found:
            self._paths.setdefault(_stem(_last(name)), path)

    def find(self, names: Iterable[str]) -> str | None:
        """The path of the first of these names that is there: with its folders as named, else wherever it lies."""
        for name in names:
            for part in (_stem(name), _stem(_last(name))):
                if part in self._paths:
                    return str(self.folder / self._paths[part])
        return None


def expected_path(name: str, folder: str | Path | None) -> str:
    """Where a video would be that is not there."""
    written = name if name.lower().endswith(SUFFIXES) else name.rstrip(".") + ".mp4"
    return written if folder is None else str(Path(folder) / written)


def _listed(folder: Path, wanted: set[str]) -> Iterator[tuple[int, int, str, str]]:
    """(depth, rank of the suffix, path in the folder, name) of every video and of every folder that is one."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        depth = inside.count("/") + 1 if inside else 0
        here = folder / inside if inside else folder
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:
            for entry in entries:
                path = f"{inside}/{entry.name}" if inside else entry.name
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in SUFFIXES:
                    yield depth, SUFFIXES.index(suffix), path, path
                elif suffix == ".tar" and entry.is_file():
                    for offset, size, name in _members(folder / path):
                        if _stem(_last(name)) in wanted:
                            yield depth, len(SUFFIXES), f"{path}#@{offset}+{size}", name
                elif _stem(path) in wanted or _stem(entry.name) in wanted:
                    yield depth, len(SUFFIXES), path, path  # a folder of pictures, a file without suffix
                elif depth < _DEPTH and entry.is_dir():
                    waiting.append(path)


def _members(path: Path) -> Iterator[tuple[int, int, str]]:
    """(offset, size, name) of the files in a tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    yield member.offset_data, member.size, member.name
                tar.members = []  # type: ignore[attr-defined]  # or it keeps all headers
    except tarfile.TarError as error:
        raise HarvestError(f"the tar {path} cannot be read: {error}") from error


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    """A name without the suffix of a video; DiDeMo has names that end in a dot."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return (stem if suffix.lower() in SUFFIXES else stem + suffix).rstrip(".")
