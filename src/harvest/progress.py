"""Progress for people at a terminal, on standard error: bars with an ETA, and lines of text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harvest.plain_types import OnProgress

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether this process keeps bars and notes to itself (`harvest COMMAND --quiet`); results are printed all the same."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet


def say(message: str) -> None:
    """A line for people."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, *, quiet: bool = False, delay_s: float = 2.0) -> Iterator[OnProgress]:
    """A bar with an ETA, fed by the yielded `progress(done, of)`; work shorter than `delay_s` shows none.

    A machine without rich, such as one that only trains, shows none either.
    """
    try:
        from harvest.bars import columns
    except ImportError:
        yield lambda done, of: None
        return
    progress = columns(quiet or _quiet)
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
