"""Ranges of settings, stated once, beside the setting, and checked in one place.

@dataclass(frozen=True)
class LoopConfig:
    steps: Annotated[int, Range(least=1)] = 100_000

    def __post_init__(self) -> None:
        check_ranges(self, "loop")
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, get_args, get_type_hints

from harvest.errors import HarvestError


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have. `None`, and an empty tuple, are always allowed."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    """Excluded lower bound."""
    below: float | None = None
    """Excluded upper bound."""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        return (
            not math.isnan(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        parts = [
            f"{words} {bound:g}"
            for words, bound in (
                ("at least", self.least),
                ("more than", self.above),
                ("at most", self.most),
                ("less than", self.below),
            )
            if bound is not None
        ]
        return " and ".join(parts)


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Raise HarvestError unless `value`, a number or a tuple of numbers, is in the range."""
    for number in value if isinstance(value, tuple | list) else (value,):
        if number is not None and not allowed.holds(number):
            raise HarvestError(f"{name}: expected {allowed}, got {value}")


def check_ranges(settings: Any, where: str = "") -> None:
    """Check every field of a dataclass whose annotation carries a `Range`; `where` comes before its name in errors."""
    for name, allowed in _ranges(type(settings)):  # type: ignore[arg-type]
        check_range(f"{where}.{name}" if where else name, getattr(settings, name), allowed)


@cache
def _ranges(kind: type) -> tuple[tuple[str, Range], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (field.name, extra)
        for field in dataclasses.fields(kind)
        for extra in get_args(hints[field.name])[1:]
        if isinstance(extra, Range)
    )
