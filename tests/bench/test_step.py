from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harvest.bench.step import (
    StepSettings,
    default_batch,
    make_objective,
    measure_steps,
    model_config,
    step_gflop,
)
from harvest.interfaces import HarvestError
from harvest.objectives.reach import random_batch
from harvest.tokens import Selection


def test_variants_are_measured_side_by_side() -> None:
    result = measure_steps(
        StepSettings("mini", drop_ratios=(0.0, 0.9), frames=4, batch=2, words=8, seconds=0.05, reference=True)
    )
    assert [(row.variant, row.drop_ratio, row.kept) for row in result.rows] == [
        ("harvest", 0.0, 128),
        ("harvest", 0.9, 13),
        ("reference", 0.0, 128),
        ("reference", 0.9, 13),
    ]
    for row in result.rows:
        assert row.steps >= 2 and row.batch == 2
        assert row.clips_per_s == pytest.approx(2 / row.step_s)
        assert row.gflop_per_s == pytest.approx(row.gflop_per_clip * row.clips_per_s)
        assert row.ceiling_gflop_per_s > 0 and row.peak_gb is None  # a CPU's is the process's
        assert row.mfu == pytest.approx(row.gflop_per_s / row.ceiling_gflop_per_s)
    assert result.rows[0].speedup == 1.0
    assert result.rows[1].gflop_per_clip < result.rows[0].gflop_per_clip / 4


@pytest.mark.parametrize("settings", [{"cache_texts": True}, {"precision": "fp32"}, {"checkpointing": True}])
def test_settings(settings: dict) -> None:
    shape = {"drop_ratios": (0.5,), "frames": 2, "batch": 2, "words": 8}
    result = measure_steps(StepSettings("mini", seconds=0.02, **shape, **settings))
    assert result.rows[0].speedup is None
    assert result.settings | settings == result.settings


def test_the_reference_computes_the_same_loss() -> None:
    config = model_config("mini", frames=4)
    batch = random_batch(config, 3, 10, torch.device("cpu"))
    losses = []
    for plain in (False, True):
        objective = make_objective(config, cache_texts=False, plain=plain)
        objective.selection = Selection(0.9)
        losses.append(objective(batch, 1).total)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "kept", "expected"),
    # costs.md, C.4, whole training step; the class token of each frame and our self-attention among words are extra
    [("b16", 1568, 1126), ("b16", 784, 510), ("b16", 157, 114), ("l14", 2048, 5074), ("l14", 205, 443)],
)
def test_cost_by_formula(model: str, kept: int, expected: float) -> None:
    assert step_gflop(model_config(model, frames=8), kept=kept, words=77) == pytest.approx(expected, rel=0.06)


def test_a_batch_is_about_the_same_work_at_every_ratio() -> None:
    cpu = torch.device("cpu")
    assert [default_batch(ratio, cpu) for ratio in (0.0, 0.5, 0.9)] == [4, 8, 40]
    assert [default_batch(ratio, cpu, "l14") for ratio in (0.0, 0.9)] == [2, 20]


@pytest.mark.parametrize(
    "settings", [{"drop_ratios": (1.0,)}, {"drop_ratios": ()}, {"words": 2}, {"batch": 0}, {"image_size": 63}]
)
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(HarvestError, match="expected"):
        measure_steps(StepSettings("mini", seconds=0.01, **settings))


def test_as_a_user_types_it(tmp_path: Path) -> None:
    command = "bench step --model mini --drop-ratios 0 0.9 --batch 2 --frames 2 --words 8 --seconds 0.05 --threads 1"
    arguments = [
        sys.executable,
        "-m",
        "harvest",
        *command.split(),
        "--out",
        str(tmp_path / "deep" / "step.json"),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "90 %" in done.stdout and "clips/s" in done.stdout
    written = json.loads((tmp_path / "deep" / "step.json").read_text())
    assert len(written["rows"]) == 2 and written["machine"]["threads"] == 1


def test_prints_without_rich() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from harvest.bench.step import StepSettings, step_command\n"
        "step_command(StepSettings('mini', (0.5,), batch=2, frames=2, words=8, seconds=0.02))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "GFLOP/clip" in done.stdout, done.stderr
