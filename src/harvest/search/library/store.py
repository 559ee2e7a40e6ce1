"""What a library stores, and what it needs of a store: files, their moments and the moments' vectors.

`local_store.py` keeps them in SQLite in the library's folder, `postgres.py` in a PostgreSQL database.

Shapes: n moments, Q queries, E shared width. Vectors have unit length.
"""

from __future__ import annotations

import fnmatch
import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from harvest.errors import HarvestError
from harvest.search.results import Where

Floats = NDArray[np.float32]

OVERLAP = 0.3  # of the shorter of two moments, from which they show the same


@dataclass(frozen=True)
class Entry:
    """A file that the indexer has seen: indexed, or in quarantine with the reason."""

    id: str
    root: str
    path: str  # relative to the root, with forward slashes
    size_bytes: int
    modified_ns: int
    digest: str
    duration_s: float = 0.0
    num_moments: int = 0
    offset_s: float = 0.0  # how much later its picture starts than its sound, and so than a player's clock
    damage: str | None = None
    reason: str | None = None  # why it is in quarantine; None where it is not


class Spans(NamedTuple):
    """The moments of one video."""

    start_s: NDArray[np.float64]  # [n]
    end_s: NDArray[np.float64]  # [n]
    vectors: Floats  # [n, E]


class Unavailable(HarvestError):
    """The store cannot be read or written now: locked, full or damaged."""


class Near(NamedTuple):
    """A moment found by its vector."""

    video: str
    number: int
    start_s: float
    end_s: float
    score: float  # cosine with the query
    vector: Floats  # [E]


def apart(
    near: Iterable[Near], k: int, *, contents: Mapping[str, str] | None = None, per_video: int | None = None
) -> list[Near]:
    """The first `k` that do not overlap with one before them, which would show the same, `per_video` of a video at
    most. Videos of equal `contents`, by id, count as one."""
    kept: list[Near] = []
    of: dict[str, list[Near]] = {}
    for found in near:
        others = of.setdefault((contents or {}).get(found.video, found.video), [])
        if len(kept) == k:
            break
        if (per_video is None or len(others) < per_video) and not any(
            _overlaps(found, one) for one in others
        ):
            kept.append(found)
            others.append(found)
    return kept


def _overlaps(one: Near, other: Near) -> bool:
    common = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    return common > OVERLAP * min(one.end_s - one.start_s, other.end_s - other.start_s)


class Store(Protocol):
    """What a library needs of a vector store. Methods may be called from several threads."""

    def entries(self, videos: Collection[str] | None = None) -> dict[str, Entry]:
        """Files by id: all, or those of some ids that are there."""

    def entry(self, video: str) -> Entry | None:
        """One file."""

    def copies(self, digests: Collection[str]) -> dict[str, list[str]]:
        """The paths of indexed files by their content, of some contents."""

    def put(self, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
        """Replace videos (None: those without moments) and remove others, all or nothing."""

    def update(self, entries: Sequence[Entry]) -> None:
        """Note new times and sizes of files whose content is the same."""

    def begin(self) -> None:
        """Forget every file, and make what a new library needs; HarvestError where another library's would be lost."""

    def spans(self, video: str) -> Spans:
        """The moments of a video, in the order of their numbers."""

    def nearest(self, query: Floats, k: int, where: Where | None = None) -> list[Near]:
        """The `k` moments with the largest cosine to `query` `[E]`, of the videos that meet a filter or of all."""

    def best_scores(self, queries: Floats) -> Floats:
        """The largest cosine of each of `[Q, E]` with any moment; -1 where there is none."""

    def num_moments(self) -> int: ...

    def is_exact(self) -> bool: ...

    @property
    def is_damaged(self) -> bool:
        """Whether what speeds searching up is damaged, so that searches are exact and slow until it is made anew."""

    def optimise(self) -> None:
        """After writing: make or extend what speeds searching up, if it is time to."""

    def close(self) -> None: ...


def video_id(root: str, path: str) -> str:
    """The id of a file: a digest of where it is."""
    return hashlib.blake2b(f"{root}\0{path}".encode(errors="surrogateescape"), digest_size=8).hexdigest()


def matches(entry: Entry, where: Where) -> bool:
    """Whether a file meets all conditions of a filter."""
    if entry.reason is not None or (where.videos and entry.id not in where.videos):
        return False
    if where.path is not None:
        path, wanted = folded(entry.path), folded(where.path)
        if wanted not in path and not fnmatch.fnmatchcase(path, wanted):  # names have brackets too
            return False
    if where.after is not None and entry.modified_ns < time_ns(where.after):
        return False
    if where.before is not None and entry.modified_ns >= time_ns(where.before):
        return False
    if where.min_duration_s is not None and entry.duration_s < where.min_duration_s:
        return False
    return where.max_duration_s is None or entry.duration_s <= where.max_duration_s


def folded(text: str) -> str:
    """Text for comparing: neither case nor how accents are written counts."""
    return unicodedata.normalize("NFC", text).casefold()


def time_ns(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise HarvestError(f"expected a date such as 2026-11-21, got {text!r}") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int((when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e9)
