"""Charts: every line and point is drawn inside the frame, labels are round and do not overlap."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from harvest.charts import Chart, Line, log_lines, smoothed, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_a_chart_holds_every_line_and_point() -> None:
    drawn = log_lines({"a < b": [(10, 1000), (1, 10)], "c": [(1, 30)]}, x_title="x", y_title="y")
    root = ElementTree.fromstring(drawn)
    assert len(root.findall(f"{SVG}polyline")) == 2 and len(root.findall(f"{SVG}circle")) == 3
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {"a < b", "c", "x", "y", "10", "100", "1000"} <= set(texts)
    with pytest.raises(ValueError, match="positive"):
        log_lines({"a": [(0, 1)]}, x_title="x", y_title="y")
    with pytest.raises(ValueError, match="needs points"):
        Chart([]).svg()


@pytest.mark.parametrize("log", [False, True])
def test_points_stay_in_the_frame_and_labels_apart(log: bool) -> None:
    points = [(float(x), 100.0 / x) for x in range(1, 60)]
    chart = Chart(
        [Line(points, "a long name of a line", faint=True)], "x", "y", "title", log=log,
        marks=[(40, "here")], spans=[(2, 5, "1")], size=(500, 300),
    )  # fmt: skip
    drawn = chart.svg()
    [line] = re.findall(r'<polyline points="([^"]*)"', drawn)
    at = [tuple(map(float, point.split(","))) for point in line.split()]
    assert len(at) == 59 and all(0 < x < 500 and 0 < y < 300 for x, y in at)
    labels = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="272.0" text-anchor="middle"', drawn)]
    assert len(labels) > 3 and all(b - a >= 30 for a, b in itertools.pairwise(labels))
    assert "here" in drawn and 'class="span"' in drawn


def test_one_value_lies_in_the_middle() -> None:
    drawn = Chart([Line([(0.5, 0.3)])], size=(200, 100)).svg()
    assert "nan" not in drawn and 'cx="123.0"' in drawn


def test_ticks_are_round_and_means_keep_the_ends() -> None:
    assert ticks(0, 960, at_most=4) == [0, 250, 500, 750]
    assert ticks(0, 1, at_most=4) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 3, at_most=4)[0] == 3
    assert smoothed([0, 3, 6, 3, 0], reach=1) == [0, 3, 4, 3, 0]
    assert smoothed([1.0]) == [1.0]
