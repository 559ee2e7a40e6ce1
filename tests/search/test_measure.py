from __future__ import annotations

from pathlib import Path

import pytest

from harvest.data.miniworld import MiniWorldConfig, make_clip
from harvest.interfaces import HarvestError
from harvest.search import measure, store
from harvest.search.measure import absent_scenes, measure_library, measure_vectors


def test_absent_scenes_are_in_no_clip() -> None:
    config = MiniWorldConfig(seed=3, retrieval=300)
    rows = [make_clip(config, "retrieval", index)[1] for index in range(300)]
    present = {(row["motion"], row["colour"], row["shape"]) for row in rows}
    absent = absent_scenes(present, 300, seed=0)
    assert len(set(absent)) == len(absent) == 300
    assert not set(absent) & {f"the {c} {s} {m}" for m, c, s in present}
    assert absent == absent_scenes(present, 300, seed=0) != absent_scenes(present, 300, seed=1)
    with pytest.raises(HarvestError, match="absent"):
        absent_scenes(present, 10**6, seed=0)


def test_a_library_is_measured(image_model: Path, tmp_path: Path) -> None:
    figures = measure_library(str(image_model), tmp_path, num_videos=5, clips_each=10, false_accept=0.5)
    assert (figures.videos, figures.moments) == (5, 50)
    assert 3 / 50 < figures.first <= 1 and figures.within_1s <= figures.first  # it knows colours and shapes
    assert figures.kept > 1 - figures.refused  # and the likelier query is the true one
    assert 0.3 < figures.refused < 0.7  # half of the nonsense is let through, as was asked


def test_vectors_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("usearch")
    monkeypatch.setattr(store, "EXACT_MOST", 1000)
    monkeypatch.setattr(store, "_TAIL_MOST", 500)
    monkeypatch.setattr(measure, "_PER_PUT", 1000)
    figures = measure_vectors(tmp_path, count=3500, width=32, queries=20)
    assert figures.recall_at_10 > 0.9 and figures.p50_ms < 1000 and figures.disk_mb > 0.2
    again = measure_vectors(tmp_path, count=3500, width=32, queries=20)  # only asked
    assert again.recall_at_10 == figures.recall_at_10 and again.disk_mb == pytest.approx(
        figures.disk_mb, rel=0.5
    )
