"""What a PostgreSQL library does beyond the suite of every store: large libraries, lost servers, versions, addresses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from harvest.cli import main
from harvest.interfaces import HarvestError
from harvest.search.library import postgres
from harvest.search.library.postgres import PostgresDatabase, PostgresStore, indexing_alone
from harvest.search.results import Where

from .test_store import WIDTH, unit, video

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def address(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def store(address: str) -> Iterator[PostgresStore]:
    store = PostgresStore(PostgresDatabase(address, create=True), width=WIDTH)
    store.begin()
    yield store
    store.database.close()


def end_connections(address: str) -> int:
    """As a restart of the server does."""
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(address, autocommit=True) as connection:
        return len(connection.execute(sql).fetchall())


def test_a_large_library_is_searched_by_hnsw(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "EXACT_MOST", 300)
    put = [video(f"v{number:02}", 100, seed=number) for number in range(50)]
    store.put(put)
    assert store.is_exact()
    store.optimise()
    assert not store.is_exact()
    put = [*put[1:], video("late", 20, seed=99)]
    store.put([put[-1]], gone=["v00"])
    every = np.concatenate([spans.vectors for _, spans in put])
    names = [(entry.id, number) for entry, spans in put for number in range(len(spans.vectors))]
    for where in (None, Where(path="v2*"), Where(path="v2*"), Where(videos=("v31",))):
        allowed = [
            place
            for place, (name, _) in enumerate(names)
            if where is None or name in where.videos or (where.path and name.startswith("v2"))
        ]
        found = 0
        for query in unit(1000, 20):
            scores = every[allowed] @ query
            best = [names[allowed[place]] for place in np.argsort(-scores)[:10]]
            near = store.nearest(query, 10, where)
            np.testing.assert_allclose(  # scored again in fp32, from what is stored
                [n.score for n in near], [n.vector @ query for n in near], atol=1e-6
            )
            found += len(set(best) & {(n.video, n.number) for n in near})
        assert found >= 0.95 * 200, where
    assert len(store.nearest(every[0], 5000)) == store.num_moments() == len(every)


def test_a_search_whose_connection_was_ended_goes_on(
    store: PostgresStore, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put([video("a", 3, seed=1)])
    assert end_connections(address) == 1
    assert len(store.nearest(unit(9, 1)[0], 5)) == 3
    said = capsys.readouterr().err
    assert "trying again" in said and "postgres:@" not in said


def test_an_indexer_whose_connections_end_at_any_moment_writes_the_same(
    store: PostgresStore, address: str
) -> None:
    done = threading.Event()
    ended: list[int] = []

    def disturb() -> None:
        while not done.wait(0.15):
            ended.append(end_connections(address))

    disturber = threading.Thread(target=disturb)
    disturber.start()
    started = time.monotonic()
    number = 0
    while sum(ended) < 20 and time.monotonic() < started + 60:
        store.put([video(f"v{number}", 200, seed=number)], gone=[f"v{number - 3}"])
        number += 1
    done.set()
    disturber.join()
    assert sum(ended) >= 20
    assert store.entries().keys() == {f"v{n}" for n in range(number - 3, number)}
    for n in range(number - 3, number):
        np.testing.assert_array_equal(store.spans(f"v{n}").vectors, video("", 200, seed=n)[1].vectors)


def test_a_server_that_does_not_come_back(
    store: PostgresStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_WAIT_S", 0.6)
    store.database.address = address.replace("library_", "nobody_")
    end_connections(address)
    with pytest.raises(HarvestError, match=r"nobody_.* does not exist"):
        store.num_moments()


def test_versions_of_the_schema(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarvestError, match="is not a library: make one"):
        PostgresDatabase(address, create=False)
    old = PostgresDatabase(address, create=True)
    old.set(fact=b"kept")
    monkeypatch.setattr(
        postgres, "MIGRATIONS", (*postgres.MIGRATIONS, "ALTER TABLE harvest_meta ADD more int")
    )
    with pytest.raises(HarvestError, match=r"written by an older Harvest .schema 1.: run harvest index"):
        PostgresDatabase(address, create=False)
    assert PostgresDatabase(address, create=True).get("fact") == b"kept"
    monkeypatch.undo()
    with pytest.raises(HarvestError, match=r"written by a newer Harvest .schema 2.: update Harvest"):
        PostgresDatabase(address, create=False)
    old.close()


def test_one_indexer_at_a_time_is_named(address: str) -> None:
    with indexing_alone(address):
        second = indexing_alone(address)
        with pytest.raises(HarvestError, match=r"is being indexed by harvest \d+ on .*: wait for it"):
            second.__enter__()
    with indexing_alone(address):
        pass


def test_an_indexer_that_lost_its_lock_to_another_writes_no_more(store: PostgresStore, address: str) -> None:
    """As after a restart of the server: the second may begin, and the first is told at its next write."""
    first = indexing_alone(address)
    store.database.join(first.__enter__())
    store.put([video("a", 3, seed=1)])
    end_connections(address)
    store.put([video("b", 3, seed=2)])  # nobody else has begun: it goes on
    with indexing_alone(address) as claim:
        other = PostgresStore(PostgresDatabase(address, create=True), width=WIDTH)
        other.database.join(claim)
        for write in (lambda: store.put([video("c", 3, seed=3)]), lambda: store.database.set(facts=b"old")):
            with pytest.raises(HarvestError, match=r"is being indexed by harvest \d+ on .*this run ends"):
                write()
        other.put([video("d", 3, seed=4)])
        assert other.entries().keys() == {"a", "b", "d"} and other.database.get("facts") is None
        other.database.close()
    first.__exit__(None, None, None)


def test_a_server_that_is_not_there_is_one_sentence_without_the_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["search", "postgresql://me:secret@127.0.0.1:1/films", "a dog"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("harvest: postgresql://127.0.0.1:1/films: ") and "refused" in said
    assert "secret" not in said and len(said.splitlines()) == 1
