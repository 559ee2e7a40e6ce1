from __future__ import annotations

from pathlib import Path

import pytest

from harvest.data.overlap import video_ids, without_videos_of
from harvest.interfaces import Example, HarvestError


def test_ids_in_names() -> None:
    assert video_ids("dQw4w9WgXcQ_00:00:01.000_00:00:04.000.mp4") == {"dQw4w9WgXcQ"}
    assert video_ids("v_QOlSCBRmfWY.mp4") == {"QOlSCBRmfWY"}
    assert video_ids("video7010,video1234") == {"video7010", "video1234"}
    assert video_ids("Ks7jf-_1ZxQ_000012_000022") >= {"Ks7jf-_1ZxQ"}
    assert not video_ids("description of a photograph")


def test_clips_of_tested_videos_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("key,video_id\nret0,dQw4w9WgXcQ\n")
    rows = [
        Example("dQw4w9WgXcQ_3", "/v/dQw4w9WgXcQ.mp4", ("a",)),
        Example("Ks7jf-_1ZxQ_0", "/v/Ks7jf-_1ZxQ.mp4", ("b",)),
    ]
    kept, shared = without_videos_of(rows, tmp_path / "test.csv")
    assert kept == rows[1:] and shared == {"dQw4w9WgXcQ"}
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(HarvestError, match="holds no ids"):
        without_videos_of(rows, tmp_path / "empty.csv")
