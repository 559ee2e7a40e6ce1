"""Several views of every clip for a test: where in time, and where in the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from harvest.data import transforms
from harvest.data.loader import _Clips, _first_rows, clip_numbers
from harvest.data.sampling import FrameOrder
from harvest.data.video import PackedVideo, read_clip
from harvest.interfaces import Example, HarvestError


class _Views(_Clips):
    """Reads clip i of a list as `num_clips` times `num_crops` views, `[views, T, 3, S, S]`."""

    def __init__(
        self,
        examples: Sequence[Example],
        num_frames: int,
        image_size: int,
        *,
        num_clips: int,
        num_crops: int,
        frame_order: FrameOrder = "forward",
    ) -> None:
        super().__init__(
            examples, num_frames, image_size, "center" if num_crops == 1 else "none", frame_order
        )
        self.num_clips, self.num_crops = num_clips, num_crops

    def _pixels(self, number: int, video: str | PackedVideo) -> np.ndarray:
        example = self.examples[number]
        frames = read_clip(
            video,
            num_frames=self.num_frames,
            image_size=self.image_size,
            start_s=example.start_s,
            end_s=example.end_s,
            num_clips=self.num_clips,
            crop=self.crop,
        ).frames
        crops = transforms.side_crops(frames, self.image_size, num_crops=self.num_crops)
        views = [crop[clip :: self.num_clips] for clip in range(self.num_clips) for crop in crops]
        return torch.stack(views).numpy()


def view_batches(
    examples: Sequence[Example],
    *,
    num_frames: int,
    image_size: int,
    num_clips: int,
    num_crops: int,
    batch_size: int,
    workers: int = 2,
    frame_order: FrameOrder = "forward",
    rank: int = 0,
    world: int = 1,
    on_broken: Callable[[Example, str], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `eval_batches`, with `num_clips` x `num_crops` views of every clip: video uint8 `[b, views, T, 3, S, S]`.

    Clips differ in where in its segment a frame is taken (`sampling.segment_times`), crops in where along the longer
    side of the picture the square lies (`transforms.side_crops`).
    """
    if num_clips < 1 or num_crops < 1:
        raise HarvestError(
            f"views: expected num_clips and num_crops of at least 1, got {num_clips} and {num_crops}"
        )
    clip_of = clip_numbers(examples)
    chosen = [examples[row] for row in _first_rows(clip_of, int(clip_of.max()) + 1)]
    clips = _Views(
        chosen, num_frames, image_size, num_clips=num_clips, num_crops=num_crops, frame_order=frame_order
    )
    batches = clips.batches(batch_size=batch_size, workers=workers, rank=rank, world=world)
    for numbers, video, refused in batches:
        for number, reason in refused:
            if on_broken is not None:
                on_broken(chosen[number], reason)
        if len(numbers) or world > 1:
            yield numbers, video
