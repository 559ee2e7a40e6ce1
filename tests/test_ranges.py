"""Ranges of settings: what is let through, what is refused, and in which words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from harvest.interfaces import HarvestError
from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class Settings:
    ratio: Annotated[float, Range(least=0, below=1)] = 0.5
    count: Annotated[int | None, Range(least=1)] = None
    sizes: Annotated[tuple[int, ...], Range(least=8)] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "loop")


@pytest.mark.parametrize("good", [{}, {"ratio": 0.0}, {"count": 1}, {"sizes": (8, 9)}])
def test_what_is_in_range_passes(good: dict) -> None:
    Settings(**good)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 1.0}, r"loop\.ratio: expected at least 0 and less than 1, got 1\.0"),
        ({"ratio": float("nan")}, "got nan"),
        ({"count": 0}, r"loop\.count: expected at least 1, got 0"),
        ({"sizes": (8, 7)}, r"loop\.sizes: expected at least 8, got \(8, 7\)"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(HarvestError, match=message):
        Settings(**wrong)
