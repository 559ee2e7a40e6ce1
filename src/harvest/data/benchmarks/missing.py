"""What a split of a benchmark lacks before anything is scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harvest.data.benchmarks.record import BenchmarkData
from harvest.files import write_file
from harvest.interfaces import HarvestError


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
