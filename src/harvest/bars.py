"""How progress bars look in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

_NARROW = 100  # columns of a terminal, below which bars are short


def columns(quiet: bool = False) -> Progress:
    """How bars look: title, bar, count, ETA, and what the field `says` of a task adds.

    In a narrow terminal the bar is short, and the title and what is said give way; count and ETA never do.
    """
    console = Console(stderr=True, quiet=quiet)
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
