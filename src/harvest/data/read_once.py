"""Every clip of a list once, in order: what evaluation, search and the memory cache read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from harvest.data import transforms
from harvest.data.columns import Columns
from harvest.data.guard import Guard, Lost
from harvest.data.rows import video_of
from harvest.data.sampling import FrameOrder, ViewPlaces, frame_places
from harvest.data.video import Decoder, PackedVideo, VideoError, read_clip
from harvest.data.workers import worker_batches
from harvest.interfaces import Example, Fit, HarvestError, Interpolation
from harvest.parallel import generator_for

VIDEO_LIMIT_S = 30.0
"""Seconds after which a video counts as broken, where workers read."""


def clip_numbers(examples: Sequence[Example]) -> Tensor:
    """For each row the number of its clip, counted in order of appearance: int64 `[n]`.

    Rows with the same video, start and end are captions of one clip.
    """
    if isinstance(examples, Columns):
        return examples.clip_of
    seen: dict[tuple[str, float, float | None], int] = {}
    return torch.tensor(
        [seen.setdefault((e.video, e.start_s, e.end_s), len(seen)) for e in examples], dtype=torch.int64
    )


def first_rows(clip_of: Tensor) -> list[int]:
    """The first row of each clip of `clip_numbers`."""
    rows = torch.full((int(clip_of.max()) + 1 if len(clip_of) else 0,), -1, dtype=torch.int64)
    backwards = torch.arange(len(clip_of) - 1, -1, -1)
    rows[clip_of[backwards]] = backwards
    return rows.tolist()


class ClipReader(Dataset):
    """`reader[numbers]`: (numbers of the clips read, their frames or None, [(number, reason)] of the others).

    Frames are uint8 `[n, T, 3, S, S]`, or `[n, views, T, 3, S, S]` with `views`, a pair (clips in time, crops in
    space): clips differ in where in its segment a frame is taken (`sampling.segment_times`), crops in where along the
    longer side of the picture the square lies (`transforms.side_crops`). With `seed` the times are drawn, once a clip;
    else they are the middles of the segments.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        num_frames: int,
        image_size: int,
        fit: Fit = "crop",
        frame_order: FrameOrder = "forward",
        *,
        views: tuple[int, int] | None = None,
        view_places: ViewPlaces = "inner",
        interpolation: Interpolation = "bicubic",
        seed: int | None = None,
        limit_s: float = VIDEO_LIMIT_S,
        decoder: Decoder = "pyav",
    ) -> None:
        self.examples, self.num_frames, self.image_size = examples, num_frames, image_size
        self.fit: Fit | None = fit if views is None or views[1] == 1 else None
        self.frame_order, self.views, self.seed = frame_order, views, seed
        self.view_places = view_places
        self.interpolation: Interpolation = interpolation
        self.limit_s, self.decoder = limit_s, decoder
        self._guard: Guard | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def start_guard(self) -> None:
        self._guard = Guard(self._pixels, limit_s=self.limit_s)
        self._guard.start()

    def _pixels(self, number: int, video: str | PackedVideo) -> np.ndarray:
        example = self.examples[number]
        num_clips, num_crops = self.views or (1, 1)
        frames = read_clip(
            video,
            num_frames=self.num_frames,
            image_size=self.image_size,
            start_s=example.start_s,
            end_s=example.end_s,
            generator=None if self.seed is None else generator_for(self.seed, 0, number),
            num_clips=num_clips,
            view_places=self.view_places,
            fit=self.fit,
            interpolation=self.interpolation,
            decoder=self.decoder,
        ).frames
        if self.views is None:
            return frames.numpy()
        crops = transforms.side_crops(frames, self.image_size, num_crops=num_crops)
        return torch.stack([crop[clip::num_clips] for clip in range(num_clips) for crop in crops]).numpy()

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None, list[tuple[int, str]]]:
        read, refused, frames = [], [], []
        for number in numbers:
            try:
                video = video_of(self.examples[number].video)  # here: a slow bucket is no broken video
                pixels = (self._guard or self._pixels)(number, video)
                frames.append(self._ordered(number, torch.from_numpy(pixels)))
                read.append(number)
            except VideoError as error:
                refused.append((number, error.reason))
            except Lost as error:
                refused.append((number, str(error)))
        return torch.tensor(read, dtype=torch.int64), torch.stack(frames) if frames else None, refused

    def _ordered(self, number: int, frames: Tensor) -> Tensor:
        """Frames `[..., T, 3, S, S]` in the order asked for; a shuffled one is a function of the clip's number."""
        if self.frame_order == "forward":
            return frames
        places = frame_places(self.frame_order, self.num_frames, generator=generator_for(0, number))
        return frames.index_select(frames.ndim - 4, places)

    def batches(
        self, *, batch_size: int, workers: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, str]]]]:
        """(clip numbers, frames, [(clip number, reason)]) in the order of the clips; rank r reads every world-th batch."""
        lists = [
            list(range(start, min(start + batch_size, len(self))))
            for start in range(0, len(self), batch_size)
        ][rank::world]
        views = () if self.views is None else (self.views[0] * self.views[1],)
        empty = torch.empty(
            0, *views, self.num_frames, 3, self.image_size, self.image_size, dtype=torch.uint8
        )
        workers = min(workers, len(lists))
        for numbers, video, refused in worker_batches(self, lists, workers=workers, decoder=self.decoder):
            yield numbers, empty if video is None else video, refused


def eval_batches(
    examples: Sequence[Example],
    *,
    num_frames: int,
    image_size: int,
    batch_size: int,
    workers: int = 2,
    fit: Fit = "crop",
    interpolation: Interpolation = "bicubic",
    frame_order: FrameOrder = "forward",
    views: tuple[int, int] | None = None,
    view_places: ViewPlaces = "inner",
    rank: int = 0,
    world: int = 1,
    on_broken: Callable[[Example, str], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(clip numbers int64 `[b]`, video uint8 `[b, T, 3, S, S]`) for every clip once, in the manifest's order.

    Clip numbers are those of `clip_numbers(examples)`, so that a clip with several captions is decoded once. Times are
    the middles of the segments, shown in `frame_order`. With `views`, a pair (clips in time, crops in space), video is
    `[b, clips * crops, T, 3, S, S]` (`ClipReader`). A clip that cannot be read is left out and handed to `on_broken`
    with its reason; batches hold at most `batch_size` clips and are never empty.

    Of `world` processes the one of this `rank` reads every `world`-th batch, also one of which nothing could be read,
    so that batch n of all is batch n // world of rank n % world.
    """
    if views is not None and min(views) < 1:
        raise HarvestError(f"views: expected at least 1 clip and 1 crop, got {views[0]} and {views[1]}")
    chosen = [examples[row] for row in first_rows(clip_numbers(examples))]
    reader = ClipReader(
        chosen,
        num_frames,
        image_size,
        fit,
        frame_order,
        views=views,
        view_places=view_places,
        interpolation=interpolation,
    )
    for numbers, video, refused in reader.batches(
        batch_size=batch_size, workers=workers, rank=rank, world=world
    ):
        for number, reason in refused:
            if on_broken is not None:
                on_broken(chosen[number], reason)
        if len(numbers) or world > 1:
            yield numbers, video
