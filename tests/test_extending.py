"""What it takes to add something from outside, counted: the table in docs/architecture.md must stay true."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import harvest
from harvest.cli import main
from harvest.data.manifest import write_manifest
from harvest.data.video import write_video
from harvest.evaluation import TASKS, evaluate, tasks
from harvest.evaluation.clips import Rows
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation, Task
from harvest.interfaces import Example

SOURCE = Path(harvest.__file__).parent


def files_that_say(pattern: str, *, but: set[str]) -> set[str]:
    """The files of the package, relative to it, in which a pattern occurs."""
    files = {str(path.relative_to(SOURCE)): path for path in SOURCE.rglob("*.py")}
    return {
        name for name, path in files.items() if re.search(pattern, path.read_text(encoding="utf-8"))
    } - but


# ---- a task ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brightness:
    """Is a clip bright or dark? A task that the package knows nothing of."""

    name: ClassVar[str] = "brightness"
    scored_by: ClassVar[str] = "a photometer"
    benchmarks: ClassVar[tuple[str, ...]] = ()
    names_in: ClassVar[str] = ""
    reads_head: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = False

    threshold: float = 128.0
    """Grey level above which a clip is bright."""

    def check(self, given: Evaluation) -> None: ...

    def score(self, given: Evaluation) -> Result:
        def encode(rows: Rows, video: Tensor) -> tuple[Tensor]:
            return (video.float().flatten(1).mean(dim=1),)

        found = given.collect(encode)
        is_bright = found.parts[0] > self.threshold
        label = torch.tensor([given.examples[place].label for place in found.asked])
        credit = choice_credit(torch.stack([~is_bright, is_bright], dim=1).float(), label)
        rows = found.row[found.asked]
        return Result(
            self.name,
            given.settings.mode,
            f"Grey levels; {given.shown}.",
            {"accuracy": float(credit.mean())},
            missing=found.broken,
            credits={"accuracy": Credits(credit, rows)},
        )


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    examples = [Example("gone", str(tmp_path / "gone.mp4"), label=0)]
    for number, grey in enumerate((20, 230, 40, 160)):
        video = str(tmp_path / f"{number}.mp4")
        write_video(Path(video), torch.full((4, 3, 64, 64), grey, dtype=torch.uint8), fps=4)
        examples.append(Example(str(number), video, label=int(grey > 200)))
    write_manifest(tmp_path / "rows.jsonl", examples)
    return tmp_path / "rows.jsonl"


def test_a_task_is_its_file_and_its_place_in_the_tuple(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "TASKS", (*TASKS, Brightness))  # the one file touched besides its own
    line = f"evaluate mini-image --data {manifest} --task brightness --threshold 200 --workers 0 --card {tmp_path / 'c'}"
    assert main([*line.split(), "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"]["accuracy"] == 1.0 and found["settings"]["threshold"] == 200.0
    assert list(found["missing"]) == ["gone"]
    assert (found["counts"]["rows"], found["counts"]["rows_scored"]) == (5, 4)
    (number,) = json.loads((tmp_path / "c" / "card.json").read_text())["numbers"]
    assert number["scored"] == "a photometer" and number["interval"] == [1.0, 1.0]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["evaluate", "--task", "brightness", "--help-all"])
    said = capsys.readouterr().out
    assert "--threshold" in said and "Grey level above which" in said and "--rerank-top-k" not in said


def test_a_task_from_outside_is_scored_by_the_public_function(manifest: Path) -> None:
    from harvest.data.manifest import read_manifest
    from harvest.model.importing.pretrained import load_any

    model, tokenizer, _ = load_any("mini-image")
    result = evaluate(model, tokenizer, read_manifest(manifest), task=Brightness())
    assert result.metrics["accuracy"] == 0.75 and result.scored_by == "a photometer"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_file_asks_which_task_it_is(task: type[Task]) -> None:
    """Besides its own file a task is named in the tuple; the demo chooses what it scores."""
    own = {f"{task.__module__.removeprefix('harvest.').replace('.', '/')}.py", "evaluation/tasks/__init__.py"}
    of_names = files_that_say(rf'(?<!\.)\btask(\.name)? (==|!=|in) .*"{task.name}"', but=own)
    assert not {
        name for name in of_names if not name.startswith("data/")
    }  # kinds of benchmarks have such names too
    of_classes = files_that_say(rf"import .*\b{task.__name__}\b", but=own)
    assert {name for name in of_classes if not name.startswith("demo")} == set()
