"""A data set with one of everything that goes wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from harvest.data.check import BINS, check, histogram, summary, write_report
from harvest.data.guard import Lost, guarded_map
from harvest.data.manifest import read_manifest
from harvest.data.options import CheckConfig
from harvest.data.video import write_video
from harvest.interfaces import Box, Example, HarvestError


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    for name, num_frames, crf in (("a", 24, 18), ("b", 24, 18), ("short", 4, 18)):
        picture = torch.randint(256, (1, 3, 6, 8), generator=generator).byte()
        frames = picture.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(num_frames, -1, -1, -1)
        write_video(folder / f"{name}.mp4", frames.contiguous(), fps=8, crf=crf)
        if name == "a":  # the same again, coarser
            write_video(folder / "a again.mp4", frames.contiguous(), fps=8, crf=30)
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 30)
    texts = {
        "a": "a red square",
        "b": "a blue circle",
        "a again": "a red square again",
        "short": "it is short",
    }
    rows = [Example(name, str(folder / f"{name}.mp4"), (text,)) for name, text in texts.items()]
    rows.append(Example("b too", str(folder / "b.mp4"), ("another caption of it",)))
    rows.append(Example("b silent", str(folder / "b.mp4"), ()))
    rows.append(Example("b hardly", str(folder / "b.mp4"), ("video",)))
    rows.append(Example("noise", str(folder / "noise.mp4"), ("noise and more",)))
    rows.append(Example("gone", str(folder / "gone.mp4"), ("gone with it",)))
    return rows


def test_everything_wrong_is_found(examples: list[Example]) -> None:
    told = []
    found = check(
        examples, CheckConfig(), workers=2, columns=["video", "license"], progress=lambda *a: told.append(a)
    )
    assert (found.num_rows, found.num_clips) == (9, 6) and told[-1] == (6, 6)
    assert found.missing == {"gone": "no such file"}
    assert found.broken.keys() == {"noise"} and "Invalid data" in found.broken["noise"]
    assert found.duplicate == {"a again": "shows what a shows"}
    assert found.short == {"short": "0.50 s"}
    assert found.silent == {"b silent": "no caption", "b hardly": "“video”"}
    assert found.licence_column == "license" and check(examples[:1], CheckConfig()).licence_column is None
    assert found.codecs == {"h264": 4} and found.sizes == {"64 x 48": 4}
    assert found.hours == pytest.approx(9.5 / 3600)
    assert sorted(found.values["length of a clip, s"]) == pytest.approx([0.5, 3, 3, 3])
    assert {e.id for e in examples} - found.useless == {"a", "b", "b too"}


def test_captions_unlike_their_clips(examples: list[Example]) -> None:
    found = check(
        examples[:2], CheckConfig(min_similarity=0.2), similarities={"a": 0.31, "b": 0.15}, workers=1
    )
    assert found.unlike == {"b": "similarity 0.150"}


def test_the_page_and_the_clean_manifest(examples: list[Example], tmp_path: Path) -> None:
    found = check(examples, CheckConfig(), workers=1)
    write_report(tmp_path / "out", "<clips>.jsonl", examples, found)
    page = (tmp_path / "out/check.html").read_text()
    assert (
        "&lt;clips&gt;.jsonl" in page
        and "<clips>" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert "No column tells the licence" in page and page.count("<svg") == 5
    said = json.loads((tmp_path / "out/check.json").read_text())
    assert said["clean"] == 3 and said["values"]["length of a clip, s"]["largest"] == 3
    clean = read_manifest(tmp_path / "out/clean.jsonl")
    assert [row.id for row in clean] == ["a", "b", "b too"] and Path(clean[0].video).exists()
    assert read_manifest(tmp_path / "out/clean.jsonl").columns == ["id", "video", "texts"]
    with pytest.raises(HarvestError, match="cannot write into"):
        write_report(Path("/proc/nowhere"), "x", examples, found)
    with pytest.raises(HarvestError, match="nothing to check"):
        check([], CheckConfig())


def test_histograms() -> None:
    values = [float(v) for v in range(1000)] + [1e9]
    bars = histogram(values)
    assert len(bars) == BINS and sum(count for _, count in bars) == 1001 and bars[-1][0] < 1000
    assert histogram([5.0, 5.0])[0][1] == 2
    assert summary([3.0, 1.0, 2.0]) == {
        "smallest": 1,
        "a quarter below": 1,
        "half below": 2,
        "three quarters below": 3,
        "largest": 3,
        "mean": 2,
    }


def wait_or_fail(seconds: float) -> float:
    if seconds < 0:
        raise HarvestError("negative")
    time.sleep(seconds)
    return seconds


def test_guarded_map_keeps_the_order() -> None:
    arguments = [(0.02 * (3 - place % 4),) for place in range(12)]
    arguments[4], arguments[7] = (-1.0,), (100.0,)
    results = list(guarded_map(wait_or_fail, arguments, workers=3, limit_s=3))
    assert isinstance(results[4], HarvestError) and isinstance(results[7], Lost)
    for place, (args, result) in enumerate(zip(arguments, results, strict=True)):
        assert place in (4, 7) or result == args[0]


def test_labels_and_boxes_say_something_too(examples: list[Example]) -> None:
    video = examples[0].video
    rows = [
        Example("several", video, labels=(1, 2)),
        Example("boxes", video, boxes=(Box((0.0, 0.0, 1.0, 1.0), (0,)),)),
        Example("one", video, label=3),
        Example("none", video),
    ]
    assert check(rows, CheckConfig()).silent == {"none": "no caption"}


def test_clips_that_differ_in_colour_alone_are_no_duplicates(tmp_path: Path) -> None:
    rows = []
    for name, place in (("red", 0), ("green", 1), ("blue", 2)):
        frames = torch.zeros(16, 3, 48, 64, dtype=torch.uint8)
        frames[:, place] = 190
        write_video(tmp_path / f"{name}.mp4", frames, fps=8, crf=18)
        rows.append(Example(name, str(tmp_path / f"{name}.mp4"), (f"it is all {name}",)))
    frames = torch.tensor([186, 3, 3]).byte()[:, None, None].expand(16, 3, 48, 64)
    write_video(tmp_path / "red again.mp4", frames.contiguous(), fps=8, crf=30)
    rows.append(Example("red again", str(tmp_path / "red again.mp4"), ("red once more",)))
    assert check(rows, CheckConfig()).duplicate == {"red again": "shows what red shows"}


def test_rows_that_repeat_another_are_duplicates(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.zeros(12, 3, 16, 16, dtype=torch.uint8), fps=6)
    lines = [
        {"video": "a.mp4", "caption": text} for text in ("a black screen", "nothing at all", "a black screen")
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_manifest(tmp_path / "m.jsonl")
    assert rows.repeated == ["a.mp4#3"] and "1 rows repeat another row" in rows.summary()
    found = check(rows, CheckConfig(), workers=1)
    assert found.duplicate == {"a.mp4#3": "says what a row before says of the same stretch"}
    assert found.useless == {"a.mp4#3"}
