"""A run that is killed at any moment, as often as you like, ends with the weights of the unbroken one, to the bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_loop import finished, lines_of, metrics, start, wait_for, weights

from harvest.config import RunConfig
from harvest.recipes import RECIPES
from harvest.training.loop import train

# Six by default, so that the suite stays quick; HARVEST_KILLS=20 for the figure in docs/results.md.
KILLS = int(os.environ.get("HARVEST_KILLS", "6"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_on_to_the_bit(name: str, runs: Path, tiny_run: Callable[..., RunConfig]) -> None:
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_random_moments(runs: Path, tiny_run: Callable[..., RunConfig], capsys) -> None:
    steps = 2 * KILLS + 6
    config = tiny_run(
        data={"cache": "none", "workers": 1},  # decoding, order and workers take part
        loop={"steps": steps, "save_every": 1, "keep_last": 2},
        tuning={"steps": 4, "drop_ratio": 0.25, "global_batch": 8},
    )
    began = time.monotonic()
    finished(start(config, runs / "unbroken"))
    start_s = (time.monotonic() - began) / 2
    run = runs / "killed"
    draw = random.Random(0)
    landed: list[int] = []
    leftovers = 0
    for kill in range(KILLS):
        process = start(config, run)
        done = lines_of(run)
        if kill % 5 == 4:  # before its first step, while it starts
            time.sleep(draw.uniform(0, start_s))
        else:  # then anywhere in a step: computing, logging, saving, deleting
            aim = done + draw.randint(0, 2)
            wait_for(process, lambda aim=aim: lines_of(run) >= aim)
            time.sleep(draw.uniform(0, 0.25))
        assert process.poll() is None, "the run ended before it was killed: give it more steps"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        landed.append(lines_of(run))
        leftovers += len(list((run / "checkpoints").glob(".step-*")))
    finished(start(config, run))
    with capsys.disabled():
        print(f"\nkilled {KILLS} times, at log lines {landed}; {leftovers} saves cut short")
    a, b = weights(runs / "unbroken"), weights(run)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert [line["step"] for line in metrics(run)] == list(range(1, config.total_steps + 1))
    same = ("step", "loss", "vtc", "mlm", "lr")
    assert [[m[k] for k in same] for m in metrics(run)] == [
        [m[k] for k in same] for m in metrics(runs / "unbroken")
    ]
    assert not list((run / "checkpoints").glob(".step-*"))
