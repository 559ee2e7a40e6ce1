"""What changes from step to step: how many tubelets and frames of each clip are seen.

A model that is trained at one budget serves that one well. Trained at several, drawn afresh each step, one set of
weights serves them all (FluxViT; Matryoshka for budgets); walked through in order, they make a run start cheap and end
thorough. Either way the value at a step is a function of (seed, step), the same on all ranks, so a stopped run goes on
to the bit and no rank waits for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from harvest.interfaces import Batch, HarvestError
from harvest.parallel import generator_for
from harvest.ranges import Range, check_ranges

Positive = Annotated[tuple[int, ...], Range(least=1)]


@dataclass(frozen=True)
class VaryConfig:
    budgets: Positive = ()
    """Tubelets seen of each clip, one of these at each step; none: as the objective says, at every step."""
    num_frames: Positive = ()
    """Frames of each clip, one of these at each step, evenly spaced among those that are read (data.num_frames)."""
    image_sizes: Positive = ()
    """Sides of the frames in pixels, one of these at each step: frames are resized from the model's size on the device,
    and the learned positions of its places with them."""
    order: Literal["drawn", "growing"] = "drawn"
    """drawn: afresh at each step. growing: in the order given, an equal part of the main stage each."""

    def __post_init__(self) -> None:
        check_ranges(self, "vary")
        varied = {"budgets": self.budgets, "num_frames": self.num_frames, "image_sizes": self.image_sizes}
        for name, values in varied.items():
            if self.order == "growing" and list(values) != sorted(values):
                raise HarvestError(
                    f"vary.{name}: with vary.order growing, expected rising numbers, got {list(values)}"
                )


def value_at(
    values: tuple[int, ...], step: int, *, order: str, steps: int, seed: int, draw: int = 0
) -> int | None:
    """One of `values` for `step` of a stage of `steps`; None where there are none. `draw` numbers what is drawn apart.

    >>> [value_at((8, 16, 32), step, order="growing", steps=6, seed=0) for step in range(6)]
    [8, 8, 16, 16, 32, 32]
    """
    if not values:
        return None
    if order == "growing":
        return values[min(step * len(values) // steps, len(values) - 1)]
    return values[int(torch.randint(len(values), (), generator=generator_for(seed, step, -1 - draw)))]


def show_frames(batch: Batch, num_frames: int | None) -> Batch:
    """The batch with `num_frames` frames of each clip, the middle ones of equal stretches; None leaves all.

    A clip of fewer frames stays as it is: a picture among clips is one frame, and repeated it would be a still video.

    >>> import torch
    >>> clip = torch.arange(8).view(1, 8, 1, 1, 1)
    >>> empty = torch.empty(0)
    >>> show_frames(Batch(clip, empty, empty, empty, empty), 4).video.flatten().tolist()
    [1, 3, 5, 7]
    """
    T = batch.video.shape[1]
    if num_frames is None or num_frames >= T:
        return batch
    places = torch.arange(num_frames, device=batch.video.device)
    chosen = (2 * places + 1) * T // (2 * num_frames)
    return batch._replace(video=batch.video[:, chosen])


def show_size(batch: Batch, image_size: int | None) -> Batch:
    """The batch with square frames of `image_size` pixels, resized with antialiasing; None leaves them.

    >>> import torch
    >>> empty = torch.empty(0)
    >>> clip = torch.full((1, 2, 3, 8, 8), 7, dtype=torch.uint8)
    >>> show_size(Batch(clip, empty, empty, empty, empty), 4).video.shape
    torch.Size([1, 2, 3, 4, 4])
    """
    video = batch.video
    if image_size is None or image_size == video.shape[-1]:
        return batch
    frames = F.interpolate(
        video.flatten(0, 1).float(), size=(image_size, image_size), mode="bilinear", antialias=True
    )
    frames = frames.round().to(video.dtype)
    return batch._replace(video=frames.view(*video.shape[:3], image_size, image_size))
