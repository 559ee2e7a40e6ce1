from __future__ import annotations

from pathlib import Path

import pytest

from harvest.bench import vectors
from harvest.search.library import local_store


def test_vectors_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("usearch")
    monkeypatch.setattr(local_store, "EXACT_MOST", 1000)
    monkeypatch.setattr(local_store, "_TAIL_MOST", 500)
    monkeypatch.setattr(vectors, "_PER_PUT", 1000)
    figures = vectors.measure_vectors(tmp_path, count=3500, width=32, queries=20)
    assert figures.recall_at_10 > 0.9 and figures.p50_ms < 1000 and figures.disk_mb > 0.2
    again = vectors.measure_vectors(tmp_path, count=3500, width=32, queries=20)  # only asked
    assert again.recall_at_10 == figures.recall_at_10 and again.disk_mb == pytest.approx(
        figures.disk_mb, rel=0.5
    )
