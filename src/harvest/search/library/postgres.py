"""A library in PostgreSQL with pgvector, for what one machine is too small for: one database holds one library.

    harvest index /videos --store postgresql://user@host/films --model MODEL
    harvest search postgresql://user@replica/films "a red car turns left"

A group of videos is replaced in one transaction. Vectors are `halfvec` (fp16). In large libraries HNSW proposes
candidates, which are scored again from their vectors in fp32; filters are SQL. Passwords are libpq's matter: a
`~/.pgpass`, or PGPASSWORD.

A lost connection is said, and what was under way is done again on a new one: every transaction writes the same the
second time.

Shapes: n moments, Q queries, E shared width. Vectors have unit length.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, LifoQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from harvest.errors import HarvestError
from harvest.progress import say
from harvest.search.library.store import Entry, Floats, Near, Spans, Unavailable, folded, time_ns
from harvest.search.results import Where

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")
EXACT_MOST = 20_000  # moments of a filter, or of a library, up to which all are scored
_CANDIDATES = 100  # of HNSW at least
_WAIT_S = 60.0  # for a server that was there before
_AGAIN_S = 0.5
_LOCK = 0x68617276657374  # "harvest": of the one indexer, and of migrations
_CLAIM = "indexer"  # the fact that says which run may write
_LOST = {"57P01", "57P02", "57P03", "40001", "40P01"}  # shut down, crashed, starting; serialisation, deadlock

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE harvest_meta (key text PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE harvest_videos (
      id text PRIMARY KEY, root text NOT NULL, path text NOT NULL, size_bytes bigint NOT NULL,
      modified_ns bigint NOT NULL, digest text NOT NULL, duration_s float8 NOT NULL, num_moments int NOT NULL,
      offset_s float8 NOT NULL, damage text, reason text, folded_path text NOT NULL
    );
    CREATE INDEX harvest_videos_of_content ON harvest_videos (digest);
    """,
)
"""What makes each version of the schema of the one before. Never changed once released, only added to."""
_MOMENTS = """
    DROP TABLE IF EXISTS harvest_moments;
    CREATE TABLE harvest_moments (
      video text NOT NULL REFERENCES harvest_videos ON DELETE CASCADE, number int NOT NULL,
      start_s float8 NOT NULL, end_s float8 NOT NULL, vector halfvec({width}) NOT NULL, PRIMARY KEY (video, number)
    );
    ALTER TABLE harvest_moments ALTER COLUMN vector SET STORAGE PLAIN;
"""
_FIELDS = ", ".join(field.name for field in dataclasses.fields(Entry))


class PostgresDatabase:
    """Connections to a library's database, and its table of facts. Methods may be called from several threads."""

    def __init__(self, address: str, *, create: bool) -> None:
        self._idle: LifoQueue[Connection] = LifoQueue()
        try:
            import pgvector.psycopg
            import psycopg
        except ImportError as error:
            raise HarvestError(
                f"a library in PostgreSQL needs {error.name}: pip install 'psycopg[binary]' pgvector"
            ) from error
        self._psycopg, self._register = psycopg, pgvector.psycopg.register_vector
        self.address = address
        parts = urlsplit(address)
        self.name = f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """For messages: without user and password."""
        self._create, self._is_ready = create, False
        self._claim: bytes | None = None
        self.run(lambda _: None)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do some work in one transaction. Where the connection is lost, all of it again on another.

        Unavailable where the server does not come back within a minute, or refuses.
        """
        psycopg, until = self._psycopg, 0.0
        while True:
            try:
                with self._connection() as connection, connection.transaction():
                    return work(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                is_lost = error.sqlstate is None or error.sqlstate.startswith("08") or error.sqlstate in _LOST
                if not (self._is_ready and is_lost) or (until and time.monotonic() > until):
                    raise Unavailable(f"{self.name}: {_first_line(error)}") from error
                if not until:
                    until = time.monotonic() + _WAIT_S
                    say(f"{self.name}: {_first_line(error)}: trying again for {_WAIT_S:.0f} s")
                time.sleep(_AGAIN_S)
            except psycopg.Error as error:
                raise Unavailable(f"{self.name}: {_first_line(error)}") from error

    def join(self, claim: bytes | None) -> None:
        """Write from now on as part of the run with this claim (`indexing_alone`); None: the one that has it now."""
        self._claim = self.get(_CLAIM) if claim is None else claim

    def write(self, work: Callable[[Connection], T]) -> T:
        """`run`, of an indexer; HarvestError where another has begun since, as after a restart of the server."""

        def guarded(connection: Connection) -> T:
            if self._claim is not None:  # the row stays as it is until this transaction ends
                sql = "SELECT value FROM harvest_meta WHERE key = %s FOR SHARE"
                row = connection.execute(sql, (_CLAIM,)).fetchone()
                if row is None or bytes(row[0]) != self._claim:
                    who = "another" if row is None else bytes(row[0]).rpartition(b" ")[0].decode()
                    raise HarvestError(
                        f"{self.name} is being indexed by {who}, which began when the server had lost this run's lock:"
                        " this run ends, what it wrote stays"
                    )
            return work(connection)

        return self.run(guarded)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            connection = self._idle.get_nowait()
        except Empty:
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.closed:
                self.close()  # the other idle ones are of the same lost server
            else:
                self._idle.put(connection)

    def _connect(self) -> Connection:
        who = f"harvest {os.getpid()} on {socket.gethostname()}"
        connection = self._psycopg.connect(
            self.address, autocommit=True, connect_timeout=10, application_name=who
        )
        try:
            if not self._is_ready:
                if self._create:
                    self._migrate(connection)
                self._check_version(connection)
            self._register(connection)
            self._is_ready = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: Connection) -> None:
        """Bring the schema up to date, one indexer at a time and all or nothing."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK + 1,))
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("CREATE TABLE IF NOT EXISTS harvest_schema (version int NOT NULL)")
            [version] = connection.execute(
                "SELECT coalesce(max(version), 0) FROM harvest_schema"
            ).fetchone() or [0]
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                connection.execute(script.encode())
                connection.execute("INSERT INTO harvest_schema VALUES (%s)", (number,))

    def _check_version(self, connection: Connection) -> None:
        try:
            row = connection.execute("SELECT max(version) FROM harvest_schema").fetchone()
        except self._psycopg.errors.UndefinedTable:
            raise HarvestError(
                f"{self.name} is not a library: make one with harvest index FOLDER --store ADDRESS --model MODEL"
            ) from None
        version = int(row[0]) if row else 0
        if version > len(MIGRATIONS):
            raise HarvestError(
                f"{self.name} was written by a newer Harvest (schema {version}): update Harvest"
            )
        if version < len(MIGRATIONS):
            raise HarvestError(
                f"{self.name} was written by an older Harvest (schema {version}): run harvest index once"
            )

    def get(self, key: str) -> bytes | None:
        """A fact about the library."""
        sql = "SELECT value FROM harvest_meta WHERE key = %s"
        row = self.run(lambda connection: connection.execute(sql, (key,)).fetchone())
        return None if row is None else bytes(row[0])

    def set(self, **facts: bytes) -> None:
        sql = (
            "INSERT INTO harvest_meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        self.write(lambda connection: connection.cursor().executemany(sql, list(facts.items())))

    def remove(self, *keys: str) -> None:
        sql = "DELETE FROM harvest_meta WHERE key = ANY(%s)"
        self.write(lambda connection: connection.execute(sql, (list(keys),)))

    def size_bytes(self) -> int:
        sql = (
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class "
            "WHERE relkind = 'r' AND relname LIKE 'harvest\\_%'"
        )
        [size] = self.run(lambda connection: connection.execute(sql).fetchone()) or [0]
        return int(size)

    def close(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    def __del__(self) -> None:
        self.close()


@contextmanager
def indexing_alone(address: str) -> Iterator[bytes]:
    """Be the only indexer of a library, with the other ranks of its run; HarvestError where another is at work.

    The lock ends with the process, and with the server. A second indexer may begin after a restart of the server: it
    takes the claim that is yielded here, and the first is refused at its next write (`PostgresDatabase.write`).
    """
    database = PostgresDatabase(address, create=True)
    try:
        with database._connection() as connection:
            # The server ends a connection, and its lock, a moment after an indexer has closed it.
            for wait_s in (0.0, 0.1, 0.4, 1.5):
                time.sleep(wait_s)
                [is_mine] = connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() or [
                    False
                ]
                if is_mine:
                    break
            else:
                sql = (
                    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
                    "WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint = %s"
                )
                row = connection.execute(sql, (_LOCK,)).fetchone()
                raise HarvestError(
                    f"{database.name} is being indexed by {row[0] if row else 'another'}: wait for it, or end it"
                )
            claim = f"harvest {os.getpid()} on {socket.gethostname()} {uuid.uuid4().hex}".encode()
            database.set(**{_CLAIM: claim})
            yield claim
    finally:
        database.close()


class PostgresStore:
    """The store in a PostgreSQL database."""

    is_damaged = False  # the server's own checks see to that

    def __init__(self, database: PostgresDatabase, *, width: int) -> None:
        self.database = database
        self.width = width

    # ---- writing

    def put(self, videos: Sequence[tuple[Entry, Spans | None]], *, gone: Sequence[str] = ()) -> None:
        ids = [*gone, *(entry.id for entry, _ in videos)]
        rows = [(*dataclasses.astuple(entry), folded(entry.path)) for entry, _ in videos]
        insert = f"INSERT INTO harvest_videos ({_FIELDS}, folded_path) VALUES ({', '.join(['%s'] * 12)})"

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM harvest_videos WHERE id = ANY(%s)", (ids,))
            cursor = connection.cursor()
            cursor.executemany(insert.encode(), rows)
            with cursor.copy("COPY harvest_moments FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["text", "int4", "float8", "float8", "halfvec"])
                for entry, spans in videos:
                    for number, (start, end, vector) in enumerate(zip(*(spans or ((), (), ())), strict=True)):
                        copy.write_row((entry.id, number, float(start), float(end), _half(vector)))

        self.database.write(work)

    def update(self, entries: Sequence[Entry]) -> None:
        sql = "UPDATE harvest_videos SET size_bytes = %s, modified_ns = %s WHERE id = %s"
        rows = [(entry.size_bytes, entry.modified_ns, entry.id) for entry in entries]
        self.database.write(lambda connection: connection.cursor().executemany(sql, rows))

    def begin(self) -> None:
        def work(connection: Connection) -> None:
            connection.execute(_MOMENTS.format(width=self.width).encode())
            connection.execute("DELETE FROM harvest_videos")

        self.database.write(work)

    def optimise(self) -> None:
        """Make the HNSW index of a large library; PostgreSQL keeps it up to date from then on."""
        if self.is_exact() and self.num_moments() > EXACT_MOST:

            def work(connection: Connection) -> None:
                connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
                connection.execute(
                    "CREATE INDEX IF NOT EXISTS harvest_moments_by_vector ON harvest_moments "
                    "USING hnsw (vector halfvec_ip_ops) WITH (m = 16, ef_construction = 100)"
                )

            self.database.write(work)

    # ---- reading

    def entries(self, videos: Collection[str] | None = None) -> dict[str, Entry]:
        condition = "" if videos is None else "WHERE id = ANY(%s)"
        rows = self._rows(
            f"SELECT {_FIELDS} FROM harvest_videos {condition}", *([] if videos is None else [list(videos)])
        )
        return {row[0]: Entry(*row) for row in rows}

    def entry(self, video: str) -> Entry | None:
        return self.entries([video]).get(video)

    def copies(self, digests: Collection[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        sql = "SELECT digest, path FROM harvest_videos WHERE num_moments > 0 AND digest = ANY(%s)"
        for digest, path in sorted(self._rows(sql, list(digests)), key=lambda row: row[1]):
            found.setdefault(digest, []).append(path)
        return found

    def spans(self, video: str) -> Spans:
        sql = "SELECT start_s, end_s, vector FROM harvest_moments WHERE video = %s ORDER BY number"
        rows = self._rows(sql, video)
        return Spans(
            np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), self._vectors(rows)
        )

    def num_moments(self) -> int:
        [[number]] = self._rows("SELECT coalesce(sum(num_moments), 0) FROM harvest_videos")
        return int(number)

    def is_exact(self) -> bool:
        [[is_missing]] = self._rows("SELECT to_regclass('harvest_moments_by_vector') IS NULL")
        return bool(is_missing)

    def nearest(self, query: Floats, k: int, where: Where | None = None) -> list[Near]:
        conditions, values = sql_of(where or Where())
        [[there]] = self._rows(
            f"SELECT coalesce(sum(num_moments), 0) FROM harvest_videos v WHERE {conditions}", *values
        )
        wanted = min(max(_CANDIDATES, 2 * k), int(there))
        found = self._candidates(query, wanted, conditions, values, is_exact=there <= EXACT_MOST)
        if len(found) < min(wanted, there):  # HNSW gave up among so many that the filter leaves out
            found = self._candidates(query, wanted, conditions, values, is_exact=True)
        vectors = self._vectors(found)
        scores = np.clip(vectors @ query, -1.0, 1.0)
        near = [
            Near(video, number, start, end, float(score), vector)
            for (video, number, start, end, _), score, vector in zip(found, scores, vectors, strict=True)
        ]
        return sorted(near, key=lambda one: (-one.score, one.video, one.number))[:k]

    def best_scores(self, queries: Floats) -> Floats:
        best = [(query.astype(np.float64), self.nearest(query, 1)) for query in queries]
        return np.array([query @ near[0].vector if near else -1.0 for query, near in best], np.float32)

    def close(self) -> None: ...

    def _candidates(
        self, query: Floats, wanted: int, conditions: str, values: Sequence[Any], *, is_exact: bool
    ) -> list[Any]:
        sql = (
            "SELECT m.video, m.number, m.start_s, m.end_s, m.vector FROM harvest_moments m "
            f"JOIN harvest_videos v ON v.id = m.video WHERE {conditions} ORDER BY m.vector <#> %s LIMIT %s"
        )

        def work(connection: Connection) -> list[Any]:
            if is_exact:  # the plan that reads the allowed rows and sorts them
                connection.execute("SET LOCAL enable_indexscan = off")
            else:
                expansion = str(min(max(2 * wanted, 200), 1000))
                connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (expansion,))
                connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
                connection.execute("SET LOCAL enable_seqscan = off")
                connection.execute("SET LOCAL enable_sort = off")
            return connection.execute(sql.encode(), (*values, _half(query), wanted)).fetchall()

        return self.database.run(work) if wanted else []

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        return self.database.run(lambda connection: connection.execute(sql.encode(), values).fetchall())

    def _vectors(self, rows: Sequence[Any]) -> Floats:
        """The last column of rows, `[n, E]`."""
        vectors = [row[-1].to_numpy() for row in rows]
        return np.array(vectors, np.float32).reshape(len(rows), self.width)


def sql_of(where: Where) -> tuple[str, list[Any]]:
    """A filter as a condition on `harvest_videos v`, with its values: what `store.matches` says of an entry."""
    found: list[tuple[str, Any]] = []
    if where.videos:
        found.append(("v.id = ANY(%s)", list(where.videos)))
    if where.after is not None:
        found.append(("v.modified_ns >= %s", time_ns(where.after)))
    if where.before is not None:
        found.append(("v.modified_ns < %s", time_ns(where.before)))
    if where.min_duration_s is not None:
        found.append(("v.duration_s >= %s", where.min_duration_s))
    if where.max_duration_s is not None:
        found.append(("v.duration_s <= %s", where.max_duration_s))
    conditions, values = [condition for condition, _ in found], [value for _, value in found]
    if where.path is not None:
        conditions.append("(strpos(v.folded_path, %s) > 0 OR v.folded_path ~ %s)")
        values += [folded(where.path), _regex_of(folded(where.path))]
    return " AND ".join(["v.reason IS NULL", *conditions]), values


def _regex_of(pattern: str) -> str:
    """A pattern with *, ? and [] as PostgreSQL's regular expression of the whole path, as `fnmatch` reads it."""

    def part(found: re.Match[str]) -> str:
        text = found[0]
        if text in "*?":
            return {"*": ".*", "?": "."}[text]
        if len(text) == 1:
            return re.escape(text)
        inner = text[1:-1].replace("\\", "\\\\")
        return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"

    return "^" + re.sub(r"\[!?[^]]+\]|.", part, pattern, flags=re.S) + "$"


def _half(vector: Floats) -> Any:
    from pgvector import HalfVector

    return HalfVector(vector)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
