"""What an evaluation found, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from rich.table import Table
from torch import Tensor

from harvest.evaluation.metrics import interval_of, resampled_means


class Credits(NamedTuple):
    """What a figure is the mean of."""

    values: Tensor  # float64 [Q], a share of a hit for each query, in the order of the manifest
    group: Tensor  # int64 [Q]: the video of each


@dataclass(frozen=True)
class Result:
    """The figures of one task and how they came about."""

    task: str
    mode: Literal["video", "image"]
    """Clips encoded as videos, or the image baseline: the mean of their frames' embeddings."""
    protocol: str
    """A sentence: what was scored against what, with how many frames, by which kind of model."""
    metrics: Mapping[str, float]
    """Fractions (0 to 1); names that end in `rank` are ranks from 1, in `error` squares of numbers. `NAME.VARIANT` is NAME computed in another way."""
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    """Examples whose video could not be read, with the reason. They are in no metric."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides the figures beside model and data, as JSON values: frames, views, resolution, prompts, …"""
    findings: tuple[str, ...] = ()
    """Sentences about the figures, such as what the motion truth test says."""
    scored_by: str = ""
    """What the figures rest on, in a few words."""
    credits: Mapping[str, Credits] = field(default_factory=dict, compare=False, repr=False)
    """Of metrics that are means over queries."""
    resampled: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Of metrics that are not: their values each time that videos are drawn again, float64 `[R]`."""

    @cached_property
    def draws(self) -> dict[str, Tensor]:
        """Metrics each time that videos are drawn again; of two results on one set, the nth values belong together."""
        return {name: resampled_means(*credits) for name, credits in self.credits.items()} | dict(
            self.resampled
        )

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals over videos of some of the metrics."""
        return {name: interval_of(values) for name, values in self.draws.items()}

    def to_dict(self) -> dict[str, Any]:
        own = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("credits", "resampled")
        }
        return {**own, "intervals": self.intervals}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)


def shown(name: str, value: float) -> str:
    """A metric as people read it: fractions in percent, ranks and errors as they are."""
    return f"{100 * value:.1f} %" if is_fraction(name) else f"{value:.1f}"


def is_fraction(name: str) -> bool:
    """Whether a metric goes from 0 to 1; ranks and squared errors do not."""
    return not name.partition(".")[0].endswith(("rank", "error"))


def table(results: Sequence[Result]) -> Table:
    """A rich table of results, a row a metric, a column a variant of it; counts of nothing are left out."""
    variants = list(
        dict.fromkeys(v for result in results for name in result.metrics if (v := parts_of(name)[1]))
    )
    grid = Table(show_edge=False)
    for title in ("task", "mode", "metric"):
        grid.add_column(title)
    for title in ("value", "95 % interval", *(v.replace("_", " ") for v in variants)):
        grid.add_column(title, justify="right")
    for result in results:
        names = [name for name in result.metrics if not parts_of(name)[1]]
        for place, name in enumerate(names):
            interval = result.intervals.get(name)
            between = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""
            named = (result.task, result.mode) if place == 0 else ("", "")
            others = [f"{name}.{variant}" for variant in variants]
            beside = [
                shown(other, result.metrics[other]) if other in result.metrics else "" for other in others
            ]
            grid.add_row(*named, name, shown(name, result.metrics[name]), between, *beside)
        counts = ", ".join(f"{name} {count}" for name, count in result.counts.items() if count)
        grid.add_row("", "", f"[dim]{counts}[/dim]", *[""] * (2 + len(variants)), end_section=True)
    return grid


VARIANTS = ("dual_softmax", "reranked", "matching", "mixture", "reversed", "shuffled", "one_frame")
"""Ways of scoring that are never mixed with the plain one: what stands behind the dot of a metric's name."""


def parts_of(name: str) -> tuple[str, str]:
    """A metric's name without its variant, and the variant, "" where there is none."""
    plain, _, behind = name.rpartition(".")
    return (plain, behind) if plain and behind in VARIANTS else (name, "")
