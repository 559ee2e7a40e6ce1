"""What a run tells: a progress bar for people, metrics.jsonl as the truth, TensorBoard for pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from harvest.bars import columns
from harvest.errors import HarvestError
from harvest.files import check_file, write_file
from harvest.progress import is_quiet, say
from harvest.settings import from_dict, parse


class RunLog:
    """One JSON line a logged step in `metrics.jsonl`, the same numbers for TensorBoard, and a bar with an ETA.

    On resume, lines of steps that are done again are cut off first, so the file reads as one unbroken run. Of several
    processes only the one with `is_main` writes and shows anything.
    """

    def __init__(self, run: Path, *, first_step: int, steps: int, is_main: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        self.lines, self.board = None, None
        if is_main:
            self._keep_lines_before(first_step)
            self.lines = self.path.open("a")
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        self.progress = columns(quiet=not is_main or is_quiet())
        self.task = self.progress.add_task("training", total=steps, completed=first_step, says="")

    def __enter__(self) -> RunLog:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.lines is not None and self.board is not None:
            self.lines.close()
            self.board.close()

    @property
    def _is_told(self) -> bool:
        """Lines instead of a bar: where standard error is a file or a pipe."""
        return self.lines is not None and not is_quiet() and not self.progress.console.is_terminal

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def show(self, says: str) -> None:
        """A few words beside the bar, until the next."""
        self.progress.update(self.task, says=says)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Log the numbers of `step`, e.g. losses, `lr`, `clips_per_s`, `waiting` (share of time without data)."""
        self._keep(step, numbers)
        if self.lines is None:
            return
        says = f"loss {numbers['loss']:.3f} · {numbers['clips_per_s']:.0f} clips/s"
        if numbers["waiting"] >= 0.01:
            says += f" · {100 * numbers['waiting']:.0f} % waiting for data"
        if numbers.get("broken", 0):
            says += f" · {numbers['broken']:.0f} broken ({100 * numbers.get('broken_ratio', 0):.1f} %)"
        self.progress.update(self.task, completed=step, says=says)
        if self._is_told:
            task = self.progress.tasks[self.task]
            left = f" · {timedelta(seconds=round(task.time_remaining))} left" if task.time_remaining else ""
            say(f"step {step:,} of {task.total:,.0f} · {says}{left}")

    def write_scores(self, step: int, scores: Mapping[str, float], says: str) -> None:
        """Log scores on held-out clips (`MANIFEST/METRIC`) in a line of their own, and say them."""
        self._keep(step, scores)
        if self.lines is not None:
            say(f"step {step:,} of {self.progress.tasks[self.task].total:,.0f} · {says}")

    def _keep(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.lines is None or self.board is None:
            return
        self.lines.write(json.dumps({"step": step, **numbers}) + "\n")
        self.lines.flush()
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def _keep_lines_before(self, step: int) -> None:
        if not self.path.exists():
            return
        check_file(self.path)
        *lines, last = self.path.read_bytes().split(b"\n")
        if last:  # a kill while writing leaves half a line at the end
            say(f"the last line of {self.path} was cut short: it is removed")
        kept, damaged = [], 0
        for line in lines:
            try:
                if _step_of(line) > step:
                    continue
            except HarvestError:
                damaged += 1
            kept.append(line + b"\n")
        if damaged:
            say(f"{damaged} lines of {self.path} cannot be read; they are kept as they are")
        write_file(self.path, b"".join(kept))


def steps_with(path: Path, name: str) -> set[int]:
    """The steps whose line of a metrics.jsonl has this number; lines that cannot be read have none."""
    found = set()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(HarvestError):
            if name in parse(dict[str, Any], line, where="the line"):
                found.add(_step_of(line))
    return found


def _step_of(line: bytes) -> int:
    numbers: dict[str, Any] = parse(dict[str, Any], line, where="the line")
    step: int = from_dict(int, numbers.get("step"), where="the line", path="step")
    return step
