"""Classification by a fine-tuned head, over several views of every clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harvest.data.labels import check_labels, check_same_names
from harvest.data.read_once import clip_numbers, eval_batches
from harvest.data.sampling import FrameOrder
from harvest.evaluation.embed import evaluating, kept, share_broken, shared
from harvest.evaluation.metrics import (
    choice_credit,
    class_rankings,
    mean_average_precision,
    mean_class_accuracy,
    resampled_mean_ap,
)
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.settings import DEFAULT, EvalSettings
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.model.heads import ClipHead
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, world_rank_size


def classification(
    model: VideoTextModel,
    head: ClipHead,
    examples: Sequence[Example],
    *,
    class_names: Sequence[str] | None = None,
    settings: EvalSettings = DEFAULT,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Result:
    """Which classes does the head see in a clip? Probabilities of its `num_clips` x `num_crops` views are averaged.

    `Example.label` (or `labels`) counts in the names of the head; `class_names` None takes them to be the examples'
    own, else they must be equal. `batch_size` is in views. With `labels` the metric is the mean average precision
    over the classes that occur.
    """
    names = head.config.names
    check_same_names(names, names if class_names is None else class_names)
    several = check_kind(examples, several=head.config.several, num_classes=len(names))
    frames = model.config.video.num_frames if settings.num_frames is None else settings.num_frames
    selection, num_clips, num_crops = settings.selection, settings.num_clips, settings.num_crops
    scores, rows, broken = score_views(
        lambda video: head(
            model.video_features(video, None if selection is None else kept(model, video, selection))
        ),
        model,
        examples,
        num_frames=frames,
        num_clips=num_clips,
        num_crops=num_crops,
        several=several,
        batch_size=settings.batch_size,
        precision=settings.precision,
        workers=settings.workers,
        frame_order=frame_order,
        progress=progress,
    )
    return report(
        scores,
        rows,
        examples,
        num_classes=len(names),
        several=several,
        how=f"Fine-tuned head, {len(names)} classes; {views_said(frames, num_clips, num_crops)}.",
        broken=broken,
    )


def check_kind(examples: Sequence[Example], *, several: bool, num_classes: int) -> bool:
    """Raise HarvestError where the labels are not those a head was made for; `several` again."""
    check_labels(examples, num_classes)
    wrong = [e.id for e in examples if bool(e.labels) != several]
    if wrong:
        one, many = "one label a row", "a list of labels a row"
        raise HarvestError(
            f"the head was trained with {many if several else one}, example {wrong[0]!r} has "
            f"{one if several else many}: another task"
        )
    return several


def score_views(
    classify: Callable[[Tensor], Tensor],
    model: VideoTextModel,
    examples: Sequence[Example],
    *,
    num_frames: int,
    num_clips: int,
    num_crops: int,
    several: bool,
    batch_size: int,
    precision: Precision,
    workers: int,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Mean probabilities `[clips, A]` on the CPU, the row of each example (-1: broken), and the broken with reasons."""
    clip_of = clip_numbers(examples)
    row = torch.full((int(clip_of.max()) + 1,), -1)
    broken: dict[str, str] = {}
    clip_at = dict(zip(examples, clip_of.tolist(), strict=True))

    def note(example: Example, reason: str) -> None:
        clip = clip_at[example]
        broken.update({e.id: reason for e, c in zip(examples, clip_of.tolist(), strict=True) if c == clip})

    views = num_clips * num_crops
    parts: list[Tensor] = []
    done = 0
    rank, size = world_rank_size()
    read = eval_batches(
        examples,
        num_frames=num_frames,
        image_size=model.config.video.image_size,
        views=(num_clips, num_crops),
        batch_size=max(1, batch_size // views),
        workers=workers,
        frame_order=frame_order,
        rank=rank,
        world=size,
        on_broken=note,
    )

    def chances(numbers: Tensor, video: Tensor) -> tuple[Tensor]:
        with evaluating(model, precision):
            scores = classify(video.flatten(0, 1).to(model.log_scale.device)).float()
            found = scores.sigmoid() if several else scores.softmax(dim=-1)
        return (found.view(len(numbers), views, -1).mean(dim=1),)

    for numbers, (found,) in shared(read, chances, device=torch.device("cpu")):
        parts.append(found.cpu())
        row[numbers] = torch.arange(done, done + len(numbers))
        done += len(numbers)
        if progress is not None:
            progress(done, len(row))
    share_broken(broken, examples)
    if not parts:
        name, reason = next(iter(broken.items()))
        raise HarvestError(f"none of the {len(row)} videos could be read; the first, {name!r}: {reason}")
    scores = torch.cat(parts)
    if not scores.isfinite().all():
        raise HarvestError("the scores are not finite: the model's weights are broken")
    return scores, row[clip_of], broken


def report(
    scores: Tensor,
    rows: Tensor,
    examples: Sequence[Example],
    *,
    num_classes: int,
    several: bool,
    how: str,
    broken: dict[str, str],
    task: str = "classification",
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
        task=task,
        mode="video",
        protocol=how,
        metrics=metrics,
        counts=counts,
        credits=credits,
        resampled=resampled,
        missing=broken,
    )


def views_said(num_frames: int, num_clips: int, num_crops: int) -> str:
    """How clips were looked at, for a protocol sentence."""
    clips, crops = "clip" if num_clips == 1 else "clips", "crop" if num_crops == 1 else "crops"
    mean = "" if num_clips * num_crops == 1 else ", probabilities averaged"
    return f"{num_clips} {clips} x {num_crops} {crops} of {num_frames} frames a video{mean}"
