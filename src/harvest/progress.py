"""Progress for people at a terminal, on standard error: bars with an ETA, and lines of text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from harvest.interfaces import OnProgress

_NARROW = 100  # columns of a terminal, below which bars are short

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether this process keeps bars and notes to itself (`harvest COMMAND --quiet`); results are printed all the same."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """A line for people."""
    if not _quiet:
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


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
    """How bars look: title, bar, count, ETA, and what the field `says` of a task adds.

    In a narrow terminal the bar is short, and the title and what is said give way; count and ETA never do.
    """
    console = Console(stderr=True, quiet=quiet or _quiet)
    fixed = {"no_wrap": True}
    return Progress(
        _Elastic("description"),
        BarColumn(bar_width=24 if console.width >= _NARROW else 8),
        MofNCompleteColumn(table_column=Column(**fixed)),  # type: ignore[arg-type]
        TimeRemainingColumn(compact=True, table_column=Column(**fixed)),  # type: ignore[arg-type]
        _Elastic("says"),
        console=console,
        refresh_per_second=2,
    )


class _Elastic(ProgressColumn):
    """Words that end in an ellipsis where there is no room for them."""

    def __init__(self, name: str) -> None:
        super().__init__(table_column=Column(ratio=None, overflow="ellipsis"))
        self.name = name

    def render(self, task: Task) -> Text:
        words = task.description if self.name == "description" else str(task.fields[self.name])
        return Text(words, no_wrap=True, overflow="ellipsis")
