"""Ways of choosing tokens measured side by side: what is reported, written and drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harvest.bench.tokens import measure_tokens
from harvest.interfaces import HarvestError


def test_every_combination_is_a_row_and_all_is_seen_once() -> None:
    result = measure_tokens(
        "mini", selectors=("random", "motion"), budgets=(0.1, 1.0), batches=(2, 3), frames=4, seconds=0.01
    )
    assert [(row.selector, row.budget, row.batch) for row in result.rows] == [
        (keep, budget, batch)
        for batch in (2, 3)
        for keep, budget in (("random", 13), ("random", 128), ("motion", 13))
    ]
    for row in result.rows:
        assert row.steps >= 2 and row.clips_per_s == pytest.approx(row.batch / row.step_s)
        assert row.choose_ratio == pytest.approx(row.choose_s / row.step_s)
        assert row.peak_gb is None and not row.compiled
    assert result.compiled_after_warm_up == 0


@pytest.mark.parametrize(
    "wrong", [{"budgets": (0.0,)}, {"budgets": (1.1,)}, {"budgets": ()}, {"batches": (0,)}, {"selectors": ()}]
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(HarvestError, match="expected"):
        measure_tokens("mini", frames=2, seconds=0.01, **wrong)


def test_as_a_user_types_it(tmp_path: Path) -> None:
    command = "bench tokens --model mini --selectors random motion --budgets 0.1 0.5 --batches 2 --frames 2 --seconds 0.01"
    files = ["--out", str(tmp_path / "deep" / "t.json"), "--plot", str(tmp_path / "t.svg"), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "harvest", *command.split(), *files],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "motion" in done.stdout and "(50%)" in done.stdout
    assert len(json.loads((tmp_path / "deep" / "t.json").read_text())["rows"]) == 4
    assert (tmp_path / "t.svg").read_text().startswith("<svg")
