"""How much of a score needs time at all? The same evaluation with time taken from the clips.

Reversed clips show the same pictures and the opposite motion, shuffled ones the same pictures and no motion, and one
frame, the middle one, shown all the time no more than a photograph. What a score keeps there, time has no part in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

from harvest.data.sampling import FrameOrder
from harvest.evaluation.metrics import interval_of
from harvest.evaluation.result import Result, parts_of, shown


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
    said = (
        " Motion truth test: reversed, shuffled (drawn for each clip among the orders that differ) and one frame (the"
        " middle one all the time) are the same evaluation of clips shown so."
    )
    found = dataclasses.replace(
        plain,
        protocol=plain.protocol + said,
        metrics=metrics,
        credits=credits,
        resampled=resampled,
        settings={**plain.settings, "motion_truth": True},
    )
    main = next((name for name in named if name in found.draws), None)
    return (
        found if main is None else dataclasses.replace(found, findings=(*plain.findings, _worth(found, main)))
    )


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
