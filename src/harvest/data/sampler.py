"""Which samples a step sees: a function of (seed, step), whatever the number of ranks and workers.

The order of samples is an endless sequence of permutations, one an epoch. Step s takes the positions from
`position_of(s)` on, rank r of W every W-th of them from the r-th on. So a run resumes at any step exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.parallel import generator_for

Key = tuple[int, int]
"""(epoch, place in that epoch's order)"""


class Keys(list[Key]):
    """Keys, and of each the samples of the order from its place on: int64 `[len(keys), n]`."""

    def __init__(self, keys: Iterable[Key], samples: np.ndarray) -> None:
        super().__init__(keys)
        self.samples = samples


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The permutation of n samples in an epoch, int64 `[n]`: a function of its arguments alone."""
    return torch.randperm(n, generator=generator_for(seed, epoch))


@dataclass(frozen=True)
class StepSampler:
    """The keys of one step after the other, from `first_step` on, without end."""

    num_samples: int
    global_batch: int | Sequence[tuple[int, int]]
    """Clips a step over all ranks or, where it changes within a run, pairs (first step, clips a step) from step 0 on."""
    rank: int = 0
    world: int = 1
    first_step: int = 0
    views_per_clip: int = 1

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise HarvestError(
                f"global_batch: expected (first step, clips) from step 0 on, rising, got {self.global_batch}"
            )
        multiple = self.world * self.views_per_clip
        for _, clips in self.stages:
            if clips < 1 or clips % multiple:
                together = (
                    f", {self.views_per_clip} views of a clip together" if self.views_per_clip > 1 else ""
                )
                raise HarvestError(
                    f"a batch of {clips} clips cannot be shared equally by {self.world} ranks{together}: take a"
                    f" multiple of {multiple}"
                )

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Pairs (first step, clips a step)."""
        batch = self.global_batch
        return [(0, batch)] if isinstance(batch, int) else [(int(step), int(clips)) for step, clips in batch]

    def batch_at(self, step: int) -> int:
        """Clips over all ranks in this step."""
        return next(clips for start, clips in reversed(self.stages) if start <= step)

    def position_of(self, step: int) -> int:
        """How many samples the steps before this one saw, over all ranks."""
        stages = self.stages
        position = 0
        for (start, clips), (end, _) in zip(stages, [*stages[1:], (step, 0)], strict=True):
            position += max(0, min(end, step) - start) * clips
        return position

    def keys(self, step: int) -> list[Key]:
        """The keys of this rank's clips of a step; each gives `views_per_clip` rows."""
        views = self.views_per_clip
        first, end = self.position_of(step) // views, self.position_of(step + 1) // views
        return [divmod(position, self.num_samples) for position in range(first + self.rank, end, self.world)]

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.first_step
        while True:
            yield self.keys(step)
            step += 1
