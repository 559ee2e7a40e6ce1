"""The page that shows what a run of the demo found: one HTML file that needs no other."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import jinja2
import numpy as np
from torch import Tensor

from harvest.charts import Chart, Line, smoothed
from harvest.files import write_file

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Score:
    """A row of the table: one figure of the image model and of the video model."""

    name: str
    what: str
    image: float | None
    video: float
    chance: float
    image_interval: tuple[float, float] | None = None
    video_interval: tuple[float, float] | None = None
    is_rank: bool = False
    """Ranks, where less is better; all others are percent."""


@dataclass(frozen=True)
class Found:
    """A clip that a search brought up."""

    strip: str  # data: URI
    caption: str
    is_right: bool


@dataclass(frozen=True)
class Search:
    """One query, and the best clips by each model."""

    sentence: str
    image: Sequence[Found]
    video: Sequence[Found]
    image_rank: int
    video_rank: int


@dataclass(frozen=True)
class Guess:
    word: str
    percent: float
    is_right: bool


@dataclass(frozen=True)
class Blank:
    """A sentence with a hidden word, filled when shown its own clip and when shown another."""

    sentence: str
    word: str
    own_strip: str
    own: Sequence[Guess]
    other_strip: str
    other_sentence: str
    other_word: str
    other: Sequence[Guess]


@dataclass(frozen=True)
class Bar:
    """The accuracy of both models in one group of motions, percent."""

    name: str
    image: float
    video: float


@dataclass(frozen=True)
class Curve:
    """A metric of the run over its steps: a chart, and the last of its smoothed values."""

    title: str
    svg: str
    last: str


@dataclass(frozen=True)
class Page:
    """Everything the page tells."""

    claim: str
    scores: Sequence[Score]
    right_clip: float
    other_clip: float
    curves: Sequence[Curve]
    has_tuning: bool
    """A dashed line in the curves marks where the last stage begins."""
    searches: Sequence[Search]
    num_clips: int
    bars: Sequence[Bar]
    bars_chance: float
    truth: str
    """What becomes of the bars' questions when time is taken from the clips; "" where it was not asked."""
    blanks: Sequence[Blank]
    blanks_note: str
    facts: Sequence[tuple[str, str]]
    command: str
    next_commands: Sequence[tuple[str, str]]


def write_report(path: Path, page: Page) -> None:
    """Write the page, whole or not at all."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    write_file(path, template.render(page=page))


def percent(value: float) -> str:
    return f"{value:.1f}\u00a0%"  # a space at which no line is broken


# ---- pictures ----------------------------------------------------------------------------------------------------


def filmstrip(frames: Tensor) -> str:
    """Frames uint8 `[T, 3, H, W]` side by side, as the data: URI of a JPEG."""
    T, C, H, W = frames.shape
    row = frames.permute(2, 0, 3, 1).reshape(H, T * W, C).contiguous().numpy()  # [H, T * W, 3]
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(row)).decode("ascii")


def _jpeg(image: np.ndarray) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt = "yuvj444p"  # full range and a colour for every pixel: small shapes keep their edges
    encoder.time_base = Fraction(1, 1)
    encoder.options = {"qmin": "2", "qmax": "2"}
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format="yuvj444p", dst_color_range="JPEG", dst_colorspace="ITU601"
    )
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


# ---- curves ------------------------------------------------------------------------------------------------------


def curve(
    lines: Sequence[Mapping[str, float]],
    key: str,
    *,
    title: str,
    unit: str,
    scale: float = 1.0,
    tuning_from: int | None = None,
) -> Curve | None:
    """The curve of `key` over the steps of metrics.jsonl; None where fewer than two lines have it."""
    points = [(line["step"], scale * line[key]) for line in lines if key in line and math.isfinite(line[key])]
    if len(points) < 2:
        return None
    means = smoothed([value for _, value in points])
    smooth = [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
    chart = Chart(
        [Line(points, dots=False, faint=True), Line(smooth, dots=False)],
        "step",
        unit,
        size=(340, 212),
        x_range=(0, points[-1][0]),
        marks=[(tuning_from, "")] if tuning_from is not None else [],
        left=44,
    )
    return Curve(title, chart.svg(), f"{means[-1]:.1f} %" if unit == "percent" else f"{means[-1]:.2f}")
