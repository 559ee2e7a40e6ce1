"""Fine-tuning reads labels from shards; what shards do not hold is told before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harvest.config import RunConfig
from harvest.data.manifest import read_manifest
from harvest.data.options import PrepareConfig
from harvest.data.prepare import prepare
from harvest.data.video import write_video
from harvest.interfaces import Example, HarvestError
from harvest.training.loop import train

TinyRun = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for number in range(6):
        video = torch.full((8, 3, 64, 64), 40 * number, dtype=torch.uint8)
        write_video(folder / f"{number}.mp4", video, fps=4)
        rows.append(Example(f"e{number}", str(folder / f"{number}.mp4"), label=number % 3))
    prepare(rows, folder / "shards", PrepareConfig(short_side=64, clips_per_shard=4), workers=0)
    (folder / "classes.txt").write_text("dark\nmiddling\nbright\n")
    (folder / "two.txt").write_text("dark\nbright\n")
    return folder


def run_of(
    tiny_run: TinyRun, packed: Path, name: str = "mini-actions", classes: str | None = None
) -> RunConfig:
    data = {"train": str(packed / "shards"), "cache": "none", "workers": 0}
    objective = {} if classes is None else {"classes": str(packed / classes)}
    return tiny_run(name, data=data, objective=objective, loop={"steps": 2, "global_batch": 4})


def test_actions_are_learnt_from_shards(tiny_run: TinyRun, packed: Path, tmp_path: Path) -> None:
    train(run_of(tiny_run, packed, classes="classes.txt"), tmp_path / "run")
    told = json.loads((tmp_path / "run/model/head.json").read_text())
    assert told["names"] == ["dark", "middling", "bright"]


@pytest.mark.parametrize(
    "name, classes, says",
    [
        ("mini-actions", None, "--objective.classes FILE"),
        (
            "mini-actions",
            "two.txt",
            r"2 of 6 samples of the shards have no label from 0 to 1; first: .*#2 \(2\)",
        ),
        ("mini-umt-qa", None, "hold captions and labels, no boxes"),
    ],
)
def test_what_shards_do_not_hold_is_told(
    name: str, classes: str | None, says: str, tiny_run: TinyRun, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(HarvestError, match=says):
        train(run_of(tiny_run, packed, name, classes), tmp_path / "run")


def test_shards_in_place_of_a_manifest_are_told(packed: Path) -> None:
    with pytest.raises(HarvestError, match="give the manifest that they were prepared from"):
        read_manifest(packed / "shards")
    with pytest.raises(HarvestError, match="give the manifest that they were prepared from"):
        read_manifest(packed / "shards/shard-000000.tar")
