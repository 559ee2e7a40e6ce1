from __future__ import annotations

import json
from pathlib import Path

import pytest

from harvest.cli import main
from harvest.data.forms import FORMS
from harvest.data.manifest import read_manifest


@pytest.fixture
def internvid(tmp_path: Path) -> Path:
    """Three clips: one cut already, one of a whole video, one whose video is gone."""
    (tmp_path / "v").mkdir()
    for name in ("dQw4w9WgXcQ_00:00:01.000_00:00:04.000.mp4", "Ks7jf-_1ZxQ.mp4"):
        (tmp_path / "v" / name).touch()
    rows = [
        {"YoutubeID": id, "Start_timestamp": "00:00:01.000", "End_timestamp": "00:00:04.000", "Caption": text}
        for id, text in (("dQw4w9WgXcQ", "a man sings"), ("Ks7jf-_1ZxQ", "a dog"), ("aaaaaaaaa-A", "gone"))
    ]
    path = tmp_path / "InternVid-10M-flt.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(not form.refusal for form in FORMS.values()) >= 35
    assert main(["dataset", "panda-70m"]) == 0
    assert "columns: videoid, url, timestamp, caption" in capsys.readouterr().out
    assert main(["dataset", "panda70m"]) == 2
    assert "did you mean 'panda-70m'" in capsys.readouterr().err


def test_a_manifest_of_a_set(internvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, missing = internvid.parent / "clips.jsonl", internvid.parent / "missing.txt"
    command = ["dataset", "internvid", str(internvid), "--videos", str(internvid.parent / "v")]
    assert main([*command, "--out", str(out), "--missing", str(missing)]) == 0
    said = capsys.readouterr().out
    assert "read as InternVid: 2 videos, 2 clips of 3 rows" in said and "1 clips without a video" in said
    cut, whole = read_manifest(out)
    assert (Path(cut.video).name, cut.start_s, cut.end_s) == (
        "dQw4w9WgXcQ_00:00:01.000_00:00:04.000.mp4",
        0.0,
        None,
    )
    assert (Path(whole.video).name, whole.start_s, whole.end_s) == ("Ks7jf-_1ZxQ.mp4", 1.0, 4.0)
    assert missing.read_text().splitlines() == [
        str(internvid.parent / "v" / "aaaaaaaaa-A_00:00:01.000_00:00:04.000.mp4")
    ]

    (internvid.parent / "test.csv").write_text("key,video_id\nret0,dQw4w9WgXcQ\n")
    assert main([*command, "--out", str(out), "--leave-out", str(internvid.parent / "test.csv")]) == 0
    assert "1 videos are in test.csv too, first: dQw4w9WgXcQ: 1 clips left out" in capsys.readouterr().out
    assert [row.texts for row in read_manifest(out)] == [("a dog",)]


def test_a_set_without_its_videos_is_an_error(internvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (internvid.parent / "empty").mkdir()
    out = str(internvid.parent / "clips.jsonl")
    command = ["dataset", "internvid", str(internvid), "--videos", str(internvid.parent / "empty")]
    assert main([*command, "--out", out]) == 2
    assert "none of the 3 clips" in (said := capsys.readouterr().err) and "dQw4w9WgXcQ.mp4" in said
    assert main(command) == 2 and "--out clips.jsonl" in capsys.readouterr().err


def test_tar_and_parquet_are_opened_by_address(tmp_path: Path) -> None:
    import io
    import tarfile

    import pyarrow
    import pyarrow.parquet

    from harvest.data.rows import video_of
    from harvest.data.video import PackedVideo

    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"part/ID.{number}.mp4")
            info.size = 5
            tar.addfile(info, io.BytesIO(b"tar %d" % number))
    rows = [{"ID": f"ID.{n}", "Brief Caption": f"clip {n}", "Detailed Caption": "long"} for n in (2, 0)]
    (tmp_path / "VideoUFO.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    packed = [video_of(row.video) for row in read_manifest(tmp_path / "VideoUFO.jsonl")]
    assert [p.files for p in packed if isinstance(p, PackedVideo)] == [(b"tar 2",), (b"tar 0",)]

    cells = [{"bytes": b"row %d" % n if n != 2 else None, "path": f"{n}.mp4"} for n in range(7)]
    table = {"video": cells, "caption": [f"c{n}" for n in range(7)]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=3)
    found = read_manifest(tmp_path / "a.parquet")
    assert found[2].video == str(tmp_path / "2.mp4")
    for number in (0, 1, 5, 3, 6, 4, 0):  # forwards, over groups, and back
        opened = video_of(found[number].video)
        assert isinstance(opened, PackedVideo) and opened.files == (b"row %d" % number,)
