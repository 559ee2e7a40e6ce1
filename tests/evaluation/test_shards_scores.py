"""From shards of the very same files the numbers are those from the files, for every task that shards can hold."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest

from harvest.cli import main
from harvest.data.manifest import write_manifest
from harvest.data.rows import read_rows
from harvest.evaluation import evaluate
from harvest.evaluation.settings import EvalSettings
from harvest.model.folder import save_model

from .conftest import SENTENCES, World


@pytest.fixture
def packed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards with the files of the world's clips, in video2dataset's layout; each is a choice and has a label."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(2):
        with tarfile.open(tmp_path / f"{number:05d}.tar", "w") as tar:
            for place in (2 * number, 2 * number + 1):
                said = {"texts": list(SENTENCES), "label": place}
                for suffix, content in (
                    ("mp4", Path(world.examples[place].video).read_bytes()),
                    ("json", json.dumps(said).encode()),
                ):
                    info = tarfile.TarInfo(f"{place:08d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return tmp_path


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("retrieval", {}),
        ("retrieval", {"image": True}),
        ("retrieval", {"budget": 6, "selector": "motion"}),
        ("choice", {}),
        ("recognition", {}),
    ],
)
def test_the_numbers_are_those_of_the_files(world: World, packed: Path, task: str, settings: dict) -> None:
    files = [
        dataclasses.replace(row, texts=SENTENCES, label=place) for place, row in enumerate(world.examples)
    ]
    shards, _ = read_rows(str(packed / "{00000..00001}.tar"))
    one, other = (
        evaluate(
            world.model,
            world.tokenizer,
            rows,
            task=task,
            names=list(SENTENCES) if task == "recognition" else None,
            settings=EvalSettings(batch_size=3, **settings),
        )
        for rows in (files, shards)
    )
    assert one.metrics == other.metrics and one.counts == other.counts
    for name, credits in one.credits.items():
        assert credits.values.equal(other.credits[name].values)


def test_from_the_command_line(
    world: World, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", world.model, world.tokenizer)
    files = [
        dataclasses.replace(row, texts=SENTENCES, label=place) for place, row in enumerate(world.examples)
    ]
    write_manifest(tmp_path / "rows.jsonl", files)
    said = []
    for data in (tmp_path / "rows.jsonl", packed, packed / "{00000..00001}.tar"):
        line = f"evaluate {tmp_path / 'model'} --data {data} --workers 1 --out {tmp_path / 'out.json'}"
        assert main(line.split()) == 0, capsys.readouterr().err
        said.append(json.loads((tmp_path / "out.json").read_text()))
    assert said[0]["metrics"] == said[1]["metrics"] == said[2]["metrics"]
    with tarfile.open(packed / "00002.tar", "w") as tar:
        info = tarfile.TarInfo("9.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    assert main(line.replace("00001}", "00002}").split()) == 0
    assert "00002.tar/9:novideoorpicture" in "".join(capsys.readouterr().out.split())
    assert "no video or picture" in next(
        iter(json.loads((tmp_path / "out.json").read_text())["missing"].values())
    )
    assert main([*line.split(), "--task", "qa"]) == 2
    assert "has no question: both are needed (tar shards hold none" in " ".join(
        capsys.readouterr().err.split()
    )
