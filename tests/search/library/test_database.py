"""A damaged library is never another answer: it is said, and what is whole of it is kept."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from harvest.interfaces import HarvestError
from harvest.search.library import local_store as stores
from harvest.search.library.database import Damaged, Database, repair
from harvest.search.library.local_store import LocalStore
from harvest.search.library.store import Entry, Spans, Unavailable

from .test_store import WIDTH, unit, video

VIDEOS = [video(f"v{number}", 20, seed=number) for number in range(30)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = Database(tmp_path / "library.db", create=True)
    database.set(facts=b"{}")
    LocalStore(database, width=WIDTH).put(VIDEOS)
    database.close()
    return tmp_path / "library.db"


def read(path: Path) -> tuple[dict[str, Entry], list[tuple[str, int]], Spans]:
    database = Database(path, create=False)
    try:
        store = LocalStore(database, width=WIDTH)
        near = [(n.video, n.number) for n in store.nearest(unit(5, 1)[0], 10)]
        return store.entries(), near, store.spans("v3")
    finally:
        database.close()


def test_flipped_bits_are_noticed_and_repaired(path: Path) -> None:
    whole, good = path.read_bytes(), read(path)
    kept = noticed = 0
    for seed in range(40):
        draw = random.Random(seed)
        damaged = bytearray(whole)
        damaged[draw.randrange(100, len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            entries, near, spans = read(path)
        except HarvestError as error:
            assert "--repair" in str(error)
            noticed += 1
        else:
            assert (entries, near) == good[:2] and np.array_equal(spans.vectors, good[2].vectors)
        try:
            kept = repair(path).kept
        except HarvestError as error:
            assert "nothing can be saved" in str(error)
            continue
        assert kept >= 15
        entries = read(path)[0]
        assert len(entries) == kept and entries.items() <= good[0].items()
    assert noticed >= 20  # most of the file is vectors


def test_missing_moments_cost_their_video_alone(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM moments WHERE video = 'v3' AND number > 5")
    with pytest.raises(Damaged, match=r"586 moments are there, and 600 were written.*--repair"):
        read(path)
    assert repair(path) == (29, 1)
    assert "v3" not in read(path)[0]
    with pytest.raises(HarvestError, match="nothing can be saved"):
        path.write_bytes(b"no database at all " * 1000)
        repair(path)
    assert path.read_bytes().startswith(b"no database")  # it stays as it is


def test_a_library_that_may_not_be_written_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = read(path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert read(path)[:2] == good[:2]
    database = Database(path, create=False)
    with pytest.raises(Unavailable, match="readonly"):
        database.set(facts=b"new")
    database.close()
    with sqlite3.connect(path) as connection:  # as in a folder where no log can be made
        connection.execute("PRAGMA journal_mode = DELETE")
    assert read(path)[:2] == good[:2]


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "folder", "gone"])
def test_a_damaged_approximate_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    pytest.importorskip("usearch")
    monkeypatch.setattr(stores, "EXACT_MOST", 300)
    store = LocalStore(Database(tmp_path / "library.db", create=True), width=WIDTH)
    store.put(VIDEOS)
    store.optimise()
    [graph] = tmp_path.glob("vectors-*")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.unlink()
    if how == "folder":
        graph.mkdir()
    elif how != "gone":
        graph.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "flipped": data}[how])
    again = LocalStore(Database(tmp_path / "library.db", create=False), width=WIDTH)
    query = VIDEOS[7][1].vectors[3]
    assert again.is_exact() and again.is_damaged
    near = again.nearest(query, 1)[0]
    assert (near.video, near.number) == ("v7", 3)
    again.optimise()  # as the next indexer does
    assert not again.is_exact() and not again.is_damaged and again.nearest(query, 1)[0].video == "v7"
