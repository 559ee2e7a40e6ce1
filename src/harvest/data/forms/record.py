"""What a published training set is, and how one row of its files becomes clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harvest.data.cells import is_blank, texts_of, time_of
from harvest.data.tables import TableRow
from harvest.interfaces import HarvestError


def column_name(name: str) -> str:
    """A column's name as forms write it: in lower case, with underscores for spaces."""
    return name.strip().lower().replace(" ", "_")


class Record:
    """One row of a set's file, its columns by `column_name`."""

    def __init__(self, row: TableRow, path: Path) -> None:
        self.place, self.number, self.path = row.place, row.number, path
        self.cells: Mapping[str, Any] = {column_name(str(name)): cell for name, cell in row.cells.items()}

    def __getitem__(self, name: str) -> Any:
        """A cell that must say something."""
        value = self.get(name)
        if value is None:
            raise HarvestError(f"{name} is blank or missing")
        return value

    def get(self, name: str) -> Any:
        value = self.cells.get(name)
        return None if is_blank(value) else value

    def texts(self, *names: str) -> tuple[str, ...]:
        """The texts of the first of these columns that says something."""
        return next((texts for name in names if (texts := texts_of(self.get(name), name))), ())

    def name(self, column: str) -> str:
        """An id or a file name: text or a whole number."""
        value = self[column]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise HarvestError(f"{column} must be a name, got {value!r:.80}")
        return str(value).strip()

    def time(self, column: str) -> float:
        value = time_of(self[column], column)
        assert value is not None
        return value


@dataclass(frozen=True)
class Entry:
    """A clip of a set before it is known which files are there."""

    id: str
    texts: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    """Names of a file that holds the clip alone: its times do not apply to it. Looked for first."""
    names: tuple[str, ...] = ()
    """Names of a file that holds the whole video."""
    start_s: float = 0.0
    end_s: float | None = None
    address: str | None = None
    """Where the video can be fetched, or bytes in the set's own file: taken where no file is there."""
    label: int | None = None


def each(make: Callable[..., Entry], *columns: Sequence[Any]) -> Iterator[Entry | HarvestError]:
    """`make(number, cell, …)` for the cells of parallel lists, numbered from 0; a wrong one costs itself alone.

    Raises HarvestError for lists of different lengths: which of them belong together is not known then.
    """
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise HarvestError(f"lists of different lengths: {', '.join(map(str, lengths))}")
    for number, cells in enumerate(zip(*columns, strict=True)):
        try:
            yield make(number, *cells)
        except HarvestError as error:
            yield HarvestError(f"clip {number + 1}: {error}")


@dataclass(frozen=True)
class Form:
    """A training set as it is published. Sizes and terms change: look again before depending on them."""

    name: str
    title: str
    columns: tuple[str, ...]
    """Columns, or keys, by which it is recognised, as `column_name` writes them."""
    entries: Callable[[Record], Iterable[Entry | HarvestError]] | None = None
    """The clips of a row; None where the general rules for columns read it."""
    size: str = ""
    terms: str = ""
    hosted: Literal["videos", "ids", "addresses", ""] = ""
    """What the publisher hands out."""
    overlaps: str = ""
    """Benchmarks whose test videos are known or likely to be in it."""
    note: str = ""
    is_it: Callable[[Record], bool] = lambda record: True
    """What else must hold of the first row."""
    automatic: bool = True
    """False: read only where it is named, since another form has the same columns."""
    refusal: str = ""
    """Why this is not a manifest, and what is."""

    def fits(self, record: Record) -> bool:
        return self.automatic and set(self.columns) <= record.cells.keys() and self.is_it(record)

    def description(self, *, at_length: bool = False) -> str:
        """What is known of the set, on one line or several."""
        hosted = {"videos": "videos hosted", "ids": "ids only", "addresses": "addresses"}.get(self.hosted, "")
        parts = [part for part in (self.size, self.terms, hosted) if part]
        line = f"{self.name:<22} {self.title}: {'; '.join(parts)}"
        if not at_length:
            return line
        more = [f"columns: {', '.join(self.columns)}", self.note]
        more.append(f"overlaps: {self.overlaps}" if self.overlaps else "")
        return "\n  ".join([line, *filter(None, more)])
