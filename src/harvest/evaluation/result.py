"""What an evaluation found, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
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


def table(result: Result) -> Table:
    """A rich table of a result that fits into 80 columns: ranks of retrieval a line a way, other figures a line each."""
    by_rank = [name for name in result.metrics if _OF_RANKS.fullmatch(parts_of(name)[0])]
    grid = Table(box=None, pad_edge=False, title=f"{result.task}, {result.mode}", title_justify="left")
    if by_rank:
        grid.add_column("")
        for title in _COLUMNS.values():
            grid.add_column(title, justify="right", no_wrap=True)
        for variant in dict.fromkeys(parts_of(name)[1] for name in by_rank):
            for way, title in (("t2v", "text to video"), ("v2t", "video to text")):
                names = [f"{way}_{column}" + (f".{variant}" if variant else "") for column in _COLUMNS]
                found = [shown(name, result.metrics[name]) for name in names]
                grid.add_row(f"{title}, {variant.replace('_', ' ')}" if variant else title, *found)
                ends = [_between(result, name) for name in names]
                grid.add_row("  95 %", *ends, style="dim")
    others = [name for name in result.metrics if name not in by_rank]
    if others and by_rank:
        for name in others:
            grid.add_row(name, shown(name, result.metrics[name]))
    elif others:
        for title in ("figure", "value", "95 % interval"):
            grid.add_column(title, justify="left" if title == "figure" else "right", overflow="fold")
        for name in others:
            grid.add_row(name, shown(name, result.metrics[name]), _between(result, name))
    return grid


_OF_RANKS = re.compile(r"(t2v|v2t)_(r1|r5|r10|median_rank|mean_rank)")
_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median", "mean_rank": "mean"}


def _between(result: Result, name: str) -> str:
    interval = result.intervals.get(name)
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}" if interval else ""


VARIANTS = ("dual_softmax", "reranked", "matching", "mixture", "reversed", "shuffled", "one_frame")
"""Ways of scoring that are never mixed with the plain one: what stands behind the dot of a metric's name."""


def parts_of(name: str) -> tuple[str, str]:
    """A metric's name without its variant, and the variant, "" where there is none."""
    plain, _, behind = name.rpartition(".")
    return (plain, behind) if plain and behind in VARIANTS else (name, "")
