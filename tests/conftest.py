"""What several rooms' tests need: a place for runs with one mini-world, and an image model to start from."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from harvest.config import RunConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.recipes import tiny
from harvest.training.loop import train

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in each run, and no verdict from the speed of the machine.
hypothesis.settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("steady")


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_fixture_setup() -> None:
    """What a fixture draws does not depend on the tests before it, nor what a test draws on those."""
    _seed()


def pytest_runtest_call() -> None:
    _seed()


def pytest_runtest_teardown() -> None:
    """SVT-AV1, where root encodes with it, makes the calling thread a real-time one, which starves other processes."""
    if sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason why tests were skipped."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid.partition("::")[0])
    if reasons:
        terminalreporter.section("skipped")
    for reason, files in sorted(reasons.items(), key=lambda item: -len(item[1])):
        where = ", ".join(sorted({Path(file).stem.removeprefix("test_") for file in files}))
        terminalreporter.write_line(f"{len(files):>4}  {reason}  ({where})")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in this folder share the mini-world that the first of them draws."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def image_model(runs: Path) -> Path:
    """A stand-in for the mini-world's image model: six steps old, made by the tiny twin of its recipe."""
    return train(tiny("mini-image"), runs / "mini-image")


@pytest.fixture(scope="session")
def stage1_run(runs: Path, image_model: Path) -> Path:
    """A run of UMT's first stage, six steps old: what its second stage starts from."""
    config = tiny("umt-stage1-b16")
    objective = dataclasses.replace(config.objective, teacher=str(image_model))
    run = runs / "stage1"
    train(dataclasses.replace(config, objective=objective), run)
    return run


@pytest.fixture(scope="session")
def tiny_run(image_model: Path, request: pytest.FixtureRequest) -> Callable[..., RunConfig]:
    """`tiny_run("mini-harvest", loop={"steps": 3})`: a tiny twin that starts from the stand-in, with changes."""

    def make(name: str = "mini-harvest", **changes: object) -> RunConfig:
        config = tiny(name)
        if config.start.scratch is None:
            start = dataclasses.replace(config.start, model=str(image_model))
            if isinstance(config.objective, MultimodalConfig):
                text = str(image_model) if start.text == "mini-image" else start.text
                stage1 = str(request.getfixturevalue("stage1_run"))
                start = dataclasses.replace(start, model=stage1, text=text)
            config = dataclasses.replace(config, start=start)
        if isinstance(config.objective, MaskedAlignmentConfig):
            config = dataclasses.replace(
                config, objective=dataclasses.replace(config.objective, teacher=str(image_model))
            )
        parts = {
            part: dataclasses.replace(getattr(config, part), **change) if isinstance(change, dict) else change
            for part, change in changes.items()
        }
        return dataclasses.replace(config, **parts)

    return make
