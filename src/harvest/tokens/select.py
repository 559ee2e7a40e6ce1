"""One way to say what is seen of a clip, in training, evaluation and search alike: how many tubelets, and who picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from harvest.interfaces import Grid, HarvestError, Kept, Merged, Packed
from harvest.tokens.change import repeated_change, tubelet_change
from harvest.tokens.selectors import (
    attention_keep,
    motion_keep,
    num_kept,
    random_keep,
    run_length_keep,
    tube_keep,
)

CHOOSING = "choosing tubelets"
Selector = Literal["random", "tube", "motion", "attention", "run_length", "merge"]


@dataclass(frozen=True)
class Selection:
    """What is seen of each clip."""

    drop_ratio: float = 0.0
    """Share of tubelets dropped in each clip."""
    budget: int | None = None
    """Tubelets seen of each clip; None: as drop_ratio says."""
    selector: Selector = "random"
    """Which are seen: any; the same places at all times; those that change most; those attended to most; those that do
    not repeat the one before them, however many (then drop_ratio does not count, and budget is the most). merge reads
    all and merges what is alike, of a trained model that is being used."""
    random_ratio: float = 0.25
    """With selector motion, the part of the budget drawn from what does not move most."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_ratio < 1:
            raise HarvestError(
                f"objective.drop_ratio: expected 0 or more and less than 1, got {self.drop_ratio}"
            )
        if self.budget is not None and self.budget < 1:
            raise HarvestError(f"budget: expected at least 1 tubelet, got {self.budget}")
        if not 0 <= self.random_ratio <= 1:
            raise HarvestError(f"random_ratio: expected 0 to 1, got {self.random_ratio}")


def budget_of(selection: Selection, grid: Grid) -> int:
    """K: the tubelets that a selection sees of a clip. HarvestError where a clip has not so many."""
    if selection.budget is not None:
        if selection.budget > grid.num_tubelets:
            raise HarvestError(
                f"a budget of {selection.budget} tubelets is more than a clip has: {grid.num_times} times "
                f"{grid.num_patches} places are {grid.num_tubelets}. Lower the budget, or leave it out to see all."
            )
        return selection.budget
    if selection.selector == "run_length":  # the content decides
        return grid.num_tubelets
    if selection.selector in ("tube", "attention"):  # these divide a frame, as UMT counts
        return grid.num_times * num_kept(grid.num_patches, selection.drop_ratio)
    return num_kept(grid.num_tubelets, selection.drop_ratio)


def see(budget: int | None, selector: Selector) -> Selection | None:
    """What an option of budget and one of selector say together; None: all of a clip."""
    return (
        None if budget is None and selector != "run_length" else Selection(budget=budget, selector=selector)
    )


def described(selection: Selection) -> str:
    """For people: `160 tubelets, selector motion`."""
    seen = f"{1 - selection.drop_ratio:.0%} of the tubelets"
    if selection.budget is not None:
        seen = f"{selection.budget} tubelets"
    if selection.selector == "run_length":
        seen = f"at most {seen}" if selection.budget is not None else "what does not repeat"
    return f"{seen}, selector {selection.selector}"


def choose(
    selection: Selection,
    video: Tensor,
    grid: Grid,
    *,
    generator: torch.Generator,
    attention_fn: Callable[[], Tensor | None] | None = None,
    same_draws: bool = False,
) -> Kept:
    """The tubelets to see of clips `[B, T, 3, H, W]`: int64 `[B, K]` on their device, or None for all.

    In a profile it has the name `CHOOSING`. With selector "run_length" clips keep different numbers, and it is `Packed`; with "merge" it is `Merged`.
    `attention_fn` gives the attention `[B, N]` that selector "attention" follows. `same_draws` draws once for all clips.
    """
    with record_function(CHOOSING):
        return _choose(selection, video, grid, generator, attention_fn, same_draws)


def _choose(
    selection: Selection,
    video: Tensor,
    grid: Grid,
    generator: torch.Generator,
    attention_fn: Callable[[], Tensor | None] | None,
    same_draws: bool,
) -> Kept:
    K, B, device = budget_of(selection, grid), len(video), video.device
    if selection.selector == "run_length":
        return run_length_keep(repeated_change(video, grid), budget=K)
    if grid.num_tubelets == K:
        return None
    if selection.selector == "merge":
        if torch.is_grad_enabled():
            raise HarvestError(
                "selector merge is for models in use; in training give selector random, tube, motion or run_length"
            )
        return Merged(K)
    if selection.selector == "attention":
        attention = attention_fn() if attention_fn is not None else None
        if attention is None:
            raise HarvestError("selector attention needs a tower that tells where it looks, and none is here")
        return attention_keep(attention, grid.num_times, budget=K, generator=generator, same_draws=same_draws)
    if selection.selector == "motion":
        return motion_keep(
            tubelet_change(video, grid),
            grid.num_times,
            budget=K,
            random_ratio=selection.random_ratio,
            generator=generator,
            same_draws=same_draws,
        )
    if selection.selector == "tube":
        keep = tube_keep(
            B, grid.num_times, grid.num_patches, budget=K, generator=generator, same_draws=same_draws
        )
    else:
        keep = random_keep(B, grid.num_tubelets, budget=K, generator=generator, same_draws=same_draws)
    return keep.to(device)


def choose_equally(
    selection: Selection,
    video: Tensor,
    grid: Grid,
    *,
    generator: torch.Generator,
    attention_fn: Callable[[], Tensor | None] | None = None,
) -> Tensor | None:
    """`choose` for those who need as many tubelets of every clip, such as layers compared one by one with a teacher's."""
    keep = choose(selection, video, grid, generator=generator, attention_fn=attention_fn)
    if isinstance(keep, Packed | Merged):
        raise HarvestError(
            f"selector {selection.selector} sees different numbers of tubelets of different clips, and a student beside a "
            "teacher needs equally many: give selector random, tube, motion or attention"
        )
    return keep
