"""How much of a score needs time at all? The same evaluation with time taken from the clips.

Reversed clips show the same pictures and the opposite motion, shuffled ones the same pictures and no motion, and one
frame, the middle one, shown all the time no more than a photograph. What a score keeps there, time has no part in.

Reversed clips need one distinction. A motion with a direction becomes its opposite, so that a model that sees time names
the opposite and is wrong by the letter: chance or less. A motion that comes back to itself stays what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import get_args

from harvest.data.sampling import FrameOrder
from harvest.evaluation.metrics import interval_of
from harvest.evaluation.result import Result, parts_of, shown

DIRECTION, NO_DIRECTION = "direction", "no_direction"
"""Groups of questions: the reverse of what a clip shows is another motion, or the same."""


def by_direction(has_direction: Mapping[str, bool]) -> dict[str, str] | None:
    """The `groups` of `choice` for questions that ask for motions; None where none does."""
    return {id: DIRECTION if has else NO_DIRECTION for id, has in has_direction.items()} or None


def motion_truth(score: Callable[[FrameOrder], Result]) -> Result:
    """The result of `score("forward")` with `NAME.reversed`, `NAME.shuffled` and `NAME.one_frame` beside its metrics.

    `score` evaluates one model on one set with the frames of each clip in the order asked for.
    """
    plain = score("forward")
    metrics, credits, resampled = dict(plain.metrics), dict(plain.credits), dict(plain.resampled)
    others = {order: score(order) for order in get_args(FrameOrder) if order != "forward"}
    named = [name for name in plain.metrics if not parts_of(name)[1] and name not in _NOT_SCORES]
    for order, other in others.items():
        metrics |= {f"{name}.{order}": other.metrics[name] for name in named}
        credits |= {f"{name}.{order}": other.credits[name] for name in named if name in other.credits}
        resampled |= {f"{name}.{order}": other.resampled[name] for name in named if name in other.resampled}
    note = (
        " Motion truth test: reversed, shuffled (drawn for each clip among the orders that differ) and one frame (the"
        " middle one all the time) are the same evaluation of clips shown so."
    )
    found = dataclasses.replace(
        plain,
        protocol=plain.protocol + note,
        metrics=metrics,
        credits=credits,
        resampled=resampled,
        settings={**plain.settings, "motion_truth": True},
    )
    main = next((name for name in named if name in found.draws), None)
    said_of_main = () if main is None else (_worth(found, main),)
    return dataclasses.replace(found, findings=(*plain.findings, *said_of_main, *_backwards(found)))


_NOT_SCORES = ("chance", "commonest_answer", "share_of_rows")


def _worth(result: Result, name: str) -> str:
    """A sentence: what the order of frames, and what having more than one, is worth to a metric."""
    draws = result.draws
    parts = []
    for what, without in (("the order of frames", "shuffled"), ("seeing more than one frame", "one_frame")):
        points = 100 * (result.metrics[name] - result.metrics[f"{name}.{without}"])
        low, high = interval_of(draws[name] - draws[f"{name}.{without}"])
        sure = "" if low > 0 or high < 0 else ", which may be nothing"
        parts.append(f"{what} is worth {points:.1f} points (95 %: {100 * low:.1f} to {100 * high:.1f}){sure}")
    return f"Of {name}, {shown(name, result.metrics[name])}: {parts[0]}; {parts[1]}."


def _backwards(result: Result) -> tuple[str, ...]:
    """Sentences: what becomes of questions about a direction, and of the others, when clips run backwards."""
    kinds = (
        (DIRECTION, "a direction", "the opposite motion, so that chance or less is what seeing time gives"),
        (NO_DIRECTION, "no direction", "the same motion again"),
    )
    found = []
    for group, has, backwards in kinds:
        name = f"accuracy.{group}"
        if f"{name}.reversed" not in result.metrics:
            continue
        value = {order: shown(name, result.metrics[name + order]) for order in ("", ".reversed")}
        low, high = result.intervals[f"{name}.reversed"]
        found.append(
            f"Of {result.counts[f'questions.{group}']} questions whose motion has {has}, {value['']} are answered rightly "
            f"as they are and {value['.reversed']} reversed (95 %: {100 * low:.1f} to {100 * high:.1f}; chance "
            f"{shown('chance', result.metrics['chance'])}): backwards each shows {backwards}."
        )
    return tuple(found)
