"""What the demo asks both models, and the figures of demo.json."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch
from torch import Tensor

from harvest import __version__
from harvest.config import RunConfig
from harvest.data.manifest import read_manifest
from harvest.data.miniworld import MiniWorld, reverse_of
from harvest.evaluation import EvalSettings, evaluate
from harvest.evaluation.embed import Embeddings, Mode, cosines, embed_texts
from harvest.evaluation.motion_truth import DIRECTION, NO_DIRECTION, by_direction, motion_truth
from harvest.evaluation.result import Result
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.interfaces import Example, OnProgress
from harvest.machine import hardware
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, generator_for
from harvest.tokens import Selector

CHOICES = {
    "motion_choice": ("motion, 4 options", "options differ in the motion only"),
    "motion_choice_held_out": (
        "motion, unseen combinations",
        "colour, shape and motion never seen together in training",
    ),
    "appearance_choice": ("appearance, 4 options", "options differ in colour or shape"),
    "order_choice": ("order of events, 2 options", "which of two things vanishes or jumps first"),
}
LEFT_OUT: Mapping[Selector, str] = {
    "random": ", at random",
    "tube": ", the same places all along",
    "motion": ", mostly what moves least",
    "attention": ", mostly what is looked at least",
    "run_length": ", mostly what repeats",
}
"""How it is chosen what a step leaves out, as the page says it."""
NUM_SEARCHES = 6
NUM_FOUND = 3
BLANKS = {"motion": 4, "colour": 2}  # questions of each kind on the page
NUM_WITHOUT_TIME = (
    200  # motion questions asked again with time taken from the clips: some seconds of the demo
)


class MiniWorldRow(NamedTuple):
    """A row of a mini-world manifest, with the fields that are for analysis."""

    example: Example
    about: Mapping[str, Any]  # kind, group, motion, colour, shape


@dataclass(frozen=True)
class Material:
    """The manifests that the demo scores, and the queries it shows."""

    choices: Mapping[str, Sequence[MiniWorldRow]]
    retrieval: Sequence[MiniWorldRow]
    questions: Sequence[MiniWorldRow]
    queries: Sequence[int]  # places in `retrieval`


def read_material(world: MiniWorld) -> Material:
    found = _rows(world.retrieval)
    queries = choose_queries(found)
    # Shuffled, since the manifest has clips of one appearance side by side, and the "other clip" that words are
    # filled in with is the next one.
    order = torch.randperm(len(found), generator=generator_for(0, len(found))).tolist()
    return Material(
        choices={name: _rows(getattr(world, name)) for name in CHOICES},
        retrieval=[found[place] for place in order],
        questions=_rows(world.questions),
        queries=[order.index(place) for place in queries],
    )


def choose_queries(rows: Sequence[MiniWorldRow]) -> list[int]:
    """The first row of each group of motions, with a colour and a shape that no chosen one has."""
    chosen: list[int] = []
    used: set[Any] = {None, "still"}
    for place, (_, about) in enumerate(rows):
        marks = {about["group"], about["colour"], about["shape"]}
        if len(chosen) < NUM_SEARCHES and not marks & used:
            chosen.append(place)
            used |= marks
    for place, (_, about) in enumerate(rows):  # small worlds may not have that many
        if len(chosen) < NUM_SEARCHES and about["group"] not in used:
            chosen.append(place)
            used.add(about["group"])
    return chosen


def _rows(manifest: Path) -> list[MiniWorldRow]:
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [
        MiniWorldRow(example, about) for example, about in zip(read_manifest(manifest), lines, strict=True)
    ]


@dataclass(frozen=True)
class Scores:
    """What one model scored."""

    results: Mapping[str, Result]
    """By manifest, `masked_words` and `qa` where the model can fill words in, and of a video model `motion_truth`."""
    found: Tensor  # int64 [queries, clips]: for each query of the page the clips, best first


def score(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    material: Material,
    mode: Mode,
    precision: Precision,
    progress: OnProgress,
) -> Scores:
    """Score a model on every manifest of the demo; each clip is encoded once."""
    model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    settings = EvalSettings(image=mode == "image", precision=precision)
    fills = mode == "video" and model.fusion is not None
    asked_again = material.choices["motion_choice"][:NUM_WITHOUT_TIME] if mode == "video" else []
    sizes = [len(rows) for rows in material.choices.values()] + [len(material.retrieval)] * (1 + fills)
    of, before = sum(sizes) + len(material.questions) * fills + 4 * len(asked_again), 0

    def count(done: int, _: int) -> None:
        progress(before + done, of)

    def asked(task: str, rows: Sequence[MiniWorldRow], **how: Any) -> Result:
        nonlocal before
        examples = [row.example for row in rows]
        result = evaluate(model, tokenizer, examples, task=task, settings=settings, progress=count, **how)
        before += len(rows)
        return result

    results: dict[str, Result] = {}
    for name, rows in material.choices.items():
        groups = {row.example.id: str(row.about["group"] or row.about["kind"]) for row in rows}
        results[name] = asked("choice", rows, groups=groups)
    if asked_again:
        sorts = by_direction(
            {row.example.id: reverse_of(row.about["motion"]) is not None for row in asked_again}
        )
        results["motion_truth"] = motion_truth(
            lambda frame_order: asked("choice", asked_again, groups=sorts, frame_order=frame_order)
        )
    examples = [row.example for row in material.retrieval]
    given = Evaluation(model, tokenizer, examples, settings, progress=count)
    videos = given.embed_videos()
    results["retrieval"] = RetrievalTask().of_embeddings(given, videos)
    before += len(examples)
    if fills:
        results["masked_words"] = asked("masked_words", material.retrieval)
        results["qa"] = asked("qa", material.questions)
    return Scores(results, _search(model, tokenizer, examples, videos, material.queries, precision))


def _search(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    videos: Embeddings,
    queries: Sequence[int],
    precision: Precision,
) -> Tensor:
    texts = embed_texts(
        model, tokenizer, [examples[place].texts[0] for place in queries], precision=precision
    )
    order = cosines(texts, videos.pooled).argsort(dim=1, descending=True, stable=True)
    return videos.first[order]


# ---- figures ----------------------------------------------------------------------------------------------------


def summary(image: Scores, video: Scores, config: RunConfig, *, out: Path, seed: int) -> dict[str, Any]:
    """The content of demo.json, less the seconds; percent where nothing else is said."""
    facts: dict[str, Any] = {}
    for name in CHOICES:
        facts[name] = _pair(image.results[name], video.results[name], "accuracy")
        facts[name]["chance"] = _percent(video.results[name].metrics["chance"])
        facts[name]["groups"] = {
            key.removeprefix("accuracy."): {
                "image": _percent(image.results[name].metrics[key]),
                "video": _percent(value),
            }
            for key, value in video.results[name].metrics.items()
            if key.startswith("accuracy.")
        }
    found = video.results["retrieval"]
    for name in found.metrics:
        facts[name] = _pair(image.results["retrieval"], found, name)
    videos, captions = found.counts["videos"], found.counts["captions"]
    for k in (1, 5, 10):
        facts[f"t2v_r{k}"]["chance"] = _percent(min(1.0, k / videos))
        facts[f"v2t_r{k}"]["chance"] = _percent(min(1.0, k / captions))
    facts["t2v_median_rank"]["chance"], facts["v2t_median_rank"]["chance"] = (
        (videos + 1) / 2,
        (captions + 1) / 2,
    )
    if (words := video.results.get("masked_words")) is not None:
        facts["masked_words"] = {name: _percent(value) for name, value in words.metrics.items()}
        facts["masked_words"]["hidden_words"] = words.counts["hidden_words"]
        facts["masked_words"]["intervals"] = {name: _between(words, name) for name in words.intervals}
    if (truth := video.results.get("motion_truth")) is not None:
        facts["motion_truth"] = {
            **_truth(truth, "accuracy"),
            "questions": truth.counts["questions"],
            **{
                group: {
                    **_truth(truth, f"accuracy.{group}"),
                    "questions": truth.counts[f"questions.{group}"],
                }
                for group in (DIRECTION, NO_DIRECTION)
                if f"accuracy.{group}" in truth.metrics
            },
            "findings": list(truth.findings),
        }
    if (qa := video.results.get("qa")) is not None:
        facts["qa"] = {
            "video": _percent(qa.metrics["accuracy"]),
            "chance": _percent(qa.metrics["chance"]),
            "commonest_answer": _percent(qa.metrics["commonest_answer"]),
            "intervals": {"video": _between(qa, "accuracy")},
        }
    facts["protocol"] = {
        name: {
            mode: side.results[name].protocol
            for mode, side in (("image", image), ("video", video))
            if name in side.results
        }
        for name in video.results
    }
    if "masked_words" in facts["protocol"]:
        facts["protocol"]["masked_words"]["video"] += " The clips are those of the retrieval set, shuffled."
    facts |= {
        "recipe": config.recipe,
        "seed": seed,
        "clips_seen": clips_seen(config),
        "training_clips": config.world.train,
        "drop_ratio": config.selection_at(0).drop_ratio,
        "selector": config.selection_at(0).selector,
        "command": f"harvest demo --out {shlex.quote(str(out))}" + (f" --seed {seed}" if seed else ""),
        "date": datetime.date.today().isoformat(),
        "seconds": {},
        "hardware": hardware(),
        "versions": {
            "harvest": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "av": av.__version__,
        },
    }
    return facts


def _pair(image: Result, video: Result, name: str) -> dict[str, Any]:
    show = float if name.endswith("rank") else _percent
    pair: dict[str, Any] = {"image": show(image.metrics[name]), "video": show(video.metrics[name])}
    if name in video.intervals:
        pair["intervals"] = {"image": _between(image, name), "video": _between(video, name)}
    return pair


def _truth(result: Result, name: str) -> dict[str, float]:
    """A metric with the frames in order, and in every other order."""
    orders = ("forward", "reversed", "shuffled", "one_frame")
    return {
        order: _percent(result.metrics[name if order == "forward" else f"{name}.{order}"]) for order in orders
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _between(result: Result, name: str) -> list[float]:
    return [_percent(end) for end in result.intervals[name]]


def clips_seen(config: RunConfig) -> int:
    tuning = config.tuning.steps * (config.tuning.global_batch or config.loop.global_batch)
    return config.loop.steps * config.loop.global_batch + tuning
