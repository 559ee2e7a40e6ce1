"""A library's SQLite file: connections, transactions, checksums of what it holds, and how a damaged one is repaired.

Every row carries a CRC-32 of its values, so that a flipped bit is an error and never another answer. SQLite's
write-ahead log makes each transaction whole or absent, after `kill -9` and power loss alike, and lets searches go on
while an indexer writes.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from harvest.errors import HarvestError
from harvest.search.library.store import Unavailable

_WAIT_S = 60.0  # for another process's transaction
MAKE_ROOM = "Make room and run the same command again: what was indexed is kept."
GRAPHS = "vectors-*.usearch"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS generation (number INTEGER NOT NULL);
INSERT INTO generation SELECT 0 WHERE NOT EXISTS (SELECT * FROM generation);
CREATE TABLE IF NOT EXISTS videos (
  id TEXT PRIMARY KEY, root TEXT NOT NULL, path TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  modified_ns INTEGER NOT NULL, digest TEXT NOT NULL, duration_s REAL NOT NULL, num_moments INTEGER NOT NULL,
  offset_s REAL NOT NULL, damage TEXT, reason TEXT, checksum INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS videos_of_content ON videos (digest);
CREATE TABLE IF NOT EXISTS moments (
  row INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, so that an approximate index can only lack rows
  video TEXT NOT NULL, number INTEGER NOT NULL, start_s REAL NOT NULL, end_s REAL NOT NULL, vector BLOB NOT NULL,
  checksum INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS moments_of_video ON moments (video, number);
CREATE TABLE IF NOT EXISTS removed (row INTEGER PRIMARY KEY);
CREATE TRIGGER IF NOT EXISTS note_removed AFTER DELETE ON moments
  BEGIN INSERT INTO removed VALUES (old.row); END;
"""


_DAMAGE = (sqlite3.Error, UnicodeError, OverflowError)
"""What `sqlite3` raises for damaged files: its messages too may hold bytes that are no text."""


class Damaged(Unavailable):
    """The library's files do not hold what was written to them."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}. Repair it: harvest index --repair --out {path.parent}")


def checksum(*values: Any) -> int:
    """A CRC-32 of a row's values; the last may be bytes."""
    *others, last = values
    if not isinstance(last, bytes):
        others, last = [*others, last], b""
    plain = [
        float(value) if isinstance(value, float) else value for value in others
    ]  # NumPy's are written otherwise
    return zlib.crc32(last, zlib.crc32(repr(plain).encode()))


class Database:
    """One SQLite file with a connection for each thread, and a table of facts about the library.

    Where it may not be written, on a read-only disk or in another's folder, it is read all the same.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self.name = str(path.parent)
        self._own = threading.local()
        self._all: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._opening = threading.Lock()
        self._address = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        if not create:
            if not path.is_file():
                raise HarvestError(
                    f"{path.parent} is not a library: it has no {path.name}. Make one: harvest index"
                )
            if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                self._address = _read_only(path)
            return
        with self._errors():
            self.connection().execute("PRAGMA journal_mode = WAL")
            self.connection().executescript(_TABLES)

    def connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if found is None:
            found = sqlite3.connect(
                self._address, uri=True, timeout=_WAIT_S, check_same_thread=False, isolation_level=None
            )
            found.execute("PRAGMA synchronous = FULL")
            self._own.connection = found
            with self._opening:  # a server's threads come and go: what the gone ones held is files kept open
                for thread, left in self._all:
                    if not thread.is_alive():
                        left.close()
                self._all = [entry for entry in self._all if entry[0].is_alive()]
                self._all.append((threading.current_thread(), found))
        return found

    def rows(self, sql: str, *values: Any) -> list[Any]:
        with self._errors():
            return self.connection().execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written in the block, or nothing of it."""
        with self._errors():
            connection = self.connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("UPDATE generation SET number = number + 1")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back by itself
                    connection.execute("ROLLBACK")
                raise

    def generation(self) -> int:
        """Counts transactions, so that a reader sees that there is something new."""
        found = self.rows("SELECT number FROM generation")
        if len(found) != 1 or not isinstance(found[0][0], int):
            raise Damaged(self.path, "the count of what was written is damaged")
        return found[0][0]

    def get(self, key: str) -> bytes | None:
        found = self.rows("SELECT key, value, checksum FROM meta WHERE key = ?", key)
        if found and checksum(*found[0][:2]) != found[0][2]:
            raise Damaged(self.path, f"what it says of {key!r} is damaged")
        return found[0][1] if found else None

    def set(self, **facts: bytes) -> None:
        rows = [(key, value, checksum(key, value)) for key, value in facts.items()]
        with self.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", rows)

    def remove(self, *keys: str) -> None:
        with self.transaction() as connection:
            connection.executemany("DELETE FROM meta WHERE key = ?", [(key,) for key in keys])

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.parent.iterdir() if file.is_file())

    def close(self) -> None:
        for _, connection in self._all:
            connection.close()
        self._all.clear()
        self._own = threading.local()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        path = self.path
        try:
            yield
        except _DAMAGE as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                raise Unavailable(f"{path}: {text}. {MAKE_ROOM}") from error
            if "locked" in text:
                raise Unavailable(f"{path}: another process kept it locked for {_WAIT_S:.0f} s") from error
            if "readonly" in text or "unable to open" in text:
                raise Unavailable(f"{path}: {text}: it is not a file that may be written here") from error
            raise Damaged(path, text) from error


def _read_only(path: Path) -> str:
    """The address of a database that may not be written. SQLite's log needs a file beside it, unless nobody writes."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    with suppress(*_DAMAGE), closing(sqlite3.connect(address, uri=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        return address
    return f"{path.absolute().as_uri()}?immutable=1"


class Repaired(NamedTuple):
    """What a repair found."""

    kept: int  # videos
    lost: int  # of those that could still be counted


def repair(path: Path) -> Repaired:
    """Write what is whole of a damaged library into a new file that takes its place. Other videos are indexed again.

    HarvestError where not even the library's facts can be read: the model and the settings would be guessed.
    """
    part = path.with_name(f".{path.name}.repair")
    discard(part)
    target = Database(part, create=True)
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        ) as source:
            source.text_factory = lambda data: data.decode(errors="replace")
            meta = [
                row
                for row in _salvaged(source, "meta")
                if row[0] != "vectors" and checksum(*row[:2]) == row[2]
            ]
            if "facts" not in {row[0] for row in meta}:
                raise HarvestError(
                    f"{path}: nothing can be saved, for its first facts are damaged. Index anew: harvest index "
                    f"FOLDER --out {path.parent} --model MODEL --reindex"
                )
            videos = list(_salvaged(source, "videos"))
            kept = 0
            with target.transaction() as connection:
                connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", meta)
                for video in videos:
                    moments = _moments(source, video) if checksum(*video[:-1]) == video[-1] else None
                    if moments is not None:
                        kept += 1
                        connection.execute(f"INSERT INTO videos VALUES ({','.join('?' * len(video))})", video)
                        connection.executemany(
                            "INSERT INTO moments (video, number, start_s, end_s, vector, checksum) VALUES (?,?,?,?,?,?)",
                            moments,
                        )
        target.set(stale=b"yes")
        target.close()
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        os.replace(part, path)
    except _DAMAGE as error:
        raise Damaged(path, f"{error}, nothing can be saved") from error
    finally:
        target.close()
        discard(part)
    for graph in path.parent.glob(GRAPHS):
        with suppress(OSError):
            graph.unlink()
    return Repaired(kept, len(videos) - kept)


def discard(path: Path) -> None:
    """Delete a database with the files beside it."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _salvaged(source: sqlite3.Connection, table: str) -> Iterable[tuple[Any, ...]]:
    """The rows of a table up to the first damaged page, and from the last one on."""
    found: dict[int, tuple[Any, ...]] = {}
    for order in ("ASC", "DESC"):
        with suppress(*_DAMAGE):
            for row in source.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {order}"):
                if row[0] in found:
                    break
                found[row[0]] = row[1:]
    return [found[row] for row in sorted(found)]


def _moments(source: sqlite3.Connection, video: tuple[Any, ...]) -> list[tuple[Any, ...]] | None:
    """The moments of a video if all are there and whole."""
    names = "video, number, start_s, end_s, vector, checksum"
    try:
        rows = source.execute(
            f"SELECT {names} FROM moments WHERE video = ? ORDER BY number", video[:1]
        ).fetchall()
    except _DAMAGE:
        return None
    is_whole = [row[1] for row in rows] == list(range(video[7])) and all(
        checksum(*r[:5]) == r[5] for r in rows
    )
    return rows if is_whole else None
