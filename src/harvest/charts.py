"""Line charts as SVG, without a plotting library: for the demo's page, benchmarks, experiments and curves of search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2461d8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777")
"""Distinguishable with every kind of colour vision."""
_LABEL = 30.0  # pixels that a number on an axis needs


@dataclass(frozen=True)
class Line:
    """Points, and how they are drawn."""

    points: Sequence[tuple[float, float]]
    name: str = ""
    """In the legend; without it the line is not in it."""
    labels: Sequence[str] = ()
    """Beside each of the points."""
    dots: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over two axes. Text and grid take the colours of the page, light or dark."""

    lines: Sequence[Line]
    x_title: str = ""
    y_title: str = ""
    title: str = ""
    log: bool = False
    """Both axes are logarithmic; all coordinates are then positive."""
    size: tuple[int, int] = (720, 420)
    x_ticks: Sequence[tuple[float, str]] | None = None
    """Where the x axis has labels; None: at round numbers."""
    x_range: tuple[float, float] | None = None
    marks: Sequence[tuple[float, str]] = ()
    """Dashed vertical lines, each with a word."""
    spans: Sequence[tuple[float, float, str]] = ()
    """Shaded stretches of the x axis, each with a word."""
    left: int = 58
    """Pixels for the labels of the y axis."""

    def svg(self) -> str:
        """The chart as one SVG element that needs nothing else."""
        width, height = self.size
        has_legend = any(line.name for line in self.lines)
        top, bottom = (34 if self.title else 16), (44 if self.x_title else 26)
        right = 12 if not has_legend else 24 + 7 * max(len(line.name) for line in self.lines)
        points = [point for line in self.lines for point in line.points]
        if not points or (self.log and min(min(point) for point in points) <= 0):
            raise ValueError("a chart needs points; one with logarithmic axes needs positive ones")
        y_values = [y for _, y in points]
        x_values = list(self.x_range or [x for x, _ in points]) + [x for x, _ in self.marks]
        y_ticks = round_values(y_values) if self.log else ticks(min(y_values), max(y_values), at_most=5)
        x = Scale(x_values, self.left, width - right, log=self.log)
        y = Scale([*y_values, *y_ticks], height - bottom, top, log=self.log)
        x_ticks = self.x_ticks
        if x_ticks is None:
            at = sorted({px for px, _ in points}) if self.log else ticks(x.low, x.high, at_most=6)
            x_ticks = [(value, f"{value:.3g}" if self.log else f"{value:g}") for value in at]
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="12">{_STYLE}',
            f"<title>{escape(self.title or self.y_title)}</title>",
        ]
        if self.title:
            parts.append(f'<text x="{self.left}" y="18" font-size="14">{escape(self.title)}</text>')
        for first, last, word in self.spans:
            parts.append(
                f'<rect class="span" x="{x(first):.1f}" y="{top}" width="{x(last) - x(first):.1f}" '
                f'height="{height - top - bottom}"/>' + _text(x(first) + 3, top + 13, word)
            )
        parts += _x_axis(x, x_ticks, top=top, bottom=height - bottom, has_grid=not self.spans)
        for value in y_ticks:
            parts.append(
                f'<path class="grid" d="M{self.left} {y(value):.1f}H{width - right}"/>'
                + _text(self.left - 6, y(value) + 4, f"{value:g}", anchor="end")
            )
        for value, word in self.marks:
            side = -1 if x(value) > (self.left + width - right) / 2 else 1
            parts.append(
                f'<path class="mark" d="M{x(value):.1f} {top}V{height - bottom}"/>'
                + _text(x(value) + 4 * side, top + 10, word, anchor="end" if side < 0 else "start")
            )
        named = 0
        for number, line in enumerate(self.lines):
            colour = COLOURS[number % len(COLOURS)] if not line.faint else COLOURS[0]
            parts.append(_line(line, x, y, colour))
            if line.name:
                parts.append(_text(width - right + 12, top + 12 + 18 * named, line.name, fill=colour))
                named += 1
        if self.x_title:
            parts.append(_text((self.left + width - right) / 2, height - 8, self.x_title, anchor="middle"))
        if self.y_title:
            parts.append(
                f'<text transform="translate(13 {(top + height - bottom) / 2}) rotate(-90)" '
                f'text-anchor="middle">{escape(self.y_title)}</text>'
            )
        return "\n".join([*parts, "</svg>\n"])


def log_lines(series: Mapping[str, Sequence[tuple[float, float]]], *, x_title: str, y_title: str) -> str:
    """An SVG of named lines through points with positive coordinates, both axes logarithmic."""
    lines = [Line(sorted(points), name) for name, points in series.items()]
    return Chart(lines, x_title, y_title, log=True).svg()


_STYLE = (
    "<style>text{fill:#5a6472}.grid{stroke:#8884;fill:none}.mark{stroke:#888;stroke-dasharray:4 3;fill:none}"
    ".span{fill:#2461d8;opacity:.18}@media(prefers-color-scheme:dark){text{fill:#9aa5b3}}</style>"
)


class Scale:
    """From a value to a coordinate; a single value lies in the middle."""

    def __init__(self, values: Iterable[float], first: float, last: float, *, log: bool = False) -> None:
        self._of = math.log if log else float
        values = list(values)
        self.low, self.high, self.first, self.last = min(values), max(values), first, last

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        if high == low:
            return (self.first + self.last) / 2
        return self.first + (self.last - self.first) * (self._of(value) - low) / (high - low)


def ticks(low: float, high: float, *, at_most: int) -> list[float]:
    """Round numbers at equal distances from at or below `low` up to at or below `high`, at most `at_most` steps."""
    if high <= low:
        high = low + 1
    rough = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def round_values(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten between the smallest and the largest value."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [found for power in powers for digit in (1, 2, 5) if low <= (found := digit * 10.0**power) <= high]


def smoothed(values: Sequence[float], *, reach: int = 2) -> list[float]:
    """Means over a window of `reach` values on each side, smaller at the ends so that they stay in place."""
    means = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        window = values[place - near : place + near + 1]
        means.append(sum(window) / len(window))
    return means


def _x_axis(
    x: Scale, labels: Sequence[tuple[float, str]], *, top: float, bottom: float, has_grid: bool
) -> list[str]:
    parts, last = [], -math.inf
    for value, word in labels:
        if not x.low <= value <= x.high or x(value) < last + max(_LABEL, 7.0 * len(word)):
            continue  # it would overlap with the one before
        last = x(value)
        if has_grid:
            parts.append(f'<path class="grid" d="M{last:.1f} {top}V{bottom}"/>')
        parts.append(_text(last, bottom + 16, word, anchor="middle"))
    return parts


def _line(line: Line, x: Scale, y: Scale, colour: str) -> str:
    at = [(x(px), y(py)) for px, py in line.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in at)
    look = 'stroke-width="1.2" opacity=".35"' if line.faint else 'stroke-width="2" stroke-linejoin="round"'
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" {look}/>']
    if line.dots:
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in at]
    parts += [_text(px + 7, py - 6, word) for (px, py), word in zip(at, line.labels, strict=False)]
    return "".join(parts)


def _text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = "") -> str:
    style = f' style="fill:{fill}"' if fill else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'
