"""Between an image model and the video model made of it: what each share of the two sees (weight interpolation).

Post-training wins video skill and may lose some of the image model's. Weights between the two often keep most of both
(WiSE-FT, Wortsman et al. 2022; ViCLIP). Which share does so best is measured, not guessed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harvest.charts import Chart, Line
from harvest.evaluation.embed import Mode
from harvest.evaluation.result import Result
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks import evaluate
from harvest.files import write_file
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.model.folder import save_model
from harvest.model.inflation import blend, check_blendable
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel

Score = Callable[[VideoTextModel, Mode], Result]
"""The result of a model, shown clips as videos or as images."""
SHARES = tuple(round(0.1 * step, 1) for step in range(11))


class Skill(NamedTuple):
    """The main metric of an evaluation and its 95 % interval, fractions."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Point:
    """What one blend scored."""

    video_ratio: float
    image: Skill
    video: Skill


@dataclass(frozen=True)
class Sweep:
    """Every share that was tried, between the two models."""

    points: tuple[Point, ...]
    """By rising share; the last is the video model."""
    image_model: Skill
    """Image skill of the image model itself, which sees every frame alone. The share 0 is not that model: it attends to
    all frames at once, which it was not trained to do."""
    image_limit: float = 1.0
    """Points of image skill that a blend may lose against the image model."""
    video_limit: float = 2.0
    """Points of video skill that it may lose against the video model."""

    def losses(self, point: Point) -> tuple[float, float]:
        """Points lost on images and on video; what is won is a negative loss."""
        video_model = self.points[-1].video.value
        return 100 * (self.image_model.value - point.image.value), 100 * (video_model - point.video.value)

    def used(self, point: Point) -> float:
        """How much of its limits a blend uses, the greater of the two; up to 1 it is within both."""
        image, video = self.losses(point)
        return max(0.0, image / self.image_limit, video / self.video_limit)

    @property
    def best(self) -> Point:
        """The blend that uses least of its limits; of equal ones that with more video skill, then with the larger share."""
        return min(self.points, key=lambda p: (round(self.used(p), 9), -p.video.value, -p.video_ratio))


def sweep(
    image_model: VideoTextModel,
    video_model: VideoTextModel,
    *,
    image_skill: Score,
    video_skill: Score,
    shares: Sequence[float] = SHARES,
    image_limit: float = 1.0,
    video_limit: float = 2.0,
    progress: OnProgress | None = None,
) -> Sweep:
    """Score shares of the video model's weights, all of it among them; the video model is left as it was.

    The skills are the main metrics of what `image_skill` and `video_skill` find of a blend, shown clips as "video", and
    of the image model as "image". New parameters, such as positions in time, are the video model's in every blend.
    """
    if any(not 0 <= share <= 1 for share in shares):
        raise HarvestError(f"shares of the video model go from 0 to 1, got {list(shares)}")
    if min(image_limit, video_limit) <= 0:
        raise HarvestError(f"limits must be above 0 points, got {image_limit} and {video_limit}")
    check_blendable(image_model, video_model)
    tried, done = sorted({1.0, *shares}), 0

    def score(skill: Score, model: VideoTextModel, mode: Mode) -> Skill:
        nonlocal done
        found = _main(skill(model, mode))
        done += 1
        if progress is not None:
            progress(done, 2 * len(tried) + 1)
        return found

    alone = score(image_skill, image_model, "image")
    kept = {name: tensor.clone() for name, tensor in video_model.state_dict().items()}
    points = []
    try:
        for share in tried:
            video_model.load_state_dict(kept)
            blend(image_model, video_model, video_ratio=share)
            points.append(
                Point(
                    share, score(image_skill, video_model, "video"), score(video_skill, video_model, "video")
                )
            )
    finally:
        video_model.load_state_dict(kept)
    return Sweep(tuple(points), alone, image_limit, video_limit)


def main_metric(
    tokenizer: Tokenizer, examples: Sequence[Example], task: str, settings: EvalSettings
) -> Score:
    """A skill that `sweep` measures: the result of a task on some rows."""

    def score(model: VideoTextModel, mode: Mode) -> Result:
        how = dataclasses.replace(settings, image=mode == "image")
        return evaluate(model, tokenizer, examples, task=task, settings=how, progress=lambda *_: None)

    return score


def _main(result: Result) -> Skill:
    """The first metric that has an interval: t2v_r1, accuracy, top1."""
    name = next(iter(result.draws))
    return Skill(result.metrics[name], result.intervals[name])


def write_blend(
    out: Path,
    found: Sweep,
    image_model: VideoTextModel,
    video_model: VideoTextModel,
    tokenizer: Tokenizer,
    *,
    sources: tuple[str, str],
    image_name: str,
    video_name: str,
) -> None:
    """Blend the video model, in place, by the best share and write OUT/model, OUT/curve.json and OUT/curve.svg.

    `sources` name the image model and the video model as they were asked for.
    """
    share = found.best.video_ratio
    blend(image_model, video_model, video_ratio=share)
    notes = {"started_from": sources[0], "blended": sources[1], "video_ratio": share}
    save_model(out / "model", video_model, tokenizer, notes=notes)
    names = {"image_name": image_name, "video_name": video_name}
    facts = {**dataclasses.asdict(found), "best": share, **names}
    write_file(out / "curve.json", json.dumps(facts, indent=1) + "\n")
    write_file(out / "curve.svg", draw_curve(found, **names))


def draw_curve(found: Sweep, *, image_name: str, video_name: str) -> str:
    """An SVG: image skill to the right, video skill upwards, a dot for every share, the best one on a line of its own
    name; a dashed line at the image model's own skill."""
    curve = [(100 * p.image.value, 100 * p.video.value) for p in found.points]
    best = curve[found.points.index(found.best)]
    return Chart(
        [
            Line(curve, labels=[f"{p.video_ratio:g}" for p in found.points]),
            Line([best], name=f"best: {found.best.video_ratio:g}"),
        ],
        f"{image_name}, %",
        f"{video_name}, %",
        size=(520, 420),
        marks=[(100 * found.image_model.value, "image model")],
    ).svg()
