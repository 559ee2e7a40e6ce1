"""`harvest bench gpu` on a CPU from end to end: what is on the page, what a failure leaves, and what goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harvest.bench import gpu
from harvest.cli import main
from harvest.interfaces import HarvestError
from harvest.objectives import OBJECTIVES
from harvest.objectives.multimodal import MultimodalConfig


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything but the tests of the repository."""
    out = tmp_path_factory.mktemp("gpu") / "page"
    parts = [part for part in gpu.PARTS if part != "tests"]
    assert (
        main(["bench", "gpu", "--out", str(out), "--device", "cpu", "--minutes", "30", "--parts", *parts])
        == 0
    )
    return out


def test_everything_runs_on_a_cpu(page: Path) -> None:
    found = json.loads((page / "gpu.json").read_text())["parts"]
    assert {name: told["failed"] for name, told in found.items()} == dict.fromkeys(set(gpu.PARTS) - {"tests"})
    assert {row["objective"] + "Config" for row in found["objectives"]["rows"]} >= {
        settings.__name__ for settings in OBJECTIVES if settings.__name__ != "ImageTextConfig"
    }
    assert len(found["objectives"]["rows"]) == len(OBJECTIVES)
    for row in (*found["objectives"]["rows"], *found["curve"]["rows"][1:]):
        assert row["ok"] and row["off"] == 0  # a CPU is equal to itself, all draws included
    first, last = (found["curve"]["rows"][0][name] for name in ("first", "last"))
    assert last < first  # it learns
    assert [row["drop_ratio"] for row in found["steps"]["rows"]] == [0.0, 0.5, 0.8, 0.9]
    assert {row["what"] for row in found["umt"]["rows"]} >= {"stage 1", "stage 1, teacher cached", "stage 2"}
    text = (page / "gpu.md").read_text()
    assert "| objectives: as on the CPU | 0 differ | yes |" in text
    assert "| b16, main stage, 64 clips: at most 8 GB | not measured |" in text


def test_what_is_done_is_not_measured_again(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (page / "gpu.json").read_text()
    monkeypatch.setattr(gpu, "PARTS", {})
    gpu.gpu_command(page, "cpu", parts=("curve",))
    assert (page / "gpu.json").read_text() == before
    (page / "gpu.json").write_text(before.replace('"threads":', '"other":'))
    with pytest.raises(HarvestError, match="of another machine"):
        gpu.gpu_command(page, "cpu")
    (page / "gpu.json").write_text(before[:-9])
    with pytest.raises(HarvestError, match="cannot be read"):
        gpu.gpu_command(page, "cpu")


def test_a_part_that_fails_or_takes_too_long_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every row that was found before on disk, also while the part goes on."""

    def fails(machine: gpu.Machine) -> Iterator[gpu.Row]:
        """Fails."""
        yield {"figure": 1.25}
        assert "1.25" in (tmp_path / "gpu.md").read_text()
        raise RuntimeError("out of | memory\nand more")

    def lasts(machine: gpu.Machine) -> Iterator[gpu.Row]:
        """Does not end."""
        yield {"figure": 2.5}
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    def ends(machine: gpu.Machine) -> Iterator[gpu.Row]:
        """Ends."""
        yield {"figure": 3.5}

    monkeypatch.setattr(gpu, "PARTS", {"steps": (fails, 1.0), "umt": (lasts, 1.0), "packed": (ends, 1.0)})
    gpu.gpu_command(tmp_path, "cpu", minutes=0.01, parts=("steps", "umt", "packed"))
    text = (tmp_path / "gpu.md").read_text()
    for said in ("1.25", "RuntimeError: out of | memory", "2.5", "stopped after its", "3.5"):
        assert said in text
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [told["done"] for told in found.values()] == [False, False, True]


def test_losses_depend_on_no_generator_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws from the device's own: a GPU's differ from a CPU's."""
    objective, batch = gpu.made(MultimodalConfig, clips=2)
    cpu = torch.device("cpu")
    found = []
    for seed in (1, 2):
        monkeypatch.setattr("harvest.objectives.multimodal.step_seed", lambda *_, of=seed: of)
        found.append(gpu.losses_of(objective, [batch], cpu, "fp32", steps=1))
    assert found[0] == found[1]


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(HarvestError, match="finds no GPU"):
            gpu.gpu_command(tmp_path / "none", "cuda")
        assert not (tmp_path / "none").exists()


def test_wrong_losses_do_not_hold() -> None:
    parts = {"objectives": {"done": True, "rows": [{"ok": True}, {"ok": False}]}}
    parts["steps"] = {"rows": [{"model": "b16", "drop_ratio": 0.9, "mfu": 0.5, "speedup": 7.0}]}  # type: ignore[dict-item]
    bars = {what: holds for what, _, holds in gpu.bars_of(parts)}
    assert bars["objectives: as on the CPU"] == "no" and bars["curve: as on the CPU"] == ""
    assert bars["b16, 90 % dropped: at least 45% of the ceiling"] == "yes"
    assert bars["b16: 90 % dropped at least 8 x as fast as 0 %"] == "no"
