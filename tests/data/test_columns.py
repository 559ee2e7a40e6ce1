"""Rows as columns: the same Examples as in a list, in memory and in files; large manifests are read once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.data import columns, manifest_rows
from harvest.data.columns import Columns, ColumnWriter, columns_of_rows, open_columns
from harvest.data.dataset import ClipDataset, DataConfig, Refused
from harvest.data.loader import TrainLoader
from harvest.data.manifest import read_manifest, write_manifest
from harvest.data.manifest_rows import digest_of
from harvest.data.read_once import clip_numbers
from harvest.interfaces import Box, Example, HarvestError

ROWS = [
    Example("a", "x/a.mp4", ("one", "", "zwei ü"), 3, 1.5, 2.5),
    Example("b", "x/\udcffb.mp4", question="what?", answer="that"),
    Example("c", "x/a.mp4", ("one",), None, 1.5, 2.5, labels=(1, 4)),
    Example("d", "x/a.mp4", ("one",), 0, 0.1 + 0.2),
    Example("e", "", boxes=(Box((0.1, 0.2, 0.3, 1 / 3), (2,), 0.5), Box((0.0, 0.0, 1.0, 1.0)))),
]


def test_rows_come_back_from_memory_and_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_FLUSH", 2)
    writer = ColumnWriter(tmp_path)
    for row in ROWS:
        writer.append(row)
    Columns(writer.finish()[0]).save(tmp_path, {"name": "ü"})
    arrays, about = open_columns(tmp_path)
    for made in (columns_of_rows(ROWS), Columns(arrays)):
        assert list(made) == ROWS and made[-1] == ROWS[-1] and made[1:3] == ROWS[1:3]
        assert made.clip_of.tolist() == clip_numbers(ROWS).tolist() == [0, 1, 0, 2, 3]
        assert made.num_texts.tolist() == [3, 0, 1, 1, 0] and made.labels.nonzero().tolist() == [
            [2, 1],
            [2, 4],
        ]
        assert made.has_rest and made.samples_of(["d", "z", "a"]) == {"a": 0, "d": 3}
    assert columns_of_rows([*ROWS[:2], *ROWS[3:]]).labels.tolist() == [3, -1, 0, -1]
    assert about == {"name": "ü"} and not columns_of_rows(ROWS[3:4]).has_rest
    with pytest.raises(IndexError):
        made[5]
    assert list(columns_of_rows([])) == []


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#2#2", "a#3", "c#", "#2", ""])))
def test_ids_are_made_unique_as_one_by_one(ids: list[str]) -> None:
    unique = columns.Ids()
    expected = [unique(id) for id in ids]
    assert [row.id for row in columns_of_rows(Example(id, "x") for id in ids)] == expected
    assert len(set(expected)) == len(ids)


def test_stretches_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "hash", lambda value: 7, raising=False)
    assert columns_of_rows(ROWS).clip_of.tolist() == [0, 1, 0, 2, 3]


def test_texts_have_a_digest_of_their_own() -> None:
    def digest(*texts: tuple[str, ...]) -> str:
        return columns_of_rows(Example(str(i), f"{i}", t) for i, t in enumerate(texts)).texts_digest()

    found = {
        digest(("a", "b")),
        digest(("ab",)),
        digest(("a",), ("b",)),
        digest(("a",), ("c",)),
        digest(("ab", "")),
    }
    assert len(found) == 5
    assert digest(("a", "b")) in found


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is large enough for its columns to be kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest_rows, "WORTH_KEEPING", 1)
    path = tmp_path / "rows.jsonl"
    rows = [Example(f"{n % 4}", f"{n % 3}.mp4", (f"text {n}",), start_s=float(n % 2)) for n in range(9)]
    write_manifest(path, rows)
    path.write_text(path.read_text() + '{"video": "z.mp4", "caption": 3}\n')
    return path


def kept_in(path: Path) -> list[Path]:
    return sorted((path.parent / "cache/harvest/manifests").glob("*/columns.json"))


def test_a_large_manifest_is_read_once(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_rows, "WORTH_KEEPING", 2**25)
    plain = read_manifest(manifest)
    assert plain.known_digest is None and not kept_in(manifest)
    monkeypatch.setattr(manifest_rows, "WORTH_KEEPING", 1)
    first = read_manifest(manifest)
    assert len(kept_in(manifest)) == 1
    monkeypatch.setattr("harvest.data.manifest.table_rows", lambda path: 1 / 0)
    again = read_manifest(manifest)
    for rows in (first, again):
        assert list(rows) == list(plain) and rows.summary() == plain.summary()
        assert rows.left_out == plain.left_out and rows.columns == plain.columns and rows.form == plain.form
        assert rows.texts_digest() == plain.texts_digest()
        assert digest_of(rows) == digest_of(list(plain)) and rows.repeated == plain.repeated
    assert [row.id for row in again][4:6] == ["0#2", "1#2"]


def test_a_manifest_that_changed_or_is_asked_for_otherwise_is_read_anew(manifest: Path) -> None:
    before = read_manifest(manifest)
    manifest.write_text(manifest.read_text().replace("text 8", "text 9"))
    os.utime(manifest, ns=(1, 1))
    assert read_manifest(manifest)[8].texts == ("text 9",) and before[8].texts == ("text 8",)
    (manifest.parent / "elsewhere").mkdir()
    moved = read_manifest(manifest, videos=manifest.parent / "elsewhere")
    assert moved[0].video.startswith(str(manifest.parent / "elsewhere"))
    assert len(kept_in(manifest)) == 3
    kept = kept_in(manifest)[0].parent
    (kept / "text.bin").write_bytes(b"short")
    answers = []
    for videos in (None, manifest.parent / "elsewhere"):
        try:
            answers.append(len(read_manifest(manifest, videos=videos)))
        except HarvestError as error:
            assert f"{kept} cannot be read" in str(error) and "remove it" in str(error)
    assert len(answers) >= 1


def test_rows_that_depend_on_the_disk_are_read_each_time(manifest: Path) -> None:
    """WebVid's csv before its videos are there; names in another form of their letters; sets that look for videos."""
    webvid = manifest.parent / "webvid.csv"
    webvid.write_text("videoid,name,page_dir\n7,a dog,000\n")
    assert read_manifest(webvid)[0].video.endswith("/7.mp4")
    letters = manifest.parent / "letters.jsonl"
    letters.write_text(json.dumps({"video": "é.mp4", "caption": "a"}) + "\n")
    read_manifest(letters)
    assert not kept_in(manifest)
    (manifest.parent / "000").mkdir()
    assert read_manifest(webvid)[0].video.endswith("000/7.mp4") and len(kept_in(manifest)) == 1


def test_without_a_place_to_keep_it_a_manifest_is_read_all_the_same(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(manifest.parent / "file"))
    assert len(read_manifest(manifest)) == 9


def test_workers_are_told_the_samples_and_find_the_same_without(tmp_path: Path) -> None:
    rows = [Example(str(n), str(tmp_path / f"{n}.mp4"), ("a",)) for n in range(50)]
    data = ClipDataset(rows, DataConfig(num_frames=1), image_size=8, encode_text=None, seed=3)
    keys = [(0, 49), (1, 0), (1, 25)]
    told = data.with_samples(keys)
    orders = [data._places(epoch) for epoch, _ in keys]
    for (_, place), order, samples in zip(keys, orders, told.samples, strict=True):
        assert samples.tolist() == [int(order[(place + n) % 50]) for n in range(len(samples))]
    found = data[keys]  # no video is there
    assert found.batch is None and len(found.tried) == 50 and found.tried[:8] == told.samples[0].tolist()


def test_the_loader_counts_samples_and_not_tries() -> None:
    rows = [Example(str(n), f"{n}.mp4", ("a",)) for n in range(30)]
    loader = TrainLoader(ClipDataset(rows, DataConfig(), image_size=8, encode_text=None, seed=0), 2)
    loader._note([3, 4, 3], [])
    loader._note([4, 5], [(5, Refused("broken"))])
    assert loader.broken_ratio == pytest.approx(1 / 3)
