"""One way to say what is seen of a clip, in training, evaluation and search alike: how many tubelets, and who picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.profiler import record_function

from harvest.interfaces import Grid, HarvestError, Kept, Merged, Packed
from harvest.ranges import Range, check_ranges
from harvest.tokens.selectors import SELECTORS, Request, Selector, num_kept

CHOOSING = "choosing tubelets"

DropRatio = Annotated[float, Range(least=0, below=1)]
"""A share of tubelets that is not seen."""


@dataclass(frozen=True)
class Selection:
    """What is seen of each clip."""

    drop_ratio: DropRatio = 0.0
    """Share of tubelets dropped in each clip."""
    budget: Annotated[int | None, Range(least=1)] = None
    """Tubelets seen of each clip; None: as drop_ratio says."""
    selector: Selector = "random"
    """Which are seen: any; the same places at all times; those that change most; those attended to most; those that do
    not repeat the one before them, however many (then drop_ratio does not count, and budget is the most). merge reads
    all and merges what is alike, of a trained model that is being used."""
    random_ratio: Annotated[float, Range(least=0, most=1)] = 0.25
    """With selector motion, the part of the budget drawn from what does not move most."""

    def __post_init__(self) -> None:
        check_ranges(self, "" if type(self) is Selection else "objective")


def budget_of(selection: Selection, grid: Grid) -> int:
    """K: the tubelets that a selection sees of a clip. HarvestError where a clip has fewer."""
    if selection.budget is not None:
        if selection.budget > grid.num_tubelets:
            raise HarvestError(
                f"a budget of {selection.budget} tubelets is more than a clip has: {grid.num_times} times "
                f"{grid.num_patches} places are {grid.num_tubelets}. Lower the budget, or leave it out to see all."
            )
        return selection.budget
    if SELECTORS[selection.selector].by_content:
        return grid.num_tubelets
    if SELECTORS[selection.selector].by_frame:
        return grid.num_times * num_kept(grid.num_patches, selection.drop_ratio)
    return num_kept(grid.num_tubelets, selection.drop_ratio)


def see(budget: int | None, selector: Selector) -> Selection | None:
    """What an option of budget and one of selector say together; None: all of a clip."""
    if budget is None and not SELECTORS[selector].by_content:
        return None
    return Selection(budget=budget, selector=selector)


def described(selection: Selection) -> str:
    """For people: `160 tubelets, selector motion`."""
    seen = f"{1 - selection.drop_ratio:.0%} of the tubelets"
    if selection.budget is not None:
        seen = f"{selection.budget} tubelets"
    if SELECTORS[selection.selector].by_content:
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

    In a profile it has the name `CHOOSING`. With selector "run_length" clips keep different numbers, and it is `Packed`;
    with "merge" it is `Merged`.
    `attention_fn` gives the attention `[B, N]` that selector "attention" follows. `same_draws` draws once for all clips.
    """
    kind, K = SELECTORS[selection.selector], budget_of(selection, grid)
    with record_function(CHOOSING):
        if grid.num_tubelets == K and not kind.by_content:
            return None
        return kind.keep(Request(video, grid, K, selection.random_ratio, generator, attention_fn, same_draws))


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
