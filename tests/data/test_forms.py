"""Every published layout of ../shared/training_sets gives exactly its expected rows, or is refused by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from harvest.data.forms import FORMS
from harvest.data.manifest import read_manifest
from harvest.data.rows import read_rows, video_of
from harvest.data.video import PackedVideo, probe
from harvest.interfaces import Example, HarvestError

SETS = Path(__file__).resolve().parents[3] / "shared/training_sets"
INDEX = list(csv.DictReader((SETS / "INDEX.csv").read_text("utf-8").splitlines())) if SETS.exists() else []

FORM_OF_ROWS = {"finevideo/expected_activities.jsonl": "finevideo-activities"}
FORM_OF_FILE = {"msrvtt/msrvtt_ret_train9k.json": "caption-list"}
COLUMNS = {"hf_videofolder/train/metadata.jsonl": ["caption=additional_feature"]}
# what the index marks as no manifest, and what the refusal says
REFUSED = {
    "video2dataset/00000.parquet": "is the log of a download",
    "img2dataset/00000.parquet": "is the log of a download",
    "howto100m/HowTo100M_v1.csv": "holds ids and no captions",
}


def name_of(row: dict[str, str]) -> str:
    return f"{row['file']} {row['expected'].rpartition('/')[2]}"


def folder_of(row: dict[str, str]) -> Path | None:
    if row["videos"] in ("", "in the file"):
        return None
    if row["file"] == "video2dataset/files":
        return SETS / "video2dataset"
    return (
        SETS / row["videos"].removeprefix("training_sets/")
        if "clips/" not in row["videos"]
        else (SETS.parent / row["videos"])
    )


def read(row: dict[str, str]) -> list[Example]:
    path, videos = SETS / row["file"], folder_of(row)
    if row["file"].endswith("VideoUFO_1.tar"):  # its captions are in the table beside
        return list(read_manifest(SETS / "videoufo/VideoUFO.csv", videos=path.parent))
    if path.suffix == ".tar" or path.is_dir():
        return read_rows(str(path))[0]
    return read_manifest(
        path,
        videos=videos,
        captions_required="no caption" not in row["form"],
        form=FORM_OF_ROWS.get(row["expected"]) or FORM_OF_FILE.get(row["file"], ""),
        columns=COLUMNS.get(row["file"], ()),
    )


def as_expected(example: Example, row: dict[str, str]) -> dict[str, Any]:
    video = example.video
    if isinstance(video_of(video), PackedVideo):
        video = "(bytes)"
        assert probe(video_of(example.video)).duration_s >= 0
    elif "://" not in video:
        assert Path(video).exists()
        folder = folder_of(row)
        video = Path(video).relative_to(folder if folder is not None else SETS).as_posix()
    said: dict[str, Any] = {"id": example.id, "video": video, "texts": list(example.texts)}
    if example.end_s is not None:
        said |= {"start_s": example.start_s, "end_s": example.end_s}
    return said | ({} if example.label is None else {"label": example.label})


@pytest.mark.skipif(not INDEX, reason="the samples of training sets are not here")
@pytest.mark.parametrize("row", INDEX, ids=name_of)
def test_every_published_layout(row: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if row["file"] in REFUSED:
        with pytest.raises(HarvestError, match=REFUSED[row["file"]]):
            read(row)
        return
    wanted = [json.loads(line) for line in (SETS / row["expected"]).read_text("utf-8").splitlines()]
    for want in wanted:
        want.pop("template", None)
    got = [as_expected(example, row) for example in read(row)]
    if (SETS / row["file"]).suffix == ".tar" and "VideoUFO" not in row["file"]:
        for one, want in zip(got, wanted, strict=True):  # a sample's id is its address
            one["id"] = want["id"]
    assert got == wanted
    assert len(got) == int(row["rows"])


def test_every_set_is_described() -> None:
    for form in FORMS.values():
        assert form.title and form.columns
        assert form.refusal or form.entries or form.terms


@pytest.mark.skipif(not INDEX, reason="the samples of training sets are not here")
def test_paragraphs_instead_of_sentences() -> None:
    folder = SETS / "activitynet"
    rows = read_manifest(folder / "train.json", videos=folder / "videos", form="activitynet-paragraphs")
    wanted = [json.loads(line) for line in (folder / "expected_paragraph.jsonl").read_text().splitlines()]
    assert [(row.id, Path(row.video).name, list(row.texts)) for row in rows] == [
        (want["id"], want["video"], want["texts"]) for want in wanted
    ]
