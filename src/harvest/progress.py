"""Telling people at a terminal how far work has come, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from harvest.interfaces import OnProgress


def say(message: str) -> None:
    """A line for people."""
    Console(stderr=True).print(message, markup=False, highlight=False)


@contextmanager
def bar(title: str, *, quiet: bool = False, delay_s: float = 2.0) -> Iterator[OnProgress]:
    """A bar with an ETA, fed by the yielded `progress(done, of)`; work shorter than `delay_s` shows none."""
    progress = columns(quiet)
    task = progress.add_task(title, total=None, says="")
    began, is_shown = time.monotonic(), False

    def show(done: int, of: int) -> None:
        nonlocal is_shown
        progress.update(task, completed=done, total=of)
        if not is_shown and time.monotonic() - began > delay_s:
            progress.start()
            is_shown = True

    try:
        yield show
    finally:
        if is_shown:
            progress.stop()


def columns(quiet: bool = False) -> Progress:
    """How bars look: title, bar, count, ETA, and what the field `says` of a task adds."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[says]}"),
        console=Console(stderr=True, quiet=quiet),
        refresh_per_second=2,
    )
