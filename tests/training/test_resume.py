"""A run that is killed at any moment, as often as you like, ends with the weights of the unbroken one, to the bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from test_loop import PATIENCE_S, finished, lines_of, metrics, ranks, wait_for, weights

from harvest.config import RunConfig, to_json
from harvest.recipes import RECIPES
from harvest.training.loop import train

# Two for each number of processes by default, so that the suite stays quick; HARVEST_KILLS=15 for docs/results.md.
KILLS = int(os.environ.get("HARVEST_KILLS", "2"))


# The first recipe of each objective: recipes of one objective run the same code (`test_loop` trains the twin of each).
ONE_EACH = {type(RECIPES[name]().objective): name for name in reversed(RECIPES)}.values()


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_objective_goes_on_to_the_bit(
    name: str, runs: Path, tiny_run: Callable[..., RunConfig]
) -> None:
    """As after a kill when step 3 was the last one saved: also the tokenizer that was learned is learned again."""
    run, config = runs / f"resumed-{name}", tiny_run(name, loop={"keep_last": 9})
    train(config, run)
    unbroken = weights(run)
    lines = [line["loss"] for line in metrics(run)]
    shutil.rmtree(run / "model")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    train(config, run)
    again = weights(run)
    assert [key for key in unbroken if not torch.equal(unbroken[key], again[key])] == []
    assert [line["loss"] for line in metrics(run)] == lines


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def loader_workers(pid: int) -> list[int]:
    """Forked from the process itself, so of the same command line."""
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    found = []
    for child in children(pid):
        with suppress(OSError):  # gone since
            if Path(f"/proc/{child}/cmdline").read_bytes() == own:
                found.append(child)
    return found


def kill(processes: list[subprocess.Popen[str]], whom: str, draw: random.Random) -> bool:
    """Send -9 to all ranks, to one, or to a worker of one that reads videos; whether there was one."""
    if whom == "all":
        for process in processes:
            process.kill()
        return True
    chosen = draw.choice(processes)
    if whom == "rank":
        chosen.kill()
        return True
    with suppress(OSError):  # it has ended by itself
        for worker in loader_workers(chosen.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
            return True
    return False


def loader_owners(agent: int) -> list[int]:
    """The ranks that torchrun's agent started: those of its children whose command says harvest."""
    return [child for child in children(agent) if b"harvest" in Path(f"/proc/{child}/cmdline").read_bytes()]


def killed_config(tiny_run: Callable[..., RunConfig]) -> RunConfig:
    return tiny_run(
        data={"cache": "none", "workers": 1},  # decoding, order and workers take part
        loop={"steps": 2 * KILLS + 6, "save_every": 1, "keep_last": 2},
        tuning={"steps": 4, "drop_ratio": 0.25, "global_batch": 8},
    )


def unbroken_run(size: int, config: RunConfig, runs: Path) -> Path:
    run = runs / f"unbroken-{size}"
    if not (run / "model").exists():
        with ranks(size, config, run) as processes:
            for process in processes:
                finished(process)
    return run


def equal_to_the_bit(run: Path, unbroken: Path) -> None:
    """The same weights, and each step logged once with the same numbers."""
    a, b = weights(unbroken), weights(run)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    same = ("step", "loss", "vtc", "mlm", "lr")
    lines, expected = ([[m[k] for k in same] for m in metrics(r)] for r in (run, unbroken))
    assert lines == expected and [line[0] for line in lines] == list(range(1, len(lines) + 1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds worker processes in /proc")
@pytest.mark.parametrize("size", [1, 2])
def test_kill_9_at_random_moments(size: int, runs: Path, tiny_run: Callable[..., RunConfig], capsys) -> None:
    """Of all processes, of a rank, of one that reads videos: every run goes on, and ends as the unbroken one."""
    config = killed_config(tiny_run)
    unbroken = unbroken_run(size, config, runs)
    run = runs / f"killed-{size}"
    draw = random.Random(size)
    landed: list[tuple[str, int]] = []
    leftovers = 0
    for number in range(KILLS):
        whom = ("worker", "all")[number % 2] if size == 1 else ("rank", "worker", "all")[number % 3]
        with ranks(size, config, run) as processes:
            done = lines_of(run)
            if number % 5 == 4:  # before its first step, while it starts
                time.sleep(draw.uniform(0, 5.0))
                whom = (
                    "all" if whom == "rank" else whom
                )  # one that never came is waited for; torchrun ends the others
            else:  # then anywhere in a step: computing, logging, saving, deleting
                aim = done + draw.randint(1, 2)
                wait_for(processes[0], lambda aim=aim: lines_of(run) >= aim)
                time.sleep(draw.uniform(0, 0.25))
            assert processes[0].poll() is None, "the run ended before it was killed: give it more steps"
            if not kill(processes, whom, draw):
                whom = "all"  # no worker is there yet
                kill(processes, whom, draw)
            said = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
        codes = [process.returncode for process in processes]
        if whom == "all":
            assert codes == [-signal.SIGKILL] * size
        else:  # nobody waits for ever for one that is gone, and nobody ends in a traceback
            assert all(code in (2, -signal.SIGKILL) for code in codes) and "Traceback" not in "".join(said), (
                said
            )
        landed.append((whom, lines_of(run)))
        leftovers += len(list((run / "checkpoints").glob(".step-*")))
    with ranks(size, config, run) as processes:
        for process in processes:
            finished(process)
    with capsys.disabled():
        print(f"\n{size} processes: killed {KILLS} times, at log lines {landed}; {leftovers} saves cut short")
    equal_to_the_bit(run, unbroken)
    assert not list((run / "checkpoints").glob(".step-*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_torchrun_starts_a_run_again_that_lost_a_rank(runs: Path, tiny_run: Callable[..., RunConfig]) -> None:
    """`--max-restarts`: one command, a rank killed on the way, and the end of the unbroken run."""
    config = killed_config(tiny_run)
    unbroken, run, asked = unbroken_run(2, config, runs), runs / "elastic", runs / "elastic.json"
    asked.write_text(to_json(config))
    launcher = (
        "-m torch.distributed.run --nnodes 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 --local-addr 127.0.0.1"
        " --nproc-per-node 2 --max-restarts 1"
    )
    command = [sys.executable, *launcher.split()]
    agent = subprocess.Popen(
        [*command, "-m", "harvest", "train", "--config", str(asked), "--out", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(agent, lambda: lines_of(run) >= 3)
        [first, *_] = loader_owners(agent.pid)
        os.kill(first, signal.SIGKILL)
        said = agent.communicate(timeout=3 * PATIENCE_S)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)  # the agent's ranks too
    assert agent.returncode == 0, said
    assert "Traceback" not in said
    equal_to_the_bit(run, unbroken)
