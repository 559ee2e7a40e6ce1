"""WebVid's csv and real captioned clips, odd files among them, through the commands as typed; skipped where they are not."""

import csv
import json
from pathlib import Path

import pytest

from harvest.cli import main

CLIPS = Path(__file__).parents[3] / "shared/clips"
pytestmark = pytest.mark.skipif(not CLIPS.exists(), reason="the real clips are not here")
WEBVID = CLIPS / "webvid9/results_2M_val.csv"
ODD = (
    "OpenImageIO__crash_4163.gif",
    "media__sample_audio_only.mp4",
    "media__full_blocks.mkv",
)  # refused by the decoder


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def captioned_clips() -> list[dict[str, object]]:
    """The labelled clips, one a caption: two clips with one caption could not both be found first."""
    rows: dict[str, dict[str, object]] = {}
    with open(CLIPS / "INDEX.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["path"].startswith("labelled/") and row["label_or_caption"]:
                text = row["label_or_caption"]
                rows.setdefault(text, {"video": str(CLIPS / row["path"]), "texts": [text]})
    return list(rows.values())


@pytest.mark.slow
@pytest.mark.timeout(900)  # a CPU without bf16 takes minutes
def test_real_clips_are_learnt_by_heart_and_odd_files_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clips = captioned_clips()
    odd = [{"video": str(CLIPS / "decoder_cases" / name), "texts": [f"odd {name}"]} for name in ODD]
    odd.append({"video": str(CLIPS / "nowhere.mp4"), "texts": ["a file that is not there"]})
    more = write(tmp_path / "labelled.jsonl", clips + odd)
    run = tmp_path / "run"
    words = f"train mini-harvest --out {run} --data.train {WEBVID} --data.more {more} --data.cache memory"
    learn = (
        "--objective.text-tower trained --objective.no-cache-texts --objective.text-bank 0 --objective.selector random "
        "--objective.drop-ratio 0.75 --objective.masked-words-weight 0 --loop.global-batch 64 --loop.steps 150 --loop.threads 1 "
        "--tuning.steps 30 --tuning.drop-ratio 0 --tuning.lr 3e-4"
    )
    assert main([*words.split(), *learn.split()]) == 0
    told = capfd.readouterr().err
    assert "4 of" in told and "could not be read" in told
    broken = json.loads((run / "broken.json").read_text())
    assert {Path(name).name for name in broken} == {*ODD, "nowhere.mp4"}
    assert all(about["reason"] for about in broken.values())

    with WEBVID.open(encoding="utf-8") as file:
        webvid = [
            {"video": str(WEBVID.parent / "videos" / f"{row['videoid']}.mp4"), "texts": [row["name"]]}
            for row in csv.DictReader(file)
        ]
    assert len(webvid) == 9 and len(clips) > 100
    learnt = write(tmp_path / "learnt.jsonl", clips + webvid)
    out = tmp_path / "scores.json"
    assert (
        main(["evaluate", str(run / "model"), "--data", str(learnt), "--workers", "1", "--out", str(out)])
        == 0
    )
    scores = json.loads(out.read_text())
    assert scores["metrics"]["t2v_r1"] >= 0.9, scores["metrics"]
