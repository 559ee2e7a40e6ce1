"""What an evaluation found, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table


@dataclass(frozen=True)
class Result:
    """The figures of one task and how they came about."""

    task: str
    mode: Literal["video", "image"]
    """Clips encoded as videos, or the image baseline: the mean of their frames' embeddings."""
    protocol: str
    """A sentence: what was scored against what, with how many frames, by which kind of model."""
    metrics: Mapping[str, float]
    """Fractions (0 to 1); names that end in `rank` are ranks from 1."""
    counts: Mapping[str, int] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals over videos of some of the metrics."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Examples whose video could not be read, with the reason. They are in no metric."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)


def shown(name: str, value: float) -> str:
    """A metric as people read it: fractions in percent, ranks as they are."""
    return f"{value:.1f}" if name.endswith("rank") else f"{100 * value:.1f} %"


def table(results: Sequence[Result]) -> Table:
    """A rich table of results, a row a metric; counts of nothing are left out."""
    grid = Table(show_edge=False)
    for title in ("task", "mode", "metric"):
        grid.add_column(title)
    for title in ("value", "95 % interval"):
        grid.add_column(title, justify="right")
    for result in results:
        for place, (name, value) in enumerate(result.metrics.items()):
            interval = result.intervals.get(name)
            between = " to ".join(shown(name, end) for end in interval) if interval else ""
            named = (result.task, result.mode) if place == 0 else ("", "")
            grid.add_row(*named, name, shown(name, value), between)
        counts = ", ".join(f"{name} {count}" for name, count in result.counts.items() if count)
        grid.add_row("", "", f"[dim]{counts}[/dim]", "", "", end_section=True)
    return grid
