from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from harvest.interfaces import HarvestError
from harvest.training.checkpoint import CheckpointWriter, load_checkpoint, newest_weights
from harvest.training.optim import OptimConfig, build_optimizer


class Run:
    """A layer and its optimizer, a few steps old."""

    def __init__(self, folder: Path, width: int = 4) -> None:
        self.folder = folder
        self.layer = nn.Linear(width, 3)
        self.optimizer = build_optimizer(self.layer, OptimConfig(lr=0.1))

    def step(self) -> None:
        self.layer(torch.ones(2, self.layer.in_features)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step: int) -> None:
        with CheckpointWriter(self.folder, keep_last=2) as writer:
            writer.save(step, objective=self.layer, optimizer=self.optimizer)

    def load(self) -> int | None:
        return load_checkpoint(self.folder, objective=self.layer, optimizer=self.optimizer)

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


def test_what_is_saved_goes_on_to_the_bit(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(3):
        run.step()
    run.save(3)
    for _ in range(3):
        run.step()
    other = Run(tmp_path)
    assert other.load() == 3
    for _ in range(3):
        other.step()
    assert torch.equal(run.layer.weight, other.layer.weight) and torch.equal(run.layer.bias, other.layer.bias)


def test_a_new_run_has_none(tmp_path: Path) -> None:
    assert Run(tmp_path).load() is None


def test_the_newest_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (3, 20, 100):
        run.save(step)
    (tmp_path / "checkpoints" / ".step-00000101-abc").mkdir()  # as a kill while saving leaves it
    assert run.load() == 100
    run.save(1000)
    assert run.names() == ["step-00000100", "step-00001000"]


def test_a_checkpoint_of_another_model_lists_the_keys(tmp_path: Path) -> None:
    Run(tmp_path).save(1)
    with pytest.raises(HarvestError, match=r"wrong shape.*weight: \[3, 4\] here, \[3, 5\] expected"):
        Run(tmp_path, width=5).load()
    other = Run(tmp_path)
    other.layer = nn.Sequential(other.layer)  # type: ignore[assignment]
    with pytest.raises(
        HarvestError, match=r"(?s)missing \(2\): 0.bias, 0.weight.*left over \(2\): bias, weight"
    ):
        other.load()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the moments": lambda newest: flip(newest / "moments.safetensors", -3),
    "a bit of the weights": lambda newest: flip(newest / "weights.safetensors", -3),
    "half of the weights": lambda newest: (newest / "weights.safetensors").write_bytes(b"half"),
    "no moments": lambda newest: (newest / "moments.safetensors").unlink(),
    "no state": lambda newest: (newest / "state.json").unlink(),
    "junk": lambda newest: (newest / "state.json").write_text("{"),
    "another step": lambda newest: (newest / "state.json").write_text('{"step": 1, "checksums": {}}'),
    "no checksums": lambda newest: (newest / "state.json").write_text('{"step": 2}'),
    "empty": lambda newest: [path.unlink() for path in newest.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.step()
    run.save(1)
    kept = run.layer.weight.clone()
    run.step()
    run.save(2)
    DAMAGES[damage](tmp_path / "checkpoints" / "step-00000002")
    with pytest.raises(HarvestError, match="step-00000002"):
        newest_weights(tmp_path)
    assert run.load() == 1 and torch.equal(run.layer.weight, kept)
    assert "damaged-step-00000002; going on from step-00000001" in capsys.readouterr().err
    assert run.names() == ["damaged-step-00000002", "step-00000001"]
    run.save(2)
    assert run.load() == 2


def test_no_whole_checkpoint_is_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    run.save(1)
    flip(tmp_path / "checkpoints" / "step-00000001" / "moments.safetensors", -3)
    with pytest.raises(HarvestError, match=r"moments.safetensors has changed.*no whole checkpoint"):
        run.load()
    assert run.names() == ["step-00000001"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)
    with torch.no_grad():
        run.layer.bias[0] = float("nan")
    with pytest.raises(HarvestError, match=r"not finite in 1 weights \(first: bias\)"):
        run.save(2)
    assert run.names() == ["step-00000001"]


@pytest.mark.parametrize("where", ["weights", "moments"])
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = Run(tmp_path)
    run.step()
    run.save(1)
    kept = run.layer.weight.clone()
    run.step()

    write = safetensors.torch.save_file

    def refuse(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name.startswith(where):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", refuse)
        with pytest.raises(HarvestError, match=r"No space left.*intact"):
            run.save(2)
    assert run.names() == ["step-00000001"]
    assert run.load() == 1 and torch.equal(run.layer.weight, kept)
    run.save(2)
    assert run.load() == 2


class Slow:
    """A disk on which weights take as long to write as a test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.error: OSError | None = None
        self.write = safetensors.torch.save_file
        monkeypatch.setattr(safetensors.torch, "save_file", self)

    def __call__(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        self.begun.set()
        assert self.may_go_on.wait(30)
        if self.error is not None:
            raise self.error
        self.write(tensors, path)


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, disk = Run(tmp_path), Slow(monkeypatch)
    run.step()
    with CheckpointWriter(tmp_path, keep_last=2) as writer:
        writer.save(1, objective=run.layer, optimizer=run.optimizer)
        assert disk.begun.wait(30)
        then, moments = run.layer.weight.clone(), run.optimizer.state[run.layer.weight]["exp_avg"].clone()
        run.step()  # while it is written
        assert not torch.equal(run.layer.weight, then) and not run.load() and not writer.failed
        again = threading.Thread(
            target=writer.save, args=(2,), kwargs={"objective": run.layer, "optimizer": run.optimizer}
        )
        again.start()  # waits for the first
        again.join(0.1)
        assert again.is_alive()
        disk.may_go_on.set()
        again.join(30)
    assert run.names() == ["step-00000001", "step-00000002"]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    other = Run(tmp_path)
    assert other.load() == 1 and torch.equal(other.layer.weight, then)
    assert torch.equal(other.optimizer.state[other.layer.weight]["exp_avg"], moments)
    assert torch.equal(newest_weights(tmp_path)["weight"], then)


def test_a_disk_that_fills_while_training_goes_on_is_told_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.save(1)
    with monkeypatch.context() as patched:
        disk = Slow(patched)
        disk.error = OSError(errno.ENOSPC, "No space left on device")
        writer = CheckpointWriter(tmp_path, keep_last=2)
        writer.save(2, objective=run.layer, optimizer=run.optimizer)
        assert disk.begun.wait(30) and not writer.failed
        disk.may_go_on.set()
        while not writer.failed:
            time.sleep(0.001)
        with pytest.raises(HarvestError, match=r"(?s)could not save a checkpoint.*No space left.*intact"):
            writer.save(3, objective=run.layer, optimizer=run.optimizer)
    assert run.names() == ["step-00000001"] and run.load() == 1
    with pytest.raises(ZeroDivisionError), writer:  # another error is not hidden by one of the disk
        _ = 1 / 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 192 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "width", [4000, 7000]
)  # moments, and weights themselves, do not fit beside the first
def test_a_really_full_disk(small_disk: Path, width: int) -> None:
    run = Run(small_disk, width=width)
    run.save(1)  # no moments yet: 48 or 84 kB
    run.step()
    with pytest.raises(HarvestError, match="could not save a checkpoint"):
        run.save(2)
    assert run.names() == ["step-00000001"] and Run(small_disk, width=width).load() == 1
