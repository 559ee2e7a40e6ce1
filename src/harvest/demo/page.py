"""The page that shows what a run of the demo found: one HTML file that needs no other."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from harvest.charts import Chart, Line, smoothed
from harvest.config import RunConfig
from harvest.demo.scores import CHOICES, LEFT_OUT, Material
from harvest.demo.seconds import duration, whole_seconds
from harvest.evaluation.motion_truth import DIRECTION, NO_DIRECTION
from harvest.files import write_file
from harvest.machine import described

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

    @property
    def best(self) -> str:
        """The better of the two: `image`, `video`, or "" where their intervals overlap or only one was scored."""
        if self.image is None or self.image_interval is None or self.video_interval is None:
            return "" if self.image is None or self.image == self.video else self._better
        apart = (
            self.image_interval[1] < self.video_interval[0] or self.video_interval[1] < self.image_interval[0]
        )
        return self._better if apart else ""

    @property
    def _better(self) -> str:
        assert self.image is not None
        return "video" if (self.video > self.image) != self.is_rank else "image"

    @property
    def is_learned(self) -> bool:
        """Whether the video model is better than chance, by its interval."""
        return self.is_rank or self.video_interval is None or self.video_interval[0] > self.chance


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
    not_learned: str
    """What the video model did not learn, or least."""
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


# ---- from figures to the page ------------------------------------------------------------------------------------


def scores_of(facts: Mapping[str, Any]) -> list[Score]:
    """The rows of the table."""
    named = dict(CHOICES)
    videos = round(2 * facts["t2v_median_rank"]["chance"] - 1)
    for k in (1, 5, 10):
        place = f"among the first {k}" if k > 1 else "first"
        named[f"t2v_r{k}"] = f"search, R@{k}", f"a caption finds its clip {place} of {videos}"
    named["t2v_median_rank"] = (
        "search, median rank",
        f"where the right clip of {videos} stands; lower is better",
    )
    rows = []
    for key, (name, what) in named.items():
        pair = facts[key]
        intervals = {mode: tuple(ends) for mode, ends in pair.get("intervals", {}).items()}
        rows.append(
            Score(
                name,
                what,
                pair["image"],
                pair["video"],
                pair["chance"],
                intervals.get("image"),
                intervals.get("video"),
                is_rank=key.endswith("rank"),
            )
        )
    if "qa" in facts:
        qa = facts["qa"]
        ends = tuple(qa["intervals"]["video"])
        what = "a motion, a colour or a shape; the image model cannot answer"
        rows.append(Score("questions, one word", what, None, qa["video"], qa["chance"], None, ends))
    return rows


def write_page(
    out: Path,
    facts: Mapping[str, Any],
    curves: Sequence[Curve],
    searches: Sequence[Search],
    blanks: Sequence[Blank],
    config: RunConfig,
    material: Material,
    parts: Mapping[str, float],
) -> None:
    motion, held = facts["motion_choice"], facts["motion_choice_held_out"]
    took, machine = whole_seconds(parts), facts["hardware"]
    where = machine["gpu"] or (
        "one CPU core" if machine["threads"] == 1 else f"{machine['threads']} CPU cores"
    )
    claim = (
        f"Asked which of four motions a clip shows, the image model is right in {percent(motion['image'])} "
        f"(chance is {percent(motion['chance'])}). The video model made from it in {duration(took['train'])} on "
        f"{where} is right in {percent(motion['video'])}, and in {percent(held['video'])} where the combination of "
        "colour, shape and motion was never seen in training."
    )
    words, note = facts.get("masked_words", {}), ""
    if words:
        right, other = words["intervals"]["right_clip"], words["intervals"]["other_clip"]
        note = (
            f"Of {words['hidden_words']} words hidden at random in the captions of {len(material.retrieval)} clips, "
            f"{percent(words['right_clip'])} are filled in correctly with the clip itself ({right[0]:.1f} to {right[1]:.1f}) "
            f"and {percent(words['other_clip'])} with another ({other[0]:.1f} to {other[1]:.1f})."
        )
    tuned = config.selection_at(config.loop.steps)
    tuning = (
        f"; then for {config.tuning.steps} steps {tuned.drop_ratio:.0%}{LEFT_OUT[tuned.selector]}"
        if config.tuning.steps
        else ""
    )
    details = [
        ("recipe", f"{facts['recipe']}, seed {facts['seed']}"),
        ("training", f"{facts['clips_seen']:,} clips seen, drawn from {facts['training_clips']:,}"),
        (
            "left out of each clip",
            f"{facts['drop_ratio']:.0%} of its patches{LEFT_OUT[facts['selector']]}{tuning}",
        ),
        ("training took", duration(took["train"])),
        (
            "world, scores",
            f"{duration(took['world'])}, {duration(took['image_scores'] + took['video_scores'])}",
        ),
        ("hardware", described(machine)),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("date", facts["date"]),
    ]
    write_report(
        out / "report.html",
        Page(
            claim=claim,
            scores=scores_of(facts),
            right_clip=words.get("right_clip", 0.0),
            other_clip=words.get("other_clip", 0.0),
            curves=curves,
            has_tuning=config.tuning.steps > 0,
            searches=searches,
            num_clips=len(material.retrieval),
            bars=[
                Bar(name.replace("_", ", "), pair["image"], pair["video"])
                for name, pair in motion["groups"].items()
            ],
            bars_chance=motion["chance"],
            not_learned=not_learned(facts),
            truth=truth_said(facts),
            blanks=blanks,
            blanks_note=note,
            facts=details,
            command=facts["command"],
            next_commands=next_commands(out),
        ),
    )


def not_learned(facts: Mapping[str, Any]) -> str:
    """What the video model cannot tell from chance, and the group of motions it knows least."""
    chance = [
        f"{row.name} ({percent(row.video)}, chance {percent(row.chance)})"
        for row in scores_of(facts)
        if not row.is_learned
    ]
    groups = {name: pair["video"] for name, pair in facts["motion_choice"]["groups"].items()}
    worst = min(groups, key=lambda name: groups[name])
    said = f"Not learned: {'; '.join(chance)}. " if chance else ""
    return f"{said}Of the motions it knows {worst.replace('_', ', ')} least ({percent(groups[worst])})."


def truth_said(facts: Mapping[str, Any]) -> str:
    """What becomes of the motion questions when time is taken from the clips, as the page says it."""
    truth = facts.get("motion_truth")
    if truth is None:
        return ""
    return (
        f"How much of it needs time: of {truth['questions']} of these questions the video model answers "
        f"{percent(truth['forward'])} correctly, {percent(truth['shuffled'])} when the frames are shuffled, "
        f"{percent(truth['one_frame'])} when one frame is shown all the time. {_backwards_said(truth)}"
    )


def _backwards_said(truth: Mapping[str, Any]) -> str:
    """What becomes of the questions when clips run backwards, those of a direction apart from the rest."""
    has, has_not = truth.get(DIRECTION), truth.get(NO_DIRECTION)
    if has is None or has_not is None:
        return f"When clips run backwards, {percent(truth['reversed'])}."
    return (
        f"When clips run backwards, a motion with a direction shows its opposite: of {has['questions']} such questions "
        f"{percent(has['reversed'])} are then answered correctly, {percent(has['forward'])} as they are (the fewer the "
        f"better, as the model names what it sees). A motion that comes back shows the same again: of "
        f"{has_not['questions']}, {percent(has_not['reversed'])} and {percent(has_not['forward'])}."
    )


def draw_curves(metrics: Path, config: RunConfig) -> list[Curve]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    tuning_from = config.loop.steps if config.tuning.steps else None
    drawn = (
        curve(lines, "vtc", title="matching clips and captions", unit="loss", tuning_from=tuning_from),
        curve(lines, "mlm", title="filling hidden words", unit="loss", tuning_from=tuning_from),
        curve(
            lines,
            "words_right",
            title="hidden words filled in correctly",
            unit="percent",
            scale=100,
            tuning_from=tuning_from,
        ),
        curve(
            lines,
            "motion_choice/accuracy",
            title="which of four motions, clips not trained on",
            unit="percent",
            scale=100,
            tuning_from=tuning_from,
        ),
    )
    return [one for one in drawn if one is not None]


SENTENCE = "a red circle moves to the left"
"""In the demo's library, where it is a combination that training never showed."""


def next_commands(out: Path) -> list[tuple[str, str]]:
    """What to type next."""
    folder, harvest = shlex.quote(short(out)), harvest_command()
    return [
        ("find clips with words", f'{harvest} search {folder}/library "{SENTENCE}"'),
        ("the same in the browser", f"{harvest} serve {folder}/library --open"),
        (
            "score the model yourself",
            f"{harvest} evaluate {folder}/model --data {folder}/world/motion_choice.jsonl --task choice",
        ),
        (
            "train for longer",
            f"{harvest} train mini-harvest --data.train {folder}/world/train.jsonl --loop.steps 4000 --out runs/longer",
        ),
        (
            "start from CLIP, with your own captioned clips",
            f"{harvest} train harvest-b16 --data.train clips.csv --out runs/clips",
        ),
    ]


def short(path: Path) -> str:
    """A path as one types it here: relative where it is below the working folder."""
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def harvest_command() -> str:
    """How to call Harvest from a shell: by its name, by its path below the working folder, or by Python."""
    if shutil.which("harvest"):
        return "harvest"
    beside = Path(sys.executable).parent / "harvest"
    if beside.is_file() and beside.is_relative_to(Path.cwd()):
        return shlex.quote(short(beside))
    return "python -m harvest"
