"""Where a library keeps its files and the vectors of their moments: SQLite, with an approximate index beside it.

library.db           the truth: every file with its moments and their vectors (fp16), a video at a time or not at all
vectors-N-M.usearch  made from it when the library is large, of M rows up to N; read by memory map, made again when it
                     is gone or damaged

Small libraries are searched exactly. In larger ones usearch (HNSW over 8-bit vectors) proposes candidates, which are
scored again from the stored vectors; rows newer than it are searched exactly. Where too many of the candidates are
gone or left out by a filter it is asked for more, and in the end everything is read: what has been deleted makes a
search slower, never empty.

Shapes: n moments, Q queries, E shared width. Vectors have unit length.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
import threading
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harvest.files import new_file
from harvest.search.library.database import GRAPHS, MAKE_ROOM, Damaged, Database, checksum
from harvest.search.library.store import Entry, Floats, Near, Spans, Unavailable, matches
from harvest.search.results import Where
from harvest.settings import parse

EXACT_MOST = 100_000  # moments that are searched exactly, in memory
_CANDIDATES = 64  # of the approximate index at least
# Nodes of the graph kept in sight: of a million vectors in tight clusters, 64 finds 85 % of the ten nearest, 128
# finds 91 %, 256 finds 98 %, and 400 no more.
_EXPANSION = 256
_TAIL_MOST = 50_000  # moments newer than the approximate index, before they are added to it
_FULL_SHARE = 0.75  # of the usual share of candidates that must be there where the first of them were not
_GONE_SHARE = 0.3  # of its rows that may be gone before it is made again
_BLOCK = 20_000  # rows read at a time


class _Tail(NamedTuple):
    """Moments held in memory: all of a small library, in a large one those newer than the approximate index."""

    row: NDArray[np.int64]  # [n], ascending
    video: NDArray[np.int64]  # [n], a number for each video
    vectors: Floats  # [n, E]


class LocalStore:
    """The store in the library's own folder."""

    def __init__(self, database: Database, *, width: int) -> None:
        self.database = database
        self.width = width
        self._lock = threading.Lock()
        self._asking = (
            threading.Lock()
        )  # usearch's threads have numbers, and two callers would both be the first
        self._generation = -1  # of the database when `_tail` was read
        self._base: Any = None  # usearch's index
        self._base_noted: _Graph | None = None  # its file
        self.is_damaged = (
            False  # whether the approximate index is not what was written, and searches go without it
        )
        self._base_row = 0  # its newest row
        self._last_row = 0  # the newest row read
        self._numbers: dict[str, int] = {}
        self._tail = _Tail(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, width), np.float32))

    # ---- writing

    def put(self, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
        with self.database.transaction() as connection:
            for id in (*gone, *(entry.id for entry, _ in videos)):
                connection.execute("DELETE FROM moments WHERE video = ?", (id,))
                connection.execute("DELETE FROM videos WHERE id = ?", (id,))
            for entry, spans in videos:
                row = dataclasses.astuple(entry)
                marks = ",".join("?" * (len(row) + 1))
                connection.execute(f"INSERT INTO videos VALUES ({marks})", (*row, checksum(*row)))
                if spans is not None:
                    connection.executemany(
                        "INSERT INTO moments (video, number, start_s, end_s, vector, checksum) VALUES (?,?,?,?,?,?)",
                        (
                            (*moment, checksum(*moment))
                            for number, (start, end, vector) in enumerate(zip(*spans, strict=True))
                            for moment in [
                                (entry.id, number, float(start), float(end), vector.astype("<f2").tobytes())
                            ]
                        ),
                    )

    def update(self, entries: Sequence[Entry]) -> None:
        stored = self.entries([entry.id for entry in entries])
        new = [
            dataclasses.replace(stored[e.id], size_bytes=e.size_bytes, modified_ns=e.modified_ns)
            for e in entries
            if e.id in stored
        ]
        with self.database.transaction() as connection:
            connection.executemany(
                "UPDATE videos SET size_bytes = ?, modified_ns = ?, checksum = ? WHERE id = ?",
                [(e.size_bytes, e.modified_ns, checksum(*dataclasses.astuple(e)), e.id) for e in new],
            )

    def begin(self) -> None:
        with self.database.transaction() as connection:
            # what this notes in `removed` stays there: it tells a reader that holds these rows that they are gone
            connection.execute("DELETE FROM moments")
            connection.execute("DELETE FROM videos")
            # the next model may be of another width
            connection.execute("DELETE FROM meta WHERE key = 'vectors'")
        self._delete_graphs()

    def optimise(self) -> None:
        """Make, extend, repair or drop the approximate index, if it is time to."""
        noted = self._noted()
        path = self._path_of(noted, is_thorough=True)
        base_row, size = _rows_of(noted.name) if noted is not None and path is not None else (0, 0)
        [(there, new)] = self.database.rows(
            "SELECT (SELECT count(*) FROM moments), (SELECT count(*) FROM moments WHERE row > ?)", base_row
        )
        is_worn = size > 0 and size - (there - new) >= _GONE_SHARE * size
        if there <= EXACT_MOST and (is_worn or (noted is not None and path is None)):
            self.database.remove("vectors")
            self._delete_graphs()
            return
        if not is_worn and new <= (_TAIL_MOST if base_row else EXACT_MOST):
            return
        try:
            from usearch.index import Index
        except ImportError:  # the extra `search` is not installed: slower, and as right
            return
        graph = None
        if base_row and not is_worn:
            graph = Index.restore(str(path), view=False)
        if graph is None:
            graph = Index(ndim=self.width, metric="ip", dtype="i8", connectivity=16, expansion_add=64)
            base_row = 0
        newest = self._newest_row()
        for row, _, vectors in self._blocks(base_row, newest):
            graph.add(row, vectors, copy=True)
        if noted is not None and path is None:
            self._delete_graphs()  # a damaged one, whatever it is now
        made = self.database.path.parent / f"vectors-{newest}-{len(graph)}.usearch"
        try:
            with new_file(made) as part:
                graph.save(part)
            about = made.stat()
            new_graph = _Graph(made.name, about.st_size, about.st_mtime_ns, _crc_of(made))
        except (RuntimeError, OSError) as error:  # usearch says no more than that it failed
            raise Unavailable(f"{made} cannot be written: {error}. {MAKE_ROOM}") from error
        self.database.set(vectors=json.dumps(new_graph).encode())
        self._delete_graphs(but=made.name)

    def _noted(self) -> _Graph | None:
        """The approximate index that the database names."""
        stored = self.database.get("vectors")
        return (
            None
            if stored is None
            else _Graph(*parse(tuple[str, int, int, int], stored, where=str(self.database.path)))
        )

    def _path_of(self, noted: _Graph | None, *, is_thorough: bool = False) -> Path | None:
        """The approximate index's file, if it is what was written: by its size and time or, where the time differs or
        `is_thorough`, by its checksum."""
        if noted is None:
            return None
        path = self.database.path.parent / noted.name
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode) or about.st_size != noted.size:
                return None
            is_same = about.st_mtime_ns == noted.modified_ns and not is_thorough
            return path if is_same or _crc_of(path) == noted.checksum else None
        except OSError:
            return None

    def _delete_graphs(self, but: str | None = None) -> None:
        for old in self.database.path.parent.glob(GRAPHS):
            if old.name != but:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)

    # ---- reading

    def entries(self, videos: Collection[str] | None = None) -> dict[str, Entry]:
        if videos is None:
            rows = self.database.rows("SELECT * FROM videos")
        else:
            sql = "SELECT * FROM videos WHERE id IN (SELECT value FROM json_each(?))"
            rows = self.database.rows(sql, json.dumps(list(videos)))
        for row in rows:
            if checksum(*row[:-1]) != row[-1]:
                raise Damaged(self.database.path, f"what it says of the file {row[2]} is damaged")
        return {row[0]: Entry(*row[:-1]) for row in rows}

    def copies(self, digests: Collection[str]) -> dict[str, list[str]]:
        rows = self.database.rows(
            "SELECT digest, path FROM videos WHERE num_moments AND digest IN (SELECT value FROM json_each(?)) "
            "ORDER BY path",
            json.dumps(list(digests)),
        )
        found: dict[str, list[str]] = {}
        for digest, path in rows:
            found.setdefault(digest, []).append(path)
        return found

    def entry(self, video: str) -> Entry | None:
        return self.entries([video]).get(video)

    def num_moments(self) -> int:
        [(number,)] = self.database.rows("SELECT coalesce(sum(num_moments), 0) FROM videos")
        return int(number)

    def spans(self, video: str) -> Spans:
        rows = self._checked("FROM moments WHERE video = ? ORDER BY number", video)
        return Spans(
            np.array([row[3] for row in rows]),
            np.array([row[4] for row in rows]),
            self._vectors([row[5] for row in rows]),
        )

    def is_exact(self) -> bool:
        self._refresh()
        return self._base is None

    def nearest(self, query: Floats, k: int, where: Where | None = None) -> list[Near]:
        videos: frozenset[str] | None = None
        if where is not None and where != Where():
            videos = frozenset(entry.id for entry in self.entries().values() if matches(entry, where))
            if not videos:
                return []
        tail, base = self._refresh()
        scores = tail.vectors @ query
        num_tail = len(scores)
        if videos is not None:
            numbers = [self._numbers[id] for id in videos if id in self._numbers]
            is_allowed = np.isin(tail.video, numbers)
            scores[~is_allowed] = -2.0
            num_tail = int(is_allowed.sum())
        best: Sequence[int] = (
            np.argpartition(-scores, min(k, len(scores)) - 1)[:k].tolist() if len(scores) else []
        )
        rows = [int(tail.row[place]) for place in best if scores[place] > -2.0]
        found: list[Near] | None
        if base is None:
            found = self._look_up(query, rows, videos)
        else:
            found = self._propose(query, k, videos, base, rows, num_tail)
        if found is None:
            found = self._look_up(query, self._nearest_rows(query, k, videos), videos)
        return sorted(found, key=lambda near: (-near.score, near.video, near.number))[:k]

    def best_scores(self, queries: Floats) -> Floats:
        tail, base = self._refresh()
        best = np.full(len(queries), -1.0, np.float32)
        for start in range(0, len(tail.row), _BLOCK):
            best = np.maximum(best, _largest(queries, tail.vectors[start : start + _BLOCK]))
        if base is None:
            return best
        unanswered = []
        for place, query in enumerate(queries):
            near = self._propose(query, 1, None, base, [], len(tail.row))
            if near is None:
                unanswered.append(place)
            else:
                best[place] = max([best[place], *(found.score for found in near)])
        if unanswered:  # read once for all of them
            for _, _, vectors in self._blocks(0, self._newest_row()):
                best[unanswered] = np.maximum(best[unanswered], _largest(queries[unanswered], vectors))
        return best

    def close(self) -> None:
        self._base = None

    def _propose(
        self,
        query: Floats,
        k: int,
        videos: frozenset[str] | None,
        base: Any,
        tail: list[int],
        num_tail: int,
    ) -> list[Near] | None:
        """Score rows of the tail with those that the approximate index proposes or, for a narrow filter, with all.

        It gives at least `k` of its own or all that it has. None where too many of its rows near the query are gone or
        not allowed that everything has to be read. The whole tail has `num_tail` allowed rows.
        """
        wanted = max(_CANDIDATES, 4 * k)
        enough = wanted // 4
        there = None  # rows that are stored and allowed, counted only when it matters
        if videos is not None:
            allowed = self.database.rows(
                "SELECT row FROM moments WHERE video IN (SELECT value FROM json_each(?))",
                json.dumps(sorted(videos)),
            )
            there = len(allowed)
            if there <= EXACT_MOST // 4:
                return self._look_up(query, tail + [row for (row,) in allowed], videos)
            wanted = int(wanted * max(1.0, 2 * len(base) / there))
        while True:
            with self._asking:
                proposed = [int(row) for row in base.search(query, min(wanted, len(base))).keys]
            found = self._look_up(query, tail + proposed, videos)
            own = len(found) - len(tail)
            if own >= enough:
                return found
            if there is None:
                there = self.num_moments()
            if own >= there - num_tail:
                return found
            wanted *= 2
            if wanted > min(len(base), EXACT_MOST // 4):
                return None
            # there is a hole around the query, and the graph finds little beyond it until the hole is a small part of
            # what is looked at: with one of 52 clusters deleted, about 25 % of the ten nearest when it looks at as
            # many moments as that had, 60 % at twice as many, 90 % at four times
            enough = max(enough, int(_FULL_SHARE * wanted * (there - num_tail) / len(base)))

    def _nearest_rows(self, query: Floats, k: int, videos: frozenset[str] | None) -> list[int]:
        """The `k` rows nearest to `query`, of all that are stored: exact, and a block at a time in memory."""
        rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for row, names, vectors in self._blocks(0, self._newest_row()):
            if videos is not None:
                is_allowed = np.array([name in videos for name in names])
                row, vectors = row[is_allowed], vectors[is_allowed]
            rows, scores = np.concatenate([rows, row]), np.concatenate([scores, vectors @ query])
            best = np.argsort(-scores, kind="stable")[:k]
            rows, scores = rows[best], scores[best]
        kept: list[int] = rows.tolist()
        return kept

    def _look_up(self, query: Floats, rows: Sequence[int], videos: frozenset[str] | None) -> list[Near]:
        """Score rows by their stored vectors. Rows that are gone are left out."""
        found = self._checked("FROM moments WHERE row IN (SELECT value FROM json_each(?))", json.dumps(rows))
        if videos is not None:
            found = [row for row in found if row[1] in videos]
        vectors = self._vectors([row[5] for row in found])
        scores = np.clip(vectors @ query, -1.0, 1.0)
        return [
            Near(row[1], row[2], row[3], row[4], float(score), vector)
            for row, score, vector in zip(found, scores, vectors, strict=True)
        ]

    def _checked(self, where: str, *values: Any) -> list[Any]:
        """Rows of moments: row, video, number, start_s, end_s, vector. Each is what was written, or Damaged."""
        rows = self.database.rows(
            f"SELECT row, video, number, start_s, end_s, vector, checksum {where}", *values
        )
        for row in rows:
            if checksum(*row[1:6]) != row[6] or len(row[5]) != 2 * self.width:
                raise Damaged(self.database.path, f"moment {row[1]}.{row[2]} is damaged")
        return rows

    def _vectors(self, blobs: Sequence[bytes]) -> Floats:
        flat = np.frombuffer(b"".join(blobs), "<f2").astype(np.float32)
        vectors: Floats = flat.reshape(len(blobs), self.width)
        return vectors

    def _blocks(self, after: int, last: int) -> Iterator[tuple[NDArray[np.int64], list[str], Floats]]:
        while True:
            rows = self._checked(
                "FROM moments WHERE row > ? AND row <= ? ORDER BY row LIMIT ?", after, last, _BLOCK
            )
            if not rows:
                return
            after = rows[-1][0]
            yield (
                np.array([row[0] for row in rows], np.int64),
                [row[1] for row in rows],
                self._vectors([row[5] for row in rows]),
            )

    def _refresh(self) -> tuple[_Tail, Any]:
        """What is in memory, after taking over what has been written since it was read."""
        with self._lock:
            generation = self.database.generation()
            if generation == self._generation:
                return self._tail, self._base
            [(there, wanted)] = self.database.rows(
                "SELECT (SELECT count(*) FROM moments), (SELECT coalesce(sum(num_moments), 0) FROM videos)"
            )
            if there != wanted:
                raise Damaged(self.database.path, f"{there:,} moments are there, and {wanted:,} were written")
            base_row = self._open_base()
            if base_row != self._base_row:
                self._base_row = self._last_row = base_row
                self._tail = _Tail(self._tail.row[:0], self._tail.video[:0], self._tail.vectors[:0])
            newest = self._newest_row()
            parts = [self._tail]
            for row, videos, vectors in self._blocks(self._last_row, newest):
                numbers = [self._numbers.setdefault(id, len(self._numbers)) for id in videos]
                parts.append(_Tail(row, np.array(numbers, np.int64), vectors))
            row, video, vectors = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            removed = self.database.rows("SELECT row FROM removed WHERE row > ?", self._base_row)
            stays = ~np.isin(row, np.array([row for (row,) in removed], np.int64))
            self._tail = _Tail(row[stays], video[stays], vectors[stays])
            self._last_row, self._generation = newest, generation
            return self._tail, self._base

    def _newest_row(self) -> int:
        found = self.database.rows("SELECT seq FROM sqlite_sequence WHERE name = 'moments'")
        return int(found[0][0]) if found else 0

    def _open_base(self) -> int:
        """Map the approximate index; the newest row in it, 0 where there is none, or it is damaged."""
        noted = self._noted()
        if noted is not None and self._base is not None and noted == self._base_noted:
            return _rows_of(noted.name)[0]
        self._base, self._base_noted = None, noted
        path = self._path_of(noted)
        self.is_damaged = noted is not None and path is None
        if noted is None or path is None:
            return 0
        try:
            from usearch.index import Index
        except ImportError:
            return 0
        self._base = Index.restore(str(path), view=True)
        if self._base is None:
            return 0
        self._base.expansion_search = _EXPANSION
        return _rows_of(noted.name)[0]


class _Graph(NamedTuple):
    """The file of an approximate index as it was written."""

    name: str
    size: int
    modified_ns: int
    checksum: int


def _rows_of(name: str) -> tuple[int, int]:
    """The newest row in an approximate index and how many it has, which its name tells."""
    _, newest, count = name.removesuffix(".usearch").split("-")
    return int(newest), int(count)


def _crc_of(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _largest(queries: Floats, vectors: Floats) -> Floats:
    """The largest cosine of each of `[Q, E]` with any of `[n, E]`, n > 0."""
    # in fp64, or sums would differ in the last bit with the order of rows
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    largest: Floats = scores.max(axis=1).astype(np.float32)
    return largest
