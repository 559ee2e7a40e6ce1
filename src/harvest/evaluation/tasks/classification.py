"""Classification by a fine-tuned head, over several views of every clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from harvest.data.labels import check_labels, check_same_names
from harvest.data.sampling import ViewPlaces
from harvest.evaluation.clips import Rows
from harvest.evaluation.metrics import (
    choice_credit,
    class_rankings,
    mean_average_precision,
    mean_class_accuracy,
    resampled_mean_ap,
)
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation
from harvest.interfaces import Example, HarvestError
from harvest.model.heads import ClipHead
from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class ClassificationTask:
    """Which classes does the head see in a clip? Probabilities of its views are averaged.

    `Example.label` (or `labels`) counts in the names of the head; names that are given must equal them. With `labels`
    the metric is the mean average precision over the classes that occur.
    """

    name: ClassVar[str] = "classification"
    scored_by: ClassVar[str] = "fine-tuned head"
    benchmarks: ClassVar[tuple[str, ...]] = ("recognition",)
    names_in: ClassVar[str] = "class_names"
    reads_head: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = False

    num_clips: Annotated[int, Range(least=1)] = 1
    """Views in time, whose probabilities are averaged."""
    num_crops: Annotated[int, Range(least=1)] = 1
    """Views along the picture's longer side."""
    view_places: ViewPlaces = "inner"
    """Where in its segment view c of n in time takes a frame: inner at (c + 1) / (n + 1), leading at c / n (UMT's SSv2)."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self, given: Evaluation) -> None:
        given.refuse(self, "image")  # the head reads clips as videos
        if not isinstance(given.head, ClipHead):
            raise HarvestError("classification needs the head of a model that was fine-tuned for it")
        names = given.head.config.names
        check_same_names(names, names if given.names is None else given.names)
        check_kind(given.examples, several=given.head.config.several, num_classes=len(names))

    def score(self, given: Evaluation) -> Result:
        head = given.head
        assert isinstance(head, ClipHead)
        several, names = head.config.several, head.config.names

        def encode(rows: Rows, video: Tensor) -> tuple[Tensor]:
            scores = head(given.features(video.flatten(0, 1))).float()
            found = scores.sigmoid() if several else scores.softmax(dim=-1)
            return (found.view(len(rows), self.num_clips * self.num_crops, -1).mean(dim=1),)

        reading = dataclasses.replace(
            given.reading, views=(self.num_clips, self.num_crops), view_places=self.view_places
        )
        found = given.collect(encode, reading)
        shown = views_said(reading.num_frames, self.num_clips, self.num_crops)
        return report(
            found.parts[0],
            found.row,
            given.examples,
            num_classes=len(names),
            several=several,
            how=f"Fine-tuned head, {len(names)} classes; {shown}.",
            broken=found.broken,
            task=self.name,
        )


def check_kind(examples: Sequence[Example], *, several: bool, num_classes: int) -> None:
    """Raise HarvestError where the labels are not those a head was made for."""
    check_labels(examples, num_classes)
    wrong = [e.id for e in examples if bool(e.labels) != several]
    if wrong:
        one, many = "one label a row", "a list of labels a row"
        raise HarvestError(
            f"the head was trained with {many if several else one}, example {wrong[0]!r} has "
            f"{one if several else many}: another task"
        )


def report(
    scores: Tensor,
    rows: Tensor,
    examples: Sequence[Example],
    *,
    num_classes: int,
    several: bool,
    how: str,
    broken: Mapping[str, str],
    task: str,
    scored_by: str = "",
) -> Result:
    """Figures of probabilities `[clips, A]`; `rows` int64 `[examples]` says which row is whose, -1 where none is."""
    asked = [place for place, row in enumerate(rows.tolist()) if row >= 0]
    given = scores[rows[asked]]
    counts = {
        "clips": len(asked),
        "classes": num_classes,
        "examples_missing": len(examples) - len(asked),
    }
    metrics: dict[str, float]
    credits: dict[str, Credits] = {}
    resampled: dict[str, Tensor] = {}
    if several:
        is_right = torch.zeros(given.shape, dtype=torch.bool)
        for right, place in zip(is_right, asked, strict=True):
            right[list(examples[place].labels)] = True
        rankings = class_rankings(given, is_right, torch.unique(rows[asked], return_inverse=True)[1])
        occurs = is_right.any(dim=0)
        resampled = {"mean_ap": resampled_mean_ap(rankings)}
        metrics = {
            "mean_ap": float(mean_average_precision(rankings)),
            "chance": float(is_right.double().mean(0)[occurs].mean()),
        }
        counts["classes_that_occur"] = int(occurs.sum())
        how += " Mean average precision over the classes that occur."
    else:
        label = torch.tensor([examples[place].label for place in asked])
        top1, top5 = choice_credit(given, label), choice_credit(given, label, k=min(5, num_classes))
        metrics = {
            "top1": float(top1.mean()),
            "top5": float(top5.mean()),
            "mean_class": mean_class_accuracy(top1, label),
            "chance": 1 / num_classes,
        }
        credits = {name: Credits(x, rows[asked]) for name, x in (("top1", top1), ("top5", top5))}
        counts["classes_that_occur"] = len(torch.unique(label))
    return Result(
        task,
        "video",
        how,
        metrics,
        counts,
        broken,
        credits=credits,
        resampled=resampled,
        scored_by=scored_by,
    )


def views_said(num_frames: int, num_clips: int, num_crops: int) -> str:
    """How clips were looked at, for a protocol sentence."""
    clips, crops = "clip" if num_clips == 1 else "clips", "crop" if num_crops == 1 else "crops"
    mean = "" if num_clips * num_crops == 1 else ", probabilities averaged"
    return f"{num_clips} {clips} x {num_crops} {crops} of {num_frames} frames a video{mean}"
