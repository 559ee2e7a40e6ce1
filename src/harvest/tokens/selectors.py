"""Choosing the tubelets that an encoder sees: each function returns `keep`, indices `[B, K]`, or `Packed`.

A new selector is a name in `Selector`, a function and a line of `SELECTORS`: settings, options and the encoder follow.

Indices count the tubelets of a clip in the order (time, row, column), are pairwise different and ascend. Each
function is a priority for every tubelet; the largest are kept, an exact number in each group of neighbours.
`same_draws` draws once for all clips, so that what a clip keeps does not depend on its place in a batch.

Shapes: B clips, S tubelet times, P places in a frame, N = S * P tubelets, K kept ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.interfaces import Grid, HarvestError, Kept, Merged, Packed
from harvest.parallel import send
from harvest.plain_types import Selector as Selector
from harvest.tokens.change import repeated_change, tubelet_change


class Request(NamedTuple):
    """What a selector is asked for: K of the N tubelets of each clip, fewer than all but where content decides."""

    video: Tensor  # [B, T, 3, H, W], uint8 or normalised
    grid: Grid
    budget: int
    random_ratio: float
    generator: torch.Generator
    attention_fn: Callable[[], Tensor | None] | None
    same_draws: bool


@dataclass(frozen=True)
class SelectorKind:
    """A way of choosing what is seen of a clip."""

    keep: Callable[[Request], Kept]
    what: str
    """Which tubelets are seen, for people."""
    by_frame: bool = False
    """A ratio is of the tubelets of each time, as UMT counts, so that each time keeps equally many."""
    by_content: bool = False
    """The content decides how many are seen; a budget is the most."""


def num_kept(num_tubelets: int, drop_ratio: float) -> int:
    """K for a drop ratio: `N - int(ratio * N)`, as ViCLIP's `mask_tokens` counts (B/16, 8 frames, 90 %: 157).

    Raises ValueError for a ratio outside [0, 1).
    """
    if not 0 <= drop_ratio < 1:
        raise ValueError(f"drop_ratio must be in [0, 1), got {drop_ratio}")
    return num_tubelets - int(num_tubelets * drop_ratio)


def random_keep(
    num_clips: int,
    num_tubelets: int,
    *,
    budget: int,
    generator: torch.Generator,
    same_draws: bool = False,
) -> Tensor:
    """Keep `budget` tubelets of each clip, uniformly over space and time (Harvest; ViCLIP).

    Returns int64 `[num_clips, budget]` on the generator's device.
    """
    noise = _uniform(num_clips, num_tubelets, generator, same_draws)
    return _largest(noise, (num_tubelets,), (_checked(budget, num_tubelets),))


def tube_keep(
    num_clips: int,
    num_times: int,
    num_patches: int,
    *,
    budget: int,
    generator: torch.Generator,
    same_draws: bool = False,
) -> Tensor:
    """Keep the same places of a clip at all its times (VideoMAE, UMT `TubeMaskingGenerator`).

    Returns int64 `[num_clips, budget]` on the generator's device. Where `num_times` does not divide the budget, some
    times show one place more.
    """
    noise = _uniform(num_clips, num_patches, generator, same_draws).repeat(1, num_times)
    sizes = (num_patches,) * num_times
    return _largest(noise, sizes, _split(_checked(budget, noise.shape[1]), sizes))


FLOOR = 1e-12
"""Attention below it counts as this much, so that tubelets whose weight underflowed to zero are drawn at random."""


def attention_keep(
    attention: Tensor,
    num_times: int,
    *,
    budget: int,
    generator: torch.Generator,
    same_draws: bool = False,
) -> Tensor:
    """Keep tubelets in proportion to attention, drawn without replacement in each frame (UMT, semantic).

    `attention` `[B, N]`, a teacher's or the model's own, times after times, not negative; its rows need not sum to 1.
    Returns int64 `[B, budget]` on its device, shared out equally among the times. The draws are those of
    `torch.multinomial` with the same generator: largest weight / exponential noise first.
    """
    B, N = attention.shape
    if N % num_times:
        raise ValueError(f"{N} tubelets are not the same number at each of {num_times} times")
    P = N // num_times
    weights = attention.detach().float().reshape(B * num_times, P)
    tiny = torch.finfo(torch.float32).tiny
    # The floor is a share of the row, so that only the proportions of a row matter.
    weights = (weights / weights.sum(dim=1, keepdim=True).clamp(min=tiny)).clamp(min=FLOOR)
    draws = 1 if same_draws else B
    noise = torch.empty(draws * num_times, P, device=generator.device).exponential_(generator=generator)
    noise = send(noise, weights.device).clamp(min=tiny).view(draws, num_times, P)
    sizes = (P,) * num_times
    priority = (weights.view(B, num_times, P) / noise).flatten(1)
    return _largest(priority, sizes, _split(_checked(budget, N), sizes))


STILL = 1.0
"""Grey levels. Smaller changes are noise of a camera or a codec; among tubelets that change less, chance decides."""


def motion_priority(change: Tensor, noise: Tensor, num_times: int) -> Tensor:
    """What is seen first, `[B, N]`: the largest change; then places that change at another time; then by chance.

    `change` in grey levels, `noise` from 0 to 1.
    """
    at_some_time = change.view(change.shape[0], num_times, -1).amax(dim=1, keepdim=True) > STILL
    quiet = at_some_time.float().expand(-1, num_times, -1).flatten(1) + noise
    return torch.where(change > STILL, change, STILL * quiet / 2)


def motion_keep(
    change: Tensor,
    num_times: int,
    *,
    budget: int,
    generator: torch.Generator,
    random_ratio: float = 0.25,
    num_groups: int = 4,
    same_draws: bool = False,
) -> Tensor:
    """Keep what changes most, the same share of every part of the clip (after FluxViT's group-dynamic selection).

    `change` `[B, N]` in grey levels, as `tubelet_change` measures it. The times are cut into `num_groups` runs of
    neighbours (at most one a time), each of which keeps its share of the budget, so that no part of the clip goes
    unseen. In each, `random_ratio` of what is kept is drawn from all the rest, so that still things are seen too.
    Of what does not change, places that do at another time come first, so that what has appeared, or has not moved yet,
    is seen. In a still clip or one of a single frame all is drawn at random.

    Returns int64 `[B, budget]` on the device of `change`.
    """
    B, N = change.shape
    if N % num_times:
        raise ValueError(f"{N} tubelets are not the same number at each of {num_times} times")
    if not 0 <= random_ratio <= 1 or num_groups < 1:
        raise ValueError(
            f"expected a random_ratio of 0 to 1 and at least 1 group, got {random_ratio} and {num_groups}"
        )
    times = _split(num_times, (1,) * min(num_groups, num_times))
    sizes = [count * (N // num_times) for count in times]
    counts = _split(_checked(budget, N), sizes)
    noise = send(_uniform(B, N, generator, same_draws), change.device)
    moving = [count - round(count * random_ratio) for count in counts]
    if any(moving):
        priority = motion_priority(change.float(), noise, num_times)
        chosen = _largest(priority, sizes, moving)
        noise = noise.scatter(1, chosen, 2.0)  # above all noise, so these are kept
    return _largest(noise, sizes, counts)


REPEATS = 6.0
"""Grey levels. A tubelet that differs less from its predecessor repeats it (RLT: 0.1 of normalised pixels)."""


def run_length_keep(change: Tensor, *, budget: int | None = None, num_lengths: int = 16) -> Packed:
    """Drop every tubelet that repeats its predecessor, and say how long each kept one lasts (RLT, arXiv 2411.05222).

    `change` `[B, S - 1, P]` in grey levels, as `repeated_change` measures it (S = 1: `[B, 0, P]`). A clip's number of
    tubelets is its content's: P for a still clip, all for one in which everything moves. It is rounded up to one of
    about `num_lengths` numbers, by keeping the repeats that differ most, so that many clips of a batch are equally
    long and can be computed together. `budget` is the most: a clip that changes in more places keeps those that change
    most, of its first time those that change soonest. The host reads the counts: on a GPU it waits for them once.
    """
    B, S, P = change.shape[0], change.shape[1] + 1, change.shape[2]
    N, device = S * P, change.device
    if budget is not None:
        _checked(budget, N)
    first = torch.full((B, 1, P), torch.inf, device=device)
    changed = torch.cat([first, change], dim=1) > REPEATS  # [B, S, P]
    step = max(1, N // num_lengths)
    num_changed = changed.flatten(1).sum(dim=1)
    counts = (-(-num_changed // step) * step).clamp(max=N)
    priority = torch.cat([first, change], dim=1)
    if budget is not None:
        if S > 1:
            is_more = (num_changed > budget)[:, None, None]
            priority = torch.where(is_more, torch.cat([change[:, :1], change], dim=1), priority)
        counts = counts.clamp(max=budget)
    order = priority.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(N, device=device).expand(B, -1))
    kept = ranks < counts[:, None]
    runs = torch.empty(B, S, P, dtype=torch.int64, device=device)
    ends = torch.full((B, P), S, device=device)  # where the next that is kept, or would be, begins
    for time in reversed(range(S)):
        runs[:, time] = ends - time
        ends = torch.where(kept.view(B, S, P)[:, time] | changed[:, time], time, ends)
    clips = counts.argsort(stable=True)
    clips_of = Counter(counts.tolist())  # by the number that they keep
    groups = tuple((clips_of[K], K) for K in sorted(clips_of))
    rows, keep = kept[clips].nonzero_static(size=sum(n * K for n, K in groups)).unbind(1)
    return Packed(keep, runs.flatten(1)[clips[rows], keep], clips, groups)


def _checked(budget: int, num_tubelets: int) -> int:
    if not 1 <= budget <= num_tubelets:
        raise HarvestError(
            f"budget: expected 1 to {num_tubelets}, the number of tubelets of a clip, got {budget}"
        )
    return budget


def _uniform(num_clips: int, num: int, generator: torch.Generator, same_draws: bool) -> Tensor:
    noise = torch.rand(1 if same_draws else num_clips, num, generator=generator, device=generator.device)
    return noise.expand(num_clips, -1)


def _split(total: int, sizes: Sequence[int]) -> list[int]:
    """Share out `total` in proportion to `sizes`, exactly, and never more than a size where `total` fits.

    >>> _split(7, (4, 4, 4))
    [2, 2, 3]
    """
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    cuts = [0] + [total * end // ends[-1] for end in ends]
    return [cuts[i + 1] - cuts[i] for i in range(len(sizes))]


def _largest(priority: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The tubelets of largest `priority` `[B, N]`: `counts[g]` of the `sizes[g]` neighbours of each group g."""
    if len(set(sizes)) == len(set(counts)) == 1:
        groups = priority.reshape(-1, sizes[0]).topk(counts[0], dim=1).indices.sort(dim=1).values
        starts = torch.arange(len(sizes), device=priority.device)[:, None] * sizes[0]
        return (groups.view(len(priority), len(sizes), -1) + starts).flatten(1)
    starts_of = [sum(sizes[:i]) for i in range(len(sizes))]
    chosen = [
        priority[:, start : start + size].topk(count, dim=1).indices + start
        for start, size, count in zip(starts_of, sizes, counts, strict=True)
    ]
    return torch.cat(chosen, dim=1).sort(dim=1).values  # neighbours in memory are read in order


def _random(asked: Request) -> Tensor:
    B, N = len(asked.video), asked.grid.num_tubelets
    keep = random_keep(B, N, budget=asked.budget, generator=asked.generator, same_draws=asked.same_draws)
    return send(keep, asked.video.device)


def _tube(asked: Request) -> Tensor:
    B, grid = len(asked.video), asked.grid
    how = {"budget": asked.budget, "generator": asked.generator, "same_draws": asked.same_draws}
    keep = tube_keep(B, grid.num_times, grid.num_patches, **how)  # type: ignore[arg-type]
    return send(keep, asked.video.device)


def _motion(asked: Request) -> Tensor:
    return motion_keep(
        tubelet_change(asked.video, asked.grid),
        asked.grid.num_times,
        budget=asked.budget,
        random_ratio=asked.random_ratio,
        generator=asked.generator,
        same_draws=asked.same_draws,
    )


def _attention(asked: Request) -> Tensor:
    attention = asked.attention_fn() if asked.attention_fn is not None else None
    if attention is None:
        raise HarvestError("selector attention needs a tower that tells where it looks, and none is here")
    return attention_keep(
        attention,
        asked.grid.num_times,
        budget=asked.budget,
        generator=asked.generator,
        same_draws=asked.same_draws,
    )


def _run_length(asked: Request) -> Packed:
    return run_length_keep(repeated_change(asked.video, asked.grid), budget=asked.budget)


def _merge(asked: Request) -> Merged:
    if torch.is_grad_enabled():
        raise HarvestError(
            "selector merge is for models in use; in training give selector random, tube, motion or run_length"
        )
    return Merged(asked.budget)


SELECTORS: dict[Selector, SelectorKind] = {
    "random": SelectorKind(_random, "any"),
    "tube": SelectorKind(_tube, "the same places at all times", by_frame=True),
    "motion": SelectorKind(_motion, "those that change most"),
    "attention": SelectorKind(_attention, "those attended to most", by_frame=True),
    "run_length": SelectorKind(_run_length, "those that do not repeat the one before them", by_content=True),
    "merge": SelectorKind(_merge, "all, and what is alike is merged: of a trained model in use"),
}
"""Every way of choosing, by the name that settings and options give it."""
