"""Action detection by the official rule of AVA: frame-mAP at intersection over union 0.5.

On ground-truth boxes every person is found and only the actions are scored; on a detector's boxes both are.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from harvest.data.labels import check_same_names
from harvest.evaluation.clips import Rows
from harvest.evaluation.metrics import frame_rankings, mean_average_precision, resampled_mean_ap
from harvest.evaluation.result import Result
from harvest.evaluation.task import Evaluation
from harvest.interfaces import Box, Example, HarvestError
from harvest.model.heads import BoxHead
from harvest.model.regions import region_features


@dataclass(frozen=True)
class DetectionTask:
    """Score every action of every box against the boxes of the examples, each a picture and the video around it.

    A picture without a box has no detections. Names, where given, must equal the head's.
    """

    name: ClassVar[str] = "detection"
    scored_by: ClassVar[str] = "fine-tuned head on boxes"
    benchmarks: ClassVar[tuple[str, ...]] = ("detection",)
    names_in: ClassVar[str] = "action_names"
    reads_head: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = False

    boxes: Path | None = None
    """A detector's boxes of persons (csv, `read_boxes`); without it the annotated boxes."""

    def check(self, given: Evaluation) -> None:
        given.refuse(self, "image", "budget", "selector")
        if not isinstance(given.head, BoxHead):
            raise HarvestError(
                "detection needs a model that was fine-tuned to detect actions (recipe ft-ava-b16)"
            )
        own = given.head.config.names
        check_same_names(own, own if given.names is None else given.names)
        ids = [example.id for example in given.examples]
        again = next((id for id, count in Counter(ids).items() if count > 1), None)
        if again is not None:
            raise HarvestError(f"{again!r} is the id of more than one picture: boxes are found by it")
        if not any(self._boxes(given.examples).values()):
            raise HarvestError("there is no box to score")

    def _boxes(self, examples: Sequence[Example]) -> Mapping[str, tuple[Box, ...]]:
        """The boxes that are scored, by example id."""
        if self.boxes is None:
            return {example.id: example.boxes for example in examples}
        detected = read_boxes(self.boxes)
        unknown = sorted(detected.keys() - {example.id for example in examples})
        if unknown:
            raise HarvestError(
                f"{len(unknown)} pictures of the detected boxes are not in this set (first: {unknown[0]})"
            )
        return detected

    def score(self, given: Evaluation) -> Result:
        head, examples, boxes = given.head, given.examples, self._boxes(given.examples)
        assert isinstance(head, BoxHead)
        seen = [example for example in examples if boxes.get(example.id)]
        number_of = {example.id: number for number, example in enumerate(examples)}

        def encode(rows: Rows, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The sides of every box, its scores, and the number of its picture."""
            owned = [
                (clip, seen[place].id, box)
                for clip, places in enumerate(rows)
                for place in places
                for box in boxes[seen[place].id]
            ]
            sides = torch.tensor([box.sides for _, _, box in owned])
            owner = torch.tensor([clip for clip, _, _ in owned])
            regions = region_features(
                given.model.video_features(video).tokens,
                given.model.grid(video).num_patches,
                sides.to(video.device),
                owner.to(video.device),
            )
            pictures = torch.tensor([number_of[id] for _, id, _ in owned])
            return sides, head(regions).float().sigmoid(), pictures

        reading = dataclasses.replace(given.reading, fit="squash")
        found = dataclasses.replace(given, examples=seen).collect(encode, reading)
        sides, scores, pictures = found.parts
        readable = [example for example in examples if example.id not in found.broken]
        truth_boxes, truth_label, truth_frame = truth(readable, number_of)
        videos: dict[str, int] = {}
        video_of = torch.tensor([videos.setdefault(example.video, len(videos)) for example in examples])
        rankings = frame_rankings(
            pictures, sides, scores, truth_frame, truth_boxes, truth_label, group=video_of
        )
        occurs = torch.unique(truth_label)
        whose = "annotated" if self.boxes is None else "a detector's"
        return Result(
            self.name,
            "video",
            f"Frame-mAP at intersection over union 0.5 (the official rule of AVA), the mean over {len(occurs)} of"
            f" {len(head.config.names)} actions that occur, on {whose} boxes; {reading.num_frames} frames a picture,"
            " squashed to a square.",
            metrics={"frame_map": float(mean_average_precision(rankings))},
            counts={
                "pictures": len(readable),
                "boxes": len(scores),
                "labels": len(truth_label),
                "actions_that_occur": len(occurs),
                "examples_missing": len(found.broken),
            },
            missing=found.broken,
            settings={"fit": "squash", "boxes": "annotated" if self.boxes is None else "detected"},
            resampled={"frame_map": resampled_mean_ap(rankings)},
        )


def truth(examples: Sequence[Example], number_of: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes `[m, 4]`, actions `[m]` and pictures `[m]` of everything that is done: a box counts once an action."""
    rows = [
        (box.sides, label, number_of[example.id])
        for example in examples
        for box in example.boxes
        for label in box.labels
    ]
    if not rows:
        raise HarvestError("no box of these pictures does anything: there is nothing to find")
    sides, labels, pictures = zip(*rows, strict=True)
    return torch.tensor(sides), torch.tensor(labels), torch.tensor(pictures)


def read_boxes(path: str | Path, *, min_score: float = 0.8) -> dict[str, tuple[Box, ...]]:
    """A detector's boxes of persons, by the id `VIDEO,SECOND` of the benchmark's rows.

    CSV lines of video, second, left, top, right, bottom (shares of the picture), then the score, or an unused column
    and the score, as the files that go round with SlowFast have it. Boxes below `min_score` are left out.
    """
    path = Path(path)
    found: dict[str, list[Box]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, cells in enumerate(csv.reader(file), 1):
                if not cells:
                    continue
                if len(cells) not in (7, 8):
                    raise HarvestError(
                        f"{path}, line {number}: expected video, second, left, top, right, bottom, score, got"
                        f" {len(cells)} columns"
                    )
                try:
                    second, score = int(float(cells[1])), float(cells[-1])
                    left, top, right, bottom = (float(cell) for cell in cells[2:6])
                except ValueError as error:
                    raise HarvestError(f"{path}, line {number}: not a number: {error}") from None
                if score >= min_score:
                    try:
                        box = Box((left, top, right, bottom), score=score)
                    except HarvestError as error:
                        raise HarvestError(f"{path}, line {number}: {error}") from None
                    found.setdefault(f"{cells[0]},{second:04d}", []).append(box)
    except (OSError, UnicodeDecodeError) as error:
        raise HarvestError(f"cannot read boxes from {path}: {error}") from error
    if not found:
        raise HarvestError(f"{path} holds no box with a score of at least {min_score}")
    return {id: tuple(boxes) for id, boxes in found.items()}
