"""Lines over logarithmic axes as SVG, without a plotting library: a machine that only trains needs none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 16, 48
WORD = 30  # pixels that a number on the axis needs
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#555555",
)  # told apart by everyone


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, x_title: str, y_title: str) -> str:
    """An SVG of named lines through points with positive coordinates, both axes logarithmic."""
    points = [point for line in series.values() for point in line]
    if not points or any(min(point) <= 0 for point in points):
        raise ValueError("a plot on logarithmic axes needs points, all of them positive")
    x = Scale((px for px, _ in points), LEFT, WIDTH - RIGHT)
    y = Scale((py for _, py in points), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    told_to = -math.inf
    for value in sorted({px for px, _ in points}):
        if x(value) < told_to + WORD:  # it would stand on the one before it
            continue
        told_to = x(value)
        parts.append(
            f'<line x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
            f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>'
        )
    for value in _round_values(py for _, py in points):
        parts.append(
            f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in sorted(line))
        row = TOP + 12 + 18 * number
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            + "".join(f'<circle cx="{x(px):.1f}" cy="{y(py):.1f}" r="3" fill="{colour}"/>' for px, py in line)
            + f'<text x="{WIDTH - RIGHT + 12}" y="{row}" fill="{colour}">{escape(name)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text></svg>'
    )
    return "\n".join(parts)


class Scale:
    """From a value to a coordinate, logarithmically; a single value lies in the middle."""

    def __init__(self, values: Iterable[float], first: float, last: float) -> None:
        logs = [math.log(value) for value in values]
        self.low, self.high, self.first, self.last = min(logs), max(logs), first, last

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.first + self.last) / 2
        return self.first + (self.last - self.first) * (math.log(value) - self.low) / (self.high - self.low)


def _round_values(values: Iterable[float]) -> list[float]:
    """1, 2 and 5 times powers of ten between the smallest and the largest value."""
    values = list(values)
    low, high = min(values), max(values)
    found = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digit in (1, 2, 5)
    ]
    return [value for value in found if low <= value <= high]
