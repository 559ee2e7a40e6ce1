from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.machine import MachineSettings, machine


@pytest.mark.slow
def test_all_of_a_machine_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "machine.json"
    settings = MachineSettings(
        "mini", drop_ratios=(0.9,), batch=2, frames=2, workers=0, threads=1, seconds=0.05
    )
    machine(settings, out)
    found = json.loads(out.read_text())
    assert found.keys() == {"step", "data", "tokens", "copy_gb_per_s"}
    [row] = found["step"]["rows"]
    assert row["mfu"] == pytest.approx(row["gflop_per_s"] / row["ceiling_gflop_per_s"])
    assert 0 <= found["data"]["waiting"]["share"] <= 1
    assert len(found["data"]["rows"]) >= 4 and len(found["tokens"]["rows"]) >= 2
    told = capsys.readouterr().out
    for heading in ("The training step", "Reading clips", "Choosing tokens", "waiting for data"):
        assert heading in told
