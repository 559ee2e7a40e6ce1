from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harvest.cli import main
from harvest.data.manifest import write_manifest
from harvest.data.miniworld import MiniWorldConfig, directions, write_miniworld
from harvest.data.read_once import eval_batches
from harvest.data.sampling import frame_places
from harvest.evaluation import evaluate, motion_truth, table
from harvest.evaluation.motion_truth import by_direction
from harvest.evaluation.result import Credits, Result
from harvest.model.folder import save_model
from harvest.parallel import generator_for

from .conftest import World

HOW = {"num_frames": 6, "image_size": 32, "batch_size": 3, "workers": 0}


def test_places() -> None:
    def places(order: str, num_frames: int) -> list[int]:
        return frame_places(order, num_frames, generator=generator_for(0)).tolist()

    assert places("forward", 4) == [0, 1, 2, 3]
    assert places("reversed", 4) == [3, 2, 1, 0]
    assert places("one_frame", 5) == [2] * 5
    assert sorted(places("shuffled", 8)) == list(range(8))
    assert places("shuffled", 2) == [1, 0]  # never the true order
    assert places("shuffled", 1) == [0]


def shown(world: World, order: str, **how: object) -> Tensor:
    return torch.cat([video for _, video in eval_batches(world.examples, frame_order=order, **(HOW | how))])


def test_clips_lose_their_time_and_nothing_else(world: World) -> None:
    true = shown(world, "forward")
    assert torch.equal(shown(world, "reversed"), true.flip(1))
    assert torch.equal(shown(world, "one_frame"), true[:, 3:4].expand_as(true))
    shuffled = shown(world, "shuffled")
    for clip, other in zip(true, shuffled, strict=True):
        assert not torch.equal(clip, other)
        assert sorted(f.sum().item() for f in clip) == sorted(f.sum().item() for f in other)
    assert torch.equal(shown(world, "shuffled", batch_size=1), shuffled)  # a clip's order is its own


def test_every_view_is_shown_in_the_same_order(world: World) -> None:
    how = HOW | {"views": (2, 1)}
    true = torch.cat([video for _, video in eval_batches(world.examples, **how)])
    turned = torch.cat([video for _, video in eval_batches(world.examples, frame_order="reversed", **how)])
    assert torch.equal(turned, true.flip(2))


def test_columns_are_the_evaluations_of_such_clips(world: World) -> None:
    def score(order: str) -> Result:
        return evaluate(world.model, world.tokenizer, world.examples, task="retrieval", frame_order=order)

    result = motion_truth(score)
    for order in ("reversed", "shuffled", "one_frame"):
        alone = score(order)
        assert alone.settings["frame_order"] == order
        for name, value in alone.metrics.items():
            assert result.metrics[f"{name}.{order}"] == value
        assert result.intervals[f"t2v_r1.{order}"] == alone.intervals["t2v_r1"]
    assert result.metrics.items() >= score("forward").metrics.items()
    assert "Motion truth test" in result.protocol and result.settings["motion_truth"]


def test_what_time_is_worth() -> None:
    """Of 200 questions all are right in time, a quarter without; a second model does not look at time."""
    group = torch.arange(200)
    quarter = (group % 4 == 0).double()

    def result(values: Tensor) -> Result:
        credits = {"accuracy": Credits(values, group)}
        metrics = {"accuracy": float(values.mean()), "chance": 0.25}
        return Result("choice", "video", "Asked.", metrics, credits=credits)

    sees = motion_truth(lambda order: result(torch.ones(200) if order == "forward" else quarter))
    assert sees.metrics["accuracy.shuffled"] == 0.25 and "chance.shuffled" not in sees.metrics
    (said,) = sees.findings
    assert said.startswith("Of accuracy, 100.0 %: the order of frames is worth 75.0 points (95 %: 6")
    assert "nothing" not in said
    blind = motion_truth(lambda order: result(quarter))
    assert "is worth 0.0 points (95 %: 0.0 to 0.0), which may be nothing" in blind.findings[0]
    assert list(table(sees).columns[0].cells)[-3:] == [
        "accuracy.reversed",
        "accuracy.shuffled",
        "accuracy.one_frame",
    ]


def test_a_direction_backwards_is_its_opposite_the_rest_is_the_same() -> None:
    """A model that sees time, asked 120 questions, every third of them about a direction."""
    has_direction = {str(number): number % 3 == 0 for number in range(120)}
    groups = by_direction(has_direction)
    assert groups is not None and by_direction({}) is None
    sort = torch.tensor([groups[id] == "direction" for id in has_direction])

    def score(order: str) -> Result:
        right = {"forward": torch.ones(120), "reversed": (~sort).float()}.get(order, torch.ones(120) / 4)
        credits = {
            name: Credits(right[rows].double(), torch.arange(len(right[rows])))
            for name, rows in (
                ("accuracy", sort | ~sort),
                ("accuracy.direction", sort),
                ("accuracy.no_direction", ~sort),
            )
        }
        metrics = {name: float(credit.values.mean()) for name, credit in credits.items()} | {"chance": 0.25}
        counts = {"questions.direction": int(sort.sum()), "questions.no_direction": int((~sort).sum())}
        return Result("choice", "video", "Asked.", metrics, counts, credits=credits)

    result = motion_truth(score)
    assert result.metrics["accuracy.direction.reversed"] == 0.0
    assert result.metrics["accuracy.no_direction.reversed"] == 1.0
    _, direction, others = result.findings
    assert "Of 40 questions whose motion has a direction, 100.0 %" in direction
    assert "0.0 % reversed (95 %: 0.0 to 0.0; chance 25.0 %)" in direction and "opposite" in direction
    assert "Of 80 questions whose motion has no direction" in others and "100.0 % reversed" in others


def test_the_mini_worlds_questions_are_told_apart(world: World, tmp_path: Path, capsys) -> None:
    save_model(tmp_path / "model", world.model, world.tokenizer)
    made = write_miniworld(tmp_path / "world", MiniWorldConfig(train=1, retrieval=1, questions=12), workers=1)
    out = tmp_path / "result.json"
    line = f"evaluate {tmp_path / 'model'} --task choice --workers 0 --out {out} --data "
    assert main([*line.split(), str(made.motion_choice)]) == 0
    found = json.loads(out.read_text())
    count = sum(directions(made.motion_choice).values())
    assert found["counts"]["questions.direction"] == count and 0 < count < 12
    assert found["counts"]["questions.no_direction"] == 12 - count
    assert "accuracy.direction.reversed" in found["metrics"] and len(found["findings"]) == 3
    assert main([*line.split(), str(made.appearance_choice)]) == 0
    found = json.loads(out.read_text())
    assert "accuracy.reversed" in found["metrics"] and "accuracy.direction" not in found["metrics"]


@pytest.mark.parametrize(
    ("flags", "is_miniworld", "asked"),
    [
        ("", False, False),
        ("--motion-truth yes", False, True),
        ("", True, True),
        ("--motion-truth no", True, False),
    ],
)
def test_the_mini_world_asks_by_itself(
    flags: str, is_miniworld: bool, asked: bool, world: World, tmp_path: Path, capsys
) -> None:
    save_model(tmp_path / "model", world.model, world.tokenizer)
    write_manifest(tmp_path / "rows.jsonl", world.examples)
    if is_miniworld:
        (tmp_path / "world.json").write_text("{}")
    out = tmp_path / "result.json"
    line = f"evaluate {tmp_path / 'model'} --data {tmp_path / 'rows.jsonl'} --workers 0 --out {out} {flags}"
    assert main(line.split()) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert ("t2v_r1.reversed" in metrics) == asked
    printed = " ".join(capsys.readouterr().out.split())
    assert "Cosines of embeddings only: 4 captions against 4 videos" in printed
    assert ("the order of frames is worth" in printed) == asked


def test_a_result_is_the_same_with_other_draws() -> None:
    """Equality is of what is said, not of the tensors behind it."""
    one = Result(
        "choice",
        "video",
        "",
        {"accuracy": 1.0},
        credits={"accuracy": Credits(torch.ones(3), torch.arange(3))},
    )
    assert one == dataclasses.replace(one, credits={})
