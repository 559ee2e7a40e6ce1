"""Scores during training: they change nothing, are the evaluators' own, survive a kill to the bit, and keep the best."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_loop import finished, metrics, on_ranks, start, wait_for, weights

from harvest.config import RunConfig
from harvest.data.manifest import read_manifest
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks import evaluate
from harvest.files import checksums_of
from harvest.interfaces import HarvestError
from harvest.model.folder import load_model
from harvest.training.loop import train

TinyRun = Callable[..., RunConfig]
EVAL = {"data": ("mini-world/retrieval", "mini-world/motion_choice"), "every": 3}


def scores(run: Path) -> list[dict]:
    return [line for line in metrics(run) if "retrieval/t2v_r1" in line]


def best(run: Path) -> dict:
    return json.loads((run / "best" / "scores.json").read_text())


@pytest.fixture(scope="module")
def scored(runs: Path, tiny_run: TinyRun) -> Path:
    run = runs / "scored"
    train(tiny_run(eval=EVAL, loop={"keep_last": 9, "average_decay": 0.5}, blend=0.75), run)
    return run


def test_scores_are_those_of_the_evaluators_and_the_best_is_kept(
    scored: Path, runs: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = scores(scored)
    assert [line["step"] for line in lines] == [0, 3, 6, 8]
    kept = best(scored)
    found = [line["retrieval/t2v_r1"] for line in lines]
    assert kept["step"] == lines[found.index(max(found))]["step"]  # of equals the first
    config = tiny_run()
    for folder, line in ((scored / "best", next(x for x in lines if x["step"] == kept["step"])),
                         (scored / "model", lines[-1])):  # fmt: skip
        model, tokenizer = load_model(folder)
        world = next(runs.glob("mini-world-*"))
        for name, task in (("retrieval", "retrieval"), ("motion_choice", "choice")):
            settings = EvalSettings(precision=config.loop.precision)
            examples = read_manifest(world / f"{name}.jsonl")
            result = evaluate(model, tokenizer, examples, task=task, settings=settings)
            assert {f"{name}/{key}": value for key, value in result.metrics.items()}.items() <= line.items()


def test_an_evaluation_changes_nothing(scored: Path, runs: Path, tiny_run: TinyRun) -> None:
    run = runs / "unscored"
    train(tiny_run(loop={"average_decay": 0.5}, blend=0.75), run)
    a, b = weights(run), weights(scored)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    losses = [line["loss"] for line in metrics(scored) if "loss" in line]
    assert losses == [line["loss"] for line in metrics(run)]
    assert not (run / "best").exists()


def goes_on_from_step_3(run: Path) -> None:
    """As after a kill when step 3 was the last one saved."""
    shutil.rmtree(run / "model")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("has_scores", [True, False], ids=["after its scores", "before its scores"])
def test_a_killed_run_has_the_same_scores_and_the_same_best(
    has_scores: bool, scored: Path, runs: Path, tiny_run: TinyRun
) -> None:
    run = runs / f"scored-again-{has_scores}"
    shutil.copytree(scored, run)
    goes_on_from_step_3(run)
    if not has_scores:  # killed while step 3 was scored
        lines = [json.dumps(line) for line in metrics(run)]
        at = next(n for n, line in enumerate(metrics(run)) if line["step"] == 3 and "loss" not in line)
        (run / "metrics.jsonl").write_text("\n".join(lines[:at]) + "\n")
        shutil.rmtree(run / "best")
        (run / ".best-leftover").mkdir()
    train(tiny_run(eval=EVAL, loop={"keep_last": 9, "average_decay": 0.5}, blend=0.75), run)
    assert scores(run) == scores(scored)
    if has_scores or best(scored)["step"] >= 3:
        assert checksums_of(run / "best") == checksums_of(scored / "best")
    assert checksums_of(run / "model") == checksums_of(scored / "model")
    assert has_scores or not list(run.glob(".best-*"))


@pytest.mark.slow
def test_over_sharded_ranks_with_a_resume(runs: Path, tiny_run: TinyRun) -> None:
    run = runs / "scored-ranks"
    config = tiny_run(eval=EVAL, loop={"parallel": "fsdp", "keep_last": 9, "steps": 6}, tuning={"steps": 0})
    said = on_ranks(2, config, run)
    assert "retrieval/t2v_r1" in said[0] and "the best so far" in said[0]
    assert "t2v_r1" not in said[1]
    lines, kept = scores(run), checksums_of(run / "best")
    assert [line["step"] for line in lines] == [0, 3, 6]
    model, tokenizer = load_model(run / "model")
    world = next(runs.glob("mini-world-*"))
    settings = EvalSettings(precision=config.loop.precision)
    alone = evaluate(
        model, tokenizer, read_manifest(world / "retrieval.jsonl"), task="retrieval", settings=settings
    )
    assert alone.metrics["t2v_mean_rank"] == lines[-1]["retrieval/t2v_mean_rank"]
    goes_on_from_step_3(run)
    on_ranks(2, config, run)
    assert scores(run) == lines and checksums_of(run / "best") == kept


def test_a_signal_ends_an_evaluation(runs: Path, tiny_run: TinyRun) -> None:
    """The step is saved, is scored again when the run goes on, and nothing is lost."""
    run = runs / "scored-stopped"
    config = tiny_run(eval={"data": EVAL["data"][:1], "every": 1}, loop={"steps": 300}, tuning={"steps": 0})
    process = start(config, run)
    wait_for(process, lambda: (run / "best").is_dir())
    process.send_signal(signal.SIGTERM)
    said = finished(process, code=128 + signal.SIGTERM)
    assert "the same command goes on" in said and "Traceback" not in said
    saved = max((run / "checkpoints").glob("step-*"), default=None)
    steps = [line["step"] for line in metrics(run) if "loss" in line]
    assert (steps[-1] if steps else 0) == (int(saved.name[5:]) if saved else 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mini-harvest", {"data": ("nowhere.jsonl",)}, "nowhere.jsonl"),
        ("mini-harvest", {"data": ("mini-world/nothing",)}, "has no part 'nothing'"),
        ("mini-harvest", {"data": ("mini-world/retrieval",) * 2}, "same name"),
        ("mini-videomae", {"data": ("mini-world/retrieval",)}, "need a text tower"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_run_begins(
    name: str, settings: dict, message: str, runs: Path, tiny_run: TinyRun
) -> None:
    with pytest.raises(HarvestError, match=message):
        train(tiny_run(name, eval=settings), runs / "refused")
    assert not (runs / "refused").exists()
