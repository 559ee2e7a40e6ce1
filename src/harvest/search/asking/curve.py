"""The picture of a curve of scores: SVG for a file, a line of blocks for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from harvest.charts import Chart, Line
from harvest.search.results import Curve

BLOCKS = "▁▂▃▄▅▆▇█"


def svg(curve: Curve) -> str:
    """A chart that needs nothing else: scores over time, the best stretches shaded and numbered. Light and dark."""
    length_s = len(curve.scores) * 2 * curve.times_s[0]
    return Chart(
        [Line(list(zip(curve.times_s, curve.scores, strict=True)), dots=False)],
        title=curve.text,
        size=(900, 220),
        x_range=(0.0, length_s),
        x_ticks=[(length_s * part, clock(length_s * part)) for part in (0.0, 0.25, 0.5, 0.75, 1.0)],
        spans=[(i.start_s, i.end_s, str(number)) for number, i in enumerate(curve.intervals, start=1)],
    ).svg()


def blocks(scores: Sequence[float], *, width: int) -> str:
    """Scores as a line of blocks, the highest of each part of the line."""
    low, high = min(scores), max(scores)
    span = max(high - low, 1e-6)
    count = min(width, len(scores))
    parts = [
        max(scores[place * len(scores) // count : max((place + 1) * len(scores) // count, 1)])
        for place in range(count)
    ]
    return "".join(BLOCKS[min(7, int(8 * (part - low) / span))] for part in parts)


def clock(time_s: float) -> str:
    """Seconds as people read them: 7.5 s, 1:07, 1:02:03."""
    if time_s < 60:
        return f"{time_s:.1f} s"
    whole = int(time_s)
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
