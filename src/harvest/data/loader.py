"""The batches of a run: samples of a `ClipDataset` in the order of a `StepSampler`, read by workers.

Where worker processes read, a video that hangs or crashes the decoder counts as broken like any other: each worker has
a guarded process of its own (`data.guard`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harvest.data import transforms
from harvest.data.dataset import ClipDataset, Refused, WorkerBatch
from harvest.data.sampler import StepSampler
from harvest.data.workers import worker_batches
from harvest.interfaces import Batch, HarvestError, OnProgress

_MIN_TRIED = 20  # the ratio of broken videos is not judged on fewer


@dataclass
class TrainLoader:
    """Batches for steps first_step, first_step + 1, … without end; what they hold depends on (seed, step) only.

    `global_batch` is as in `StepSampler`.
    """

    dataset: ClipDataset
    global_batch: int | Sequence[tuple[int, int]]
    rank: int = 0
    world: int = 1
    first_step: int = 0
    progress: OnProgress | None = None  # of filling a memory cache
    refused: Mapping[str, Refused] = field(default_factory=dict)  # by id, what this run left out before
    broken: dict[str, Refused] = field(default_factory=dict)  # by id, of the samples seen by this rank
    truncated: int = 0  # captions cut, of the samples seen by this rank
    shortened: int = 0  # long captions of which a part was taken, of the samples seen by this rank
    device: torch.device | str = "cpu"  # that crops, with data.crop_on device

    def __post_init__(self) -> None:
        self.sampler = StepSampler(
            len(self.dataset),
            self.global_batch,
            self.rank,
            self.world,
            self.first_step,
            self.dataset.config.views_per_clip,
        )
        self._is_tried = np.zeros(len(self.dataset), dtype=bool)
        self._num_tried = 0
        self._refused: set[int] = set()
        if self.refused:
            samples = self.dataset.samples_of(self.refused)
            self.dataset.refuse({sample: self.refused[id] for id, sample in samples.items()})

    @property
    def broken_ratio(self) -> float:
        """Of the samples tried so far by this rank."""
        return len(self._refused) / max(1, self._num_tried)

    def batch_at(self, step: int) -> int:
        """Clips over all ranks in this step."""
        return self.sampler.batch_at(step)

    def __iter__(self) -> Iterator[Batch]:
        config = self.dataset.config
        batches: Iterator[WorkerBatch]
        if config.cache == "memory":
            if not self.dataset.is_cached:
                before = getattr(self.dataset.encode_text, "truncated", 0)
                broken = self.dataset.fill_cache(self.progress)
                self._note(range(len(self.dataset)), [(row, Refused(why)) for row, why in broken.items()])
                self.truncated += getattr(self.dataset.encode_text, "truncated", 0) - before
            batches = map(self.dataset.__getitem__, self.sampler)
        else:
            batches = worker_batches(
                self.dataset,
                map(self.dataset.with_samples, self.sampler),
                workers=config.workers,
                decoder=self.dataset.decoder,
                prefetch=4,
                pin_memory=torch.cuda.is_available(),
            )
        for batch in batches:
            yield self._checked(batch)

    def _checked(self, found: WorkerBatch) -> Batch:
        self._note(found.tried, found.broken)
        self.truncated += found.truncated
        self.shortened += found.shortened
        if found.batch is None:
            raise self._too_many_broken()
        if found.crops is not None:
            video = found.batch.video.to(self.device, non_blocking=True)
            video = transforms.crop_batch(video, found.crops, self.dataset.image_size)
            return found.batch._replace(video=video)
        return found.batch

    def _note(self, tried: Iterable[int], broken: Iterable[tuple[int, Refused]]) -> None:
        samples = np.unique(np.fromiter(tried, dtype=np.int64))
        self._num_tried += int((~self._is_tried[samples]).sum())
        self._is_tried[samples] = True
        for sample, refused in broken:
            self._refused.add(sample)
            self.broken.setdefault(self.dataset.id_of(sample), refused)
        is_telling = self._num_tried >= min(_MIN_TRIED, len(self.dataset))
        if is_telling and self.broken_ratio > self.dataset.config.max_broken_ratio:
            raise self._too_many_broken()

    def _too_many_broken(self) -> HarvestError:
        first = "; ".join(f"{id}: {why.reason}" for id, why in list(self.broken.items())[:3])
        return HarvestError(
            f"{len(self._refused)} of {self._num_tried} videos tried cannot be read ({self.broken_ratio:.0%};"
            f" data.max_broken_ratio allows {self.dataset.config.max_broken_ratio:.0%}). First: {first}."
            " Is data.videos the right folder?"
        )
