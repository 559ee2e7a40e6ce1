"""Is one model better than another on this set? A paired bootstrap over what two benchmark cards hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harvest.evaluation.card import Card
from harvest.evaluation.metrics import interval_of
from harvest.evaluation.motion_truth import NO_DIRECTION
from harvest.evaluation.result import Result, parts_of
from harvest.interfaces import HarvestError

ALLOWED = (
    *("mode", "image_size", "fit", "precision", "context_length", "cleaning", "seen", "dim"),
    *("motion_truth", "dual_softmax", "matching"),
)
"""Settings of a model, or of its cost: a difference is reported beside the comparison. All others must be equal."""


@dataclass(frozen=True)
class Difference:
    """B minus A of one figure, fractions."""

    name: str
    a: float
    b: float
    interval: tuple[float, float] | None
    """95 % of the differences when the same videos are drawn again for both; None where the cards hold no draws of it."""

    @property
    def is_sure(self) -> bool:
        """Whether the difference is larger than its interval: zero is not in it."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def verdict(self) -> str:
        """The better model, where the interval decides it; "" where there is none."""
        if self.interval is None:
            return ""
        if not self.is_sure:
            return "no clear difference"
        if not _more_is_better(self.name):
            return "they differ"
        return "B is better" if self.b > self.a else "A is better"


@dataclass(frozen=True)
class Comparison:
    differences: tuple[Difference, ...]
    other_settings: tuple[str, ...]
    """Settings in which the two differ, a sentence each."""


def compare(a: tuple[Card, Result], b: tuple[Card, Result], *, allow: Sequence[str] = ()) -> Comparison:
    """What B is better or worse at than A, as `read_card` gives them; settings named in `allow` may differ.

    Raises HarvestError where they answer different questions: another task, other rows, other videos missing, other
    frames, views, prompts or re-ranking.
    """
    (card_a, result_a), (card_b, result_b) = a, b
    refused: list[str] = []
    reported: list[str] = []
    for name, one, other in _settings(card_a, card_b):
        if one == other:
            continue
        difference = f"{name}: {_short(one)} and {_short(other)}"
        (reported if name in ALLOWED or name in allow else refused).append(difference)
    unknown = [
        name for name in allow if name not in {n for n, _, _ in _settings(card_a, card_b)} or name in _ROWS
    ]
    if unknown:
        raise HarvestError(
            f"a comparison cannot allow for {unknown[0]!r}: settings are {', '.join(_free(card_a))}"
        )
    if refused:
        raise HarvestError(
            "these cards answer different questions. They differ in\n  "
            + "\n  ".join(refused)
            + "\nScore both models by one protocol, or accept a setting's difference with --allow NAME."
        )
    found = []
    for name, one in result_a.metrics.items():
        if name not in result_b.metrics:
            continue
        interval = None
        if name in result_a.draws and name in result_b.draws:
            draws = result_a.draws[name], result_b.draws[name]
            if draws[0].shape != draws[1].shape or not _same_queries(result_a, result_b, name):
                raise HarvestError(f"the cards' credits of {name} are not of the same queries")
            interval = interval_of(draws[1] - draws[0])
        found.append(Difference(name, one, result_b.metrics[name], interval))
    return Comparison(tuple(found), tuple(reported))


def _more_is_better(name: str) -> bool:
    """Whether a figure is a skill. Without time, or with another clip, chance is what a model that looks should score.

    Backwards a motion that comes back to itself is the same motion, so there more is better again.
    """
    plain, variant = parts_of(name)
    if variant == "reversed":
        return plain.endswith(f".{NO_DIRECTION}")
    return variant not in ("shuffled", "one_frame") and plain != "other_clip"


_ROWS = ("task", "split", "missing rows")


def _settings(a: Card, b: Card) -> list[tuple[str, Any, Any]]:
    rows = [
        ("task", a.task, b.task),
        ("split", _rows_of(a), _rows_of(b)),
        ("missing rows", sorted(a.split.missing), sorted(b.split.missing)),
        ("mode", a.mode, b.mode),
    ]
    keys = list(dict.fromkeys([*a.settings, *b.settings]))
    return rows + [(key, a.settings.get(key), b.settings.get(key)) for key in keys]


def _free(card: Card) -> list[str]:
    return [key for key in card.settings if key not in ALLOWED]


def _rows_of(card: Card) -> str:
    return f"{card.split.num_rows:,} rows with annotation {card.split.digest}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return (
            f"{len(value)} ({', '.join(map(str, value[:2]))}{', …' if len(value) > 2 else ''})"
            if value
            else "none"
        )
    return str(value)


def _same_queries(a: Result, b: Result, name: str) -> bool:
    if name not in a.credits or name not in b.credits:
        return name not in a.credits and name not in b.credits
    return torch.equal(a.credits[name].group, b.credits[name].group)
