"""Videos and pictures in one run: each step's batch is of one kind, in proportion to how many there are.

Steps of the two kinds are spread evenly, and how many of a kind come before a step is arithmetic, not memory: a run
goes on at any step with the batches it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from harvest.data.dataset import ClipDataset, Refused
from harvest.data.loader import TrainLoader
from harvest.interfaces import Batch, HarvestError, OnProgress

NONE: Mapping[str, Refused] = {}
VIDEO, PICTURE = "video ", "picture "
"""In front of the ids of what was broken: a video and a picture may have the same."""


class MixedLoader:
    """`TrainLoader`'s batches of videos, and of pictures in between (UMT's stage 2 takes turns alike)."""

    def __init__(
        self,
        videos: ClipDataset,
        pictures: ClipDataset,
        global_batch: int | Sequence[tuple[int, int]],
        rank: int = 0,
        world: int = 1,
        *,
        first_step: int = 0,
        share: float | None = None,
        progress: OnProgress | None = None,
        refused: Mapping[str, Refused] = NONE,
        device: torch.device | str = "cpu",
    ) -> None:
        """`share` of the steps show pictures; None: as many of each kind as there are."""
        self.share = len(pictures) / (len(videos) + len(pictures)) if share is None else share
        if not 0 < self.share < 1:
            raise HarvestError(f"data.image_ratio: expected more than 0 and less than 1, got {self.share}")
        self.first_step = first_step
        stages = [(0, global_batch)] if isinstance(global_batch, int) else list(global_batch)
        of_pictures = {self.pictures_before(start): clips for start, clips in stages}
        of_videos = {start - self.pictures_before(start): clips for start, clips in stages}
        before = self.pictures_before(first_step)
        self.videos = TrainLoader(
            videos,
            [*of_videos.items()],
            rank,
            world,
            first_step=first_step - before,
            progress=progress,
            refused=_named(VIDEO, refused),
            device=device,
        )
        self.pictures = TrainLoader(
            pictures,
            [*of_pictures.items()],
            rank,
            world,
            first_step=before,
            progress=progress,
            refused=_named(PICTURE, refused),
            device=device,
        )

    def pictures_before(self, step: int) -> int:
        """How many of the steps before this one show pictures."""
        return math.floor(step * self.share)

    def shows_pictures(self, step: int) -> bool:
        return self.pictures_before(step + 1) > self.pictures_before(step)

    def batch_at(self, step: int) -> int:
        """Clips over all ranks in this step."""
        before = self.pictures_before(step)
        if self.shows_pictures(step):
            return self.pictures.batch_at(before)
        return self.videos.batch_at(step - before)

    @property
    def dataset(self) -> ClipDataset:
        return self.videos.dataset

    @property
    def broken(self) -> dict[str, Refused]:
        both = ((VIDEO, self.videos), (PICTURE, self.pictures))
        return {kind + id: why for kind, loader in both for id, why in loader.broken.items()}

    @property
    def broken_ratio(self) -> float:
        """Of the samples of either kind tried so far by this rank, the larger share."""
        return max(self.videos.broken_ratio, self.pictures.broken_ratio)

    @property
    def truncated(self) -> int:
        return self.videos.truncated + self.pictures.truncated

    @property
    def shortened(self) -> int:
        return self.videos.shortened + self.pictures.shortened

    def __iter__(self) -> Iterator[Batch]:
        videos, pictures = iter(self.videos), iter(self.pictures)
        step = self.first_step
        while True:
            yield next(pictures if self.shows_pictures(step) else videos)
            step += 1


def _named(kind: str, refused: Mapping[str, Refused]) -> dict[str, Refused]:
    """What was refused of one kind, by the ids of its own rows."""
    return {id.removeprefix(kind): why for id, why in refused.items() if id.startswith(kind)}
