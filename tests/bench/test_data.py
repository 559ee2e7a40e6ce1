"""Ways of reading are compared on the same clips; a training run tells how long it waited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harvest.bench import data as module
from harvest.bench.data import draw_clips, measure_waiting, read_whole
from harvest.cli import main
from harvest.data.video import read_clip
from harvest.interfaces import Example


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SECONDS", 2)
        return draw_clips(folder, 2, size=(96, 64))


@pytest.mark.parametrize("seed", [None, 3])
def test_the_plain_reader_shows_the_frames_that_ours_does(clips: list[Example], seed: int | None) -> None:
    def generator() -> torch.Generator | None:
        return None if seed is None else torch.Generator().manual_seed(seed)

    whole = read_whole(clips[1], num_frames=5, image_size=32, generator=generator())
    ours = read_clip(clips[1].video, num_frames=5, image_size=32, generator=generator()).frames
    assert whole.equal(ours)


def test_four_ways_and_a_training_run(
    clips: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = tmp_path / "clips.jsonl", tmp_path / "data.json"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    paths = [*(clip.video for clip in clips), str(broken)]
    manifest.write_text("".join(json.dumps({"video": path}) + "\n" for path in paths))
    asked = f"bench data --manifest {manifest} --clips 3 --frames 4 --image-size 64 --short-side 64 --seconds 0.05"
    asked += f" --train mini --batch 2 --workers 0 --train-seconds 0.01 --out {out}"
    assert main(asked.split()) == 0
    result = json.loads(out.read_text())
    assert [row["way"] for row in result["rows"] if "torchcodec" not in row["way"]] == [
        "files, read whole",
        "files, by seeking",
        "shards of video",
        "shards of frames",
    ]
    assert result["settings"]["clips"] == 2  # the broken one is left out of every way
    assert "1 of 3 clips cannot be read" in capsys.readouterr().err
    for row in result["rows"]:
        assert row["clips"] >= 1 and row["frames_per_s"] == pytest.approx(4 * row["clips_per_s"])
        assert row["speedup"] == pytest.approx(row["clips_per_s"] / result["rows"][0]["clips_per_s"])
        assert 0 < row["mb_per_clip"] < 1
    waiting = result["waiting"]
    assert waiting["steps"] >= 2 and waiting["batch"] == 2 and 0 < waiting["share"] < 1


def test_waiting_is_seen(clips: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.measure_data(clips, tmp_path, frames=2, image_size=64, short_side=64, seconds=0.01)
    read = module.ClipDataset.__getitem__

    def slow(self: module.ClipDataset, keys):
        module.time.sleep(0.5)
        return read(self, keys)

    monkeypatch.setattr(module.ClipDataset, "__getitem__", slow)
    slowed = measure_waiting(tmp_path / "video", "mini", batch=2, frames=2, workers=0, seconds=0.01)
    step_s = slowed.batch / slowed.clips_per_s
    assert slowed.share < 1 and slowed.share * step_s >= 0.5


@pytest.mark.parametrize("wrong", ["--clips 0", "--seconds 0", "--frames 0", "--size 3 3"])
def test_what_cannot_be_measured_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1)
    asked = "bench data --clips 1 --size 64 64 --image-size 32 --short-side 32 --seconds 0.01 " + wrong
    assert main(asked.split()) == 2
