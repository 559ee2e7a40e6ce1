"""The picture of a curve of scores: SVG for a file, a line of blocks for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from harvest.search.results import Curve

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 900, 220, 46, 26, 30
BLOCKS = "▁▂▃▄▅▆▇█"


def svg(curve: Curve) -> str:
    """A chart that needs nothing else: scores over time, the best stretches shaded and numbered. Light and dark."""
    low, high = min(curve.scores), max(curve.scores)
    span = max(high - low, 1e-6)
    hop_s = 2 * curve.times_s[0]
    length_s = len(curve.scores) * hop_s

    def x(time_s: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * time_s / length_s

    def y(score: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / span

    line = " ".join(f"{x(t):.1f},{y(s):.1f}" for t, s in zip(curve.times_s, curve.scores, strict=True))
    shades = "".join(
        f'<rect class="best" x="{x(i.start_s):.1f}" y="{TOP}" width="{x(i.end_s) - x(i.start_s):.1f}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/><text x="{x(i.start_s) + 3:.1f}" y="{TOP + 13}">{number}</text>'
        for number, i in enumerate(curve.intervals, start=1)
    )
    marks = "".join(
        f'<text x="{x(length_s * part):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{clock(length_s * part)}</text>'
        for part, anchor in (
            (0.0, "start"),
            (0.25, "middle"),
            (0.5, "middle"),
            (0.75, "middle"),
            (1.0, "end"),
        )
    )
    levels = "".join(
        f'<text x="{LEFT - 6}" y="{y(score) + 4:.1f}" text-anchor="end">{score:.2f}</text>'
        for score in (low, high)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" font-size="12">
<title>{escape(curve.text)}</title>
<style>
 text {{ fill: #333 }} polyline {{ fill: none; stroke: #1f6feb; stroke-width: 1.5 }} .best {{ fill: #1f6feb; opacity: .18 }}
 .ground {{ fill: #fff }}
 @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} .ground {{ fill: #111 }} }}
</style>
<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>
<text x="{LEFT}" y="18" font-size="14">{escape(curve.text)}</text>
{shades}{marks}{levels}
<polyline points="{line}"/>
</svg>
"""


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
