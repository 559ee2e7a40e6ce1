"""Action detection by the official rule of AVA: frame-mAP at intersection over union 0.5.

On ground-truth boxes a person is always found and only the actions are told; on a detector's boxes both count.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from harvest.data.labels import check_same_names
from harvest.data.read_once import eval_batches
from harvest.data.sampling import FrameOrder
from harvest.evaluation.embed import evaluating, share_broken, shared
from harvest.evaluation.metrics import frame_rankings, mean_average_precision, resampled_mean_ap
from harvest.evaluation.result import Result
from harvest.evaluation.settings import DEFAULT, EvalSettings
from harvest.interfaces import Box, Example, HarvestError, OnProgress
from harvest.model.heads import BoxHead
from harvest.model.regions import region_features
from harvest.model.video_text import VideoTextModel
from harvest.parallel import world_rank_size

_USELESS = (
    *("image", "budget", "keep", "dim", "num_clips", "num_crops"),
    *("dual_softmax", "rerank_top_k", "matching"),
)


def detection(
    model: VideoTextModel,
    head: BoxHead,
    examples: Sequence[Example],
    *,
    names: Sequence[str] | None = None,
    detected: dict[str, tuple[Box, ...]] | None = None,
    settings: EvalSettings = DEFAULT,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Result:
    """Score every action of every box against the boxes of `examples`; an example is a picture and what is around it.

    `detected` None takes the annotated boxes themselves, else those of a detector by example id (`read_boxes`); a
    picture without any finds nobody. `names` None takes the head's, else they must be equal. Of the settings those of
    frames and of computing count, others are refused.
    """
    settings.refuse("detection", *_USELESS)
    own = head.config.names
    check_same_names(own, own if names is None else names)
    ids = [example.id for example in examples]
    again = next((id for id, count in Counter(ids).items() if count > 1), None)
    if again is not None:
        raise HarvestError(f"{again!r} is the id of more than one picture: boxes are found by it")
    if detected is not None:
        unknown = sorted(detected.keys() - set(ids))
        if unknown:
            raise HarvestError(
                f"{len(unknown)} pictures of the detected boxes are not in this set (first: {unknown[0]})"
            )
    given = {e.id: e.boxes if detected is None else detected.get(e.id, ()) for e in examples}
    frames = model.config.video.num_frames if settings.num_frames is None else settings.num_frames
    seen = [example for example in examples if given[example.id]]
    if not seen:
        raise HarvestError("there is no box to score")
    broken: dict[str, str] = {}
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    frame: list[Tensor] = []
    number_of = {id: number for number, id in enumerate(ids)}
    done = 0
    rank, size = world_rank_size()
    read = eval_batches(
        seen,
        num_frames=frames,
        image_size=model.config.video.image_size,
        batch_size=settings.batch_size,
        workers=settings.workers,
        crop="squash",
        frame_order=frame_order,
        rank=rank,
        world=size,
        on_broken=lambda example, reason: broken.update({example.id: reason}),
    )

    def actions(numbers: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sides of every box, its scores, and the number of its picture."""
        shown = [seen[number] for number in numbers.tolist()]
        counts = torch.tensor([len(given[e.id]) for e in shown])
        owner = torch.arange(len(shown)).repeat_interleave(counts)
        sides = torch.tensor([box.sides for e in shown for box in given[e.id]])
        with evaluating(model, settings.precision):
            device = model.log_scale.device
            tokens = model.video_features(video.to(device)).tokens
            places = model.grid(video).num_patches
            found = head(region_features(tokens, places, sides.to(device), owner.to(device)))
        return sides, found.float().sigmoid().cpu(), torch.tensor([number_of[e.id] for e in shown])[owner]

    for numbers, (sides, found, pictures) in shared(read, actions, device=torch.device("cpu")):
        boxes.append(sides)
        scores.append(found)
        frame.append(pictures)
        done += len(numbers)
        if progress is not None:
            progress(done, len(seen))
    share_broken(broken, seen)
    if not scores:
        name, reason = next(iter(broken.items()))
        raise HarvestError(f"none of the {len(seen)} pictures could be read; the first, {name!r}: {reason}")
    kept = [e for e in examples if e.id not in broken]
    truth_boxes, truth_label, truth_frame = truth(kept, number_of)
    values = torch.cat(scores)
    if not values.isfinite().all():
        raise HarvestError("the scores are not finite: the model's weights are broken")
    numbers_of_videos: dict[str, int] = {}
    video_of = torch.tensor([numbers_of_videos.setdefault(e.video, len(numbers_of_videos)) for e in examples])
    rankings = frame_rankings(
        torch.cat(frame),
        torch.cat(boxes),
        values,
        truth_frame,
        truth_boxes,
        truth_label,
        group=torch.unique(video_of, return_inverse=True)[1],
    )
    occurs = torch.unique(truth_label)
    whose = "annotated" if detected is None else "a detector's"
    return Result(
        task="detection",
        mode="video",
        protocol=(
            f"Frame-mAP at intersection over union 0.5 (the official rule of AVA), the mean over {len(occurs)} of"
            f" {len(own)} actions that occur, on {whose} boxes; {frames} frames a picture, squashed to a square."
        ),
        metrics={"frame_map": float(mean_average_precision(rankings))},
        counts={
            "pictures": len(kept),
            "boxes": len(values),
            "labels": len(truth_label),
            "actions_that_occur": len(occurs),
            "examples_missing": len(broken),
        },
        missing=broken,
        settings={
            "num_frames": frames,
            "num_clips": 1,
            "num_crops": 1,
            "image_size": model.config.video.image_size,
            "precision": settings.precision,
            "frame_order": frame_order,
            "boxes": "annotated" if detected is None else "detected",
        },
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
