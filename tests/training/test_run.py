"""One run, one folder: locks, starts that fail, data that changed, signals to a launcher, and what is said meanwhile."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from test_loop import PATIENCE_S, finished, lines_of, metrics, start, wait_for, weights

from harvest.config import RunConfig, to_json
from harvest.data.manifest import read_manifest, write_manifest
from harvest.data.miniworld import write_miniworld
from harvest.interfaces import Example, HarvestError, Losses, RunStopped
from harvest.parallel import World
from harvest.training import loop
from harvest.training.loop import train
from harvest.training.prepare import Prepared
from harvest.training.run import LOCK, check_data, claimed, read_broken

TinyRun = Callable[..., RunConfig]


def test_a_folder_in_use_is_refused_and_free_again_after_a_kill(runs: Path, tiny_run: TinyRun) -> None:
    run = runs / "in-use"
    config = tiny_run(loop={"steps": 500, "save_every": 1000})
    process = start(config, run)
    wait_for(process, lambda: lines_of(run) >= 2)
    with pytest.raises(HarvestError, match=rf"in-use is being trained by process {process.pid} on "):
        train(config, run)
    process.kill()
    process.communicate()
    with claimed(run, config, World()):  # although its loader's workers live on for some seconds
        pass
    assert lines_of(run) >= 2


def test_a_start_that_fails_leaves_the_folder_free(runs: Path, tiny_run: TinyRun) -> None:
    run = runs / "failed"
    config = tiny_run(loop={"steps": 1}, tuning={"steps": 0})
    wrong = dataclasses.replace(config, start=dataclasses.replace(config.start, model="no/such/model/here"))
    with pytest.raises(HarvestError, match="no such file or folder"):
        train(wrong, run)
    assert not run.exists()
    train(config, run)
    assert (run / "model").is_dir() and (run / LOCK).is_file()


def test_a_run_does_not_go_on_with_other_rows_unless_that_is_meant(
    runs: Path, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = tiny_run(loop={"steps": 2, "save_every": 1}, tuning={"steps": 0})
    world = write_miniworld(runs / f"mini-world-{config.world.train}-{config.world.seed}", config.world)
    rows = read_manifest(world.train)
    manifest = tmp_path / "rows.jsonl"
    write_manifest(manifest, rows)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(manifest)))
    run = tmp_path / "run"
    train(config, run)
    write_manifest(manifest, rows)  # the same again
    train(config, run)
    write_manifest(manifest, rows[1:])
    with pytest.raises(
        HarvestError, match=rf"data.train has changed .* {len(rows)} rows then, {len(rows) - 1} now"
    ):
        train(config, run)
    other = [dataclasses.replace(rows[0], texts=("something else",)), *rows[1:]]
    write_manifest(manifest, other)
    with pytest.raises(HarvestError, match=r"--data\.changed-ok"):
        train(config, run)
    meant = dataclasses.replace(config, data=dataclasses.replace(config.data, changed_ok=True))
    train(meant, run)
    train(config, run)  # these are the rows of the run from now on


def test_without_a_terminal_there_is_a_line_a_logged_step(runs: Path, tiny_run: TinyRun) -> None:
    run = runs / "lines"
    process = start(tiny_run(loop={"steps": 4, "log_every": 2}, tuning={"steps": 2}), run)
    said = finished(process)
    assert "training: 4 steps of 16 clips, 90% of the tubelets dropped, then 2 steps of 8 clips, " in said
    steps = re.findall(r"^step (\d+) of 6 · loss \d+\.\d+ · \d+ clips/s", said, re.MULTILINE)
    assert steps == ["2", "3", "4", "6"]  # step 3 is saved, and so logged


@pytest.mark.skipif(sys.platform != "linux", reason="process groups and /proc as on Linux")
@pytest.mark.parametrize("whom", ["launcher", "group", "killed launcher"])
def test_what_ends_a_launcher_saves_the_run_and_leaves_nobody(
    whom: str, runs: Path, tiny_run: TinyRun
) -> None:
    """SLURM sends SIGTERM to torchrun or to the whole group, workers and all; a killed launcher takes its ranks along."""
    run = runs / f"launched-{whom.replace(' ', '-')}"
    config = tiny_run(loop={"steps": 9000, "save_every": 9000}, data={"workers": 1})
    asked = runs / f"{run.name}.json"
    asked.write_text(to_json(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--standalone", "-m", "harvest", "train", "--config", str(asked), "--out", str(run)]
    launcher = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(launcher, lambda: lines_of(run) >= 3)
        if whom == "group":
            os.killpg(launcher.pid, signal.SIGTERM)
        else:
            launcher.send_signal(signal.SIGTERM if whom == "launcher" else signal.SIGKILL)
        said = launcher.communicate(timeout=PATIENCE_S)[1]  # ends when no rank holds its pipe any more
        assert "and saved; the same command goes on" in said
        [saved] = (run / "checkpoints").iterdir()
        assert saved.name == f"step-{metrics(run)[-1]['step']:08d}"
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert not (run / "broken.json").exists()  # no video is blamed for the signal


def test_a_run_stopped_by_a_signal_equals_the_unbroken_one(
    runs: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(loop={"steps": 8, "save_every": 1000}, tuning={"steps": 0})
    train(config, runs / "unbroken")
    run = runs / "interrupted"
    numbers = loop._numbers

    def ask_to_stop(losses: Losses, step: int) -> dict[str, float]:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return numbers(losses, step)

    with monkeypatch.context() as patch, pytest.raises(RunStopped) as stopped:
        patch.setattr(loop, "_numbers", ask_to_stop)
        train(config, run)
    assert stopped.value.code == 143 and len(metrics(run)) < 8
    train(config, run)
    first, second = weights(runs / "unbroken"), weights(run)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert [line["loss"] for line in metrics(run)] == [line["loss"] for line in metrics(runs / "unbroken")]


@pytest.mark.parametrize(
    "junk", ["{", "[1]", '{"train": [1]}', '{"train": {"rows": 1, "digest": "x"}}', "\xff"]
)
def test_notes_of_the_data_that_are_damaged_are_named(junk: str, tmp_path: Path) -> None:
    rows = SimpleNamespace(examples=[Example("0", "a.mp4", texts=("a dog",))])
    prepared = cast(Prepared, SimpleNamespace(dataset=rows, pictures=None))
    path = tmp_path / "data.json"
    check_data(path, prepared, changed_ok=False)
    written = path.read_text()
    check_data(path, prepared, changed_ok=False)
    assert path.read_text() == written
    path.write_bytes(junk.encode("latin-1"))
    with pytest.raises(HarvestError, match=r"data\.(json|train)"):
        check_data(path, prepared, changed_ok=False)


@pytest.mark.parametrize("junk", ["{", "[]", '{"a": 1}', '{"a": {"because": "x"}}'])
def test_a_damaged_list_of_broken_videos_is_named(junk: str, tmp_path: Path) -> None:
    assert read_broken(tmp_path) == {}
    (tmp_path / "broken.json").write_text(junk)
    with pytest.raises(HarvestError, match=r"broken\.json"):
        read_broken(tmp_path)


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process that its parent has died")
def test_ranks_that_are_still_starting_end_with_their_launcher(tmp_path: Path) -> None:
    """While PyTorch is imported too: then nobody would answer them, and they would wait for minutes."""
    rank = [sys.executable, "-m", "harvest", "train", "mini-image", "--out", str(tmp_path / "run")]
    code = f"import subprocess; p = subprocess.Popen({rank!r}); print(p.pid, flush=True); p.wait()"
    world = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | world,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert launcher.stdout is not None
    number = int(launcher.stdout.readline())
    while "libtorch" not in Path(f"/proc/{number}/maps").read_text():
        time.sleep(0.02)
    launcher.kill()
    launcher.communicate(timeout=PATIENCE_S)  # ends when the rank does not hold its pipe any more
    ended_by = time.monotonic() + PATIENCE_S
    while time.monotonic() < ended_by and is_running(number):
        time.sleep(0.05)
    assert not is_running(number)
