"""Where a step's time goes: every part has some, backward counts to what it differentiates, and the trace opens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harvest.bench.step import StepSettings, measure_steps
from harvest.bench.trace import PARTS, by_part, cells_of
from harvest.cli import main


def test_a_step_by_parts(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "step.json"
    settings = StepSettings(
        "mini", (0.5,), frames=4, batch=2, precision="fp32", reference=True, seconds=0.01, threads=1
    )
    found = measure_steps(settings, trace=path).parts
    assert found is not None and list(found) == ["harvest, 50% dropped", "reference, 50% dropped"]
    assert all(parts.keys() == set(PARTS) and min(parts.values()) > 0 for parts in found.values())
    assert [row[0] for row in cells_of(found)] == list(PARTS)
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"part: attention", "part: MLP", "variant: harvest, 50% dropped"} <= names


def test_backward_counts_to_what_it_differentiates() -> None:
    def event(name: str, start: int, micros: int, parent: object = None, number: int = -1) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=start, end=start + 100),
            cpu_parent=parent,
            sequence_nr=number,
            self_cpu_time_total=micros,
        )

    step = event("variant: a step", 0, 1)
    tower = event("part: rest of the video tower", 1, 0, step)
    mlp = event("part: MLP", 2, 0, tower)
    back = event("autograd::engine::evaluate_function: MmBackward0", 20, 0, step, number=7)
    events = [
        *(step, tower, mlp, back),
        event("aten::mm", 3, 10, mlp, number=7),
        event("aten::add", 4, 5, tower, number=8),
        event("aten::mm", 21, 20, back),
        event("aten::sum", 30, 3, step),
        event("aten::mm", 500, 99),  # after the step
    ]
    found = by_part(events, is_cuda=False)["a step"]
    seconds = {part: round(micros * 1e6) for part, micros in found.items() if micros}
    assert seconds == {"MLP": 30, "rest of the video tower": 5, "losses": 3}


def test_compiled_blocks_have_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = f"bench step --model mini --compile --trace {tmp_path / 'step.json'}"
    assert main(asked.split()) == 2
    assert "--trace sees the parts of blocks that are not compiled" in capsys.readouterr().err
