"""Where a step's time goes: parts that add up, a trace that opens, and a model that is as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harvest.bench.trace import PARTS
from harvest.cli import main


def test_a_step_by_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traces" / "step.json"
    asked = "bench step --model mini --batch 2 --frames 4 --drop-ratios 0.5 --seconds 0.01 --precision fp32"
    assert main([*asked.split(), "--reference", "--threads", "1", "--trace", str(path)]) == 0
    said = capsys.readouterr().out
    lines = [line.strip("│ ") for line in said.splitlines()]
    rows = {part: next(line for line in lines if line.startswith(part)) for part in PARTS}
    shares = {part: [float(x) for x in re.findall(r"([\d.]+)%", row)] for part, row in rows.items()}
    for variant in range(2):
        of = {part: values[variant] for part, values in shares.items()}
        assert sum(of.values()) == pytest.approx(100, abs=1)
        assert all(of[part] > 0 for part in PARTS)
        assert of["attention"] + of["MLP"] > of["choosing"]
    events = json.loads(path.read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"part: attention", "part: MLP", "variant: harvest, 50% dropped"} <= names


def test_compiled_blocks_have_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = f"bench step --model mini --compile --trace {tmp_path / 'step.json'}"
    assert main(asked.split()) == 2
    assert "--trace sees the parts of blocks that are not compiled" in capsys.readouterr().err
