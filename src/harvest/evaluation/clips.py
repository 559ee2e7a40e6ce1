"""The one reader of clips of every evaluator.

An evaluator says what is made of a batch of clips. That each distinct clip is decoded once, that several processes
share the batches out, which rows cannot be read, and that what a model gives is finite, is seen to here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.data.read_once import clip_numbers, eval_batches
from harvest.data.sampling import FrameOrder, ViewPlaces
from harvest.interfaces import Example, Fit, HarvestError, OnProgress
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision, all_gather_ordered, autocast, merge_over_ranks, world_rank_size

Rows = list[list[int]]
"""For each clip of a batch the places in the list of examples of the rows that name it."""
Encode = Callable[[Rows, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class ReadSettings:
    """How clips are read and encoded."""

    num_frames: int
    batch_size: int = 32
    """Clips, or views, encoded at once."""
    precision: Precision = "fp32"
    workers: int = 0
    frame_order: FrameOrder = "forward"
    fit: Fit | None = None
    """How pictures become squares; None: as the model says."""
    view_places: ViewPlaces = "inner"
    views: tuple[int, int] | None = None
    """Stretches in time and crops along the longer side: batches are then `[b, stretches * crops, T, 3, H, W]`."""
    progress: OnProgress | None = None


class Collected(NamedTuple):
    """What was made of all clips that could be read."""

    parts: tuple[Tensor, ...]  # those of the batches, joined along their first dimension
    row: Tensor  # int64 [len(examples)]: the number of each example's clip among them, -1 where it is broken
    first: Tensor  # int64 [clips]: the first example of each
    broken: dict[str, str]  # example id to reason

    @property
    def asked(self) -> list[int]:
        """The places of the examples whose clip could be read."""
        return (self.row >= 0).nonzero()[:, 0].tolist()


def collect(
    model: VideoTextModel, examples: Sequence[Example], encode: Encode, reading: ReadSettings
) -> Collected:
    """Read every clip and join what `encode` makes of the batches; see `clip_batches`."""
    broken: dict[str, str] = {}
    first: list[int] = []
    row = torch.full((len(examples),), -1)
    made = []
    for rows, parts in clip_batches(model, examples, encode, reading, broken):
        for places in rows:
            row[places] = len(first)
            first.append(places[0])
        made.append(parts)
    joined = tuple(torch.cat(columns) for columns in zip(*made, strict=True))
    return Collected(joined, row, torch.tensor(first), broken)


def clip_batches(
    model: VideoTextModel,
    examples: Sequence[Example],
    encode: Encode,
    reading: ReadSettings,
    broken: dict[str, str],
) -> Iterator[tuple[Rows, tuple[Tensor, ...]]]:
    """Encode every distinct clip of a manifest once; yields the rows of each batch and what `encode` made of it.

    `encode(rows, video)` gets uint8 `[b, T, 3, H, W]` on the model's device, with the model in eval mode, without
    gradients and in the precision asked for. Its tensors come to the CPU. Of several processes each encodes every n-th
    batch, and every one gets the results of all in the order that one alone would have.

    `broken` is filled with the ids of rows that cannot be read and the reason. HarvestError where no clip can be read, or
    where the model gives numbers that are not finite.
    """
    rows_of = _rows_of_clips(examples)
    of_example = {examples[place]: places for places in rows_of for place in places}

    def note(example: Example, reason: str) -> None:
        broken.update({examples[place].id: reason for place in of_example[example]})

    rank, size = world_rank_size()
    per_clip = 1 if reading.views is None else reading.views[0] * reading.views[1]
    batches = eval_batches(
        examples,
        num_frames=reading.num_frames,
        image_size=model.config.video.image_size,
        batch_size=max(1, reading.batch_size // per_clip),
        workers=reading.workers,
        fit=reading.fit or model.config.video.fit,
        interpolation=model.config.video.interpolation,
        frame_order=reading.frame_order,
        views=reading.views,
        view_places=reading.view_places,
        rank=rank,
        world=size,
        on_broken=note,
    )

    def own() -> Iterator[tuple[Tensor, tuple[Tensor, ...] | None]]:
        for numbers, video in batches:
            made = None
            if len(numbers):
                with evaluating(model, reading.precision):
                    rows = [rows_of[number] for number in numbers.tolist()]
                    made = tuple(part.cpu() for part in encode(rows, video.to(model.log_scale.device)))
            yield numbers, made

    is_any = False
    for numbers, made in all_gather_ordered(own()):
        if made is None:
            continue
        _check_finite(made)
        is_any = True
        yield [rows_of[number] for number in numbers.tolist()], made
        if reading.progress is not None:
            reading.progress(int(numbers[-1]) + 1, len(rows_of))
    if reading.progress is not None:
        reading.progress(len(rows_of), len(rows_of))
    found = merge_over_ranks(broken)
    broken.clear()
    broken.update({example.id: found[example.id] for example in examples if example.id in found})
    if not is_any:
        name, reason = next(iter(broken.items()))
        raise HarvestError(f"none of the {len(rows_of)} videos could be read; the first, {name!r}: {reason}")


def _rows_of_clips(examples: Sequence[Example]) -> Rows:
    """For each distinct clip, by its number, the places of the examples that name it."""
    if not examples:
        raise HarvestError("there is nothing to evaluate: the list of examples is empty")
    clip_of = clip_numbers(examples).tolist()
    rows_of: Rows = [[] for _ in range(max(clip_of) + 1)]
    for place, clip in enumerate(clip_of):
        rows_of[clip].append(place)
    return rows_of


def _check_finite(parts: tuple[Tensor, ...]) -> None:
    for part in parts:
        if part.is_floating_point() and not part.isfinite().all():
            raise HarvestError(
                f"the model gives numbers that are not finite ({part.dtype}): its weights are broken"
            )


@contextmanager
def evaluating(model: VideoTextModel, precision: Precision) -> Iterator[None]:
    """The model in eval mode, without gradients, in `precision`; as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(model.log_scale.device, precision):
            yield
    finally:
        model.train(was_training)
