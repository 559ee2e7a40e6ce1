"""Where a benchmark's videos are, and which are not there.

A folder of videos is listed once, with its folders up to three levels down; names are looked up in the listing. A
folder named like a video is that video as pictures, and is not listed itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harvest.data.benchmarks.record import BenchmarkData, Row
from harvest.files import write_file
from harvest.interfaces import HarvestError

SUFFIXES = (
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".3g2", ".mts", ".m2ts", ".gif"),
)
"""Of two files of one name the one whose suffix comes first is taken."""
_DEPTH = 3


class VideoFolder:
    """A folder of videos, listed once for the rows that are looked for in it."""

    def __init__(self, folder: str | Path, rows: Iterable[Row]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise HarvestError(f"the folder of videos {self.folder} does not exist")
        wanted = {_stem(part) for row in rows for name in row.names for part in (name, _last(name))}
        try:
            found = sorted(_listed(self.folder, wanted))
        except OSError as error:
            raise HarvestError(f"the folder of videos {self.folder} cannot be listed: {error}") from error
        self._paths: dict[
            str, str
        ] = {}  # a name without suffix, with and without its folder -> path in the folder
        for _, _, path in found:
            self._paths.setdefault(_stem(path), path)
        for _, _, path in found:
            self._paths.setdefault(_stem(_last(path)), path)

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


def _listed(folder: Path, wanted: set[str]) -> Iterator[tuple[int, int, str]]:
    """(depth, rank of the suffix, path in the folder) of every video and of every folder that is one."""
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
                    yield depth, SUFFIXES.index(suffix), path
                elif (
                    path in wanted or _stem(entry.name) in wanted
                ):  # a folder of pictures, a file without suffix
                    yield depth, len(SUFFIXES), path
                elif depth < _DEPTH and entry.is_dir():
                    waiting.append(path)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    """A name without the suffix of a video; DiDeMo has names that end in a dot."""
    stem, suffix = os.path.splitext(name)
    return (stem if suffix.lower() in SUFFIXES else name).rstrip(".")


@dataclass(frozen=True)
class Missing:
    """What a split lacks before anything is scored: videos that are not there, rows its files do not have."""

    name: str
    split: str
    videos: tuple[str, ...]
    """Expected paths, in the order of the rows."""
    rows: int
    """Rows of those videos."""
    num_videos: int
    num_rows: int
    published_rows: int | None
    """What the split should hold, where that is published."""
    source: str

    @property
    def rows_not_annotated(self) -> int:
        """How many of the published rows the annotation files do not have; negative if they have more."""
        return 0 if self.published_rows is None else self.published_rows - self.num_rows

    def __bool__(self) -> bool:
        return bool(self.videos) or self.rows_not_annotated != 0

    @property
    def share(self) -> float:
        """The share of the whole split that can be scored."""
        whole = max(self.num_rows, self.published_rows or 0)
        return (self.num_rows - self.rows) / whole if whole else 0.0

    def __str__(self) -> str:
        said = [
            f"{self.name} {self.split}: {len(self.videos):,} of {self.num_videos:,} videos are missing, with them"
            f" {self.rows:,} of {self.num_rows:,} rows"
        ]
        if self.rows_not_annotated:
            said.append(
                f"the annotation files hold {self.num_rows:,} rows, published are {self.published_rows:,}"
                f" ({self.source})"
            )
        return "; ".join(said)

    def write(self, path: str | Path) -> None:
        """The expected paths, one a line."""
        try:
            write_file(Path(path), "".join(f"{video}\n" for video in self.videos))
        except OSError as error:
            raise HarvestError(f"the list of missing videos {path} cannot be written: {error}") from error


def missing(data: BenchmarkData) -> Missing:
    """What is missing of a split that was read with a folder of videos."""
    if data.unresolved is None:
        raise HarvestError(f"{data.name} was read without a folder of videos, so none of them was looked for")
    absent = [example.video for example in data.examples if example.video in data.unresolved]
    return Missing(
        name=data.name,
        split=data.split,
        videos=tuple(dict.fromkeys(absent)),
        rows=len(absent),
        num_videos=len({example.video for example in data.examples}),
        num_rows=len(data.examples),
        published_rows=data.published.counts.get("rows"),
        source=data.published.source,
    )
