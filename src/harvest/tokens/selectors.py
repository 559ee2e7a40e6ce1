"""Choosing the tubelets that an encoder sees: each function returns `keep`, indices `[B, K]`.

Indices count the tubelets of a clip in the order (time, row, column), are pairwise different and ascend.
"""

from __future__ import annotations

import torch
from torch import Tensor


def num_kept(num_tubelets: int, drop_ratio: float) -> int:
    """K for a drop ratio: `N - int(ratio * N)`, as ViCLIP's `mask_tokens` counts (B/16, 8 frames, 90 %: 157).

    Raises ValueError for a ratio outside [0, 1).
    """
    if not 0 <= drop_ratio < 1:
        raise ValueError(f"drop_ratio must be in [0, 1), got {drop_ratio}")
    return num_tubelets - int(num_tubelets * drop_ratio)


def random_keep(
    num_clips: int, num_tubelets: int, *, drop_ratio: float, generator: torch.Generator
) -> Tensor:
    """Drop a random share of the tubelets of each clip, uniformly over space and time (Harvest; ViCLIP).

    Returns int64 `[num_clips, K]` on the generator's device, K = `num_kept(num_tubelets, drop_ratio)`: an exact
    count, drawn afresh for every clip.
    """
    noise = torch.rand(num_clips, num_tubelets, generator=generator, device=generator.device)
    kept = noise.topk(num_kept(num_tubelets, drop_ratio), dim=1).indices
    return kept.sort(dim=1).values  # neighbours in memory are read in order


def tube_keep(
    num_clips: int, num_times: int, num_places: int, *, drop_ratio: float, generator: torch.Generator
) -> Tensor:
    """Drop the same places of a clip at all its times (VideoMAE, UMT `TubeMaskingGenerator`).

    Returns int64 `[num_clips, num_times * k]` on the generator's device, k = `num_kept(num_places, drop_ratio)`.
    """
    places = random_keep(num_clips, num_places, drop_ratio=drop_ratio, generator=generator)
    starts = torch.arange(num_times, device=places.device) * num_places
    return (places[:, None] + starts[:, None]).flatten(1)


FLOOR = 1e-12
"""Attention below it counts as this much, so that tubelets whose weight underflowed to zero are drawn at random."""


def attention_keep(
    attention: Tensor, num_times: int, *, drop_ratio: float, generator: torch.Generator
) -> Tensor:
    """Keep tubelets in proportion to a teacher's attention, drawn without replacement in each frame (UMT, semantic).

    `attention` `[B, N]`, times after times, not negative; its rows need not sum to 1. Returns int64
    `[B, num_times * k]` on its device, k = `num_kept(N / num_times, drop_ratio)` at each time. The draws are those
    of `torch.multinomial` with the same generator: largest weight / exponential noise first.
    """
    B, N = attention.shape
    if N % num_times:
        raise ValueError(f"{N} tubelets are not the same number at each of {num_times} times")
    P = N // num_times
    weights = attention.detach().float().reshape(B * num_times, P)
    tiny = torch.finfo(torch.float32).tiny
    # The floor is a share of the row, so that only the proportions of a row matter.
    weights = (weights / weights.sum(dim=1, keepdim=True).clamp(min=tiny)).clamp(min=FLOOR)
    noise = torch.empty(B * num_times, P, device=generator.device).exponential_(generator=generator)
    noise = noise.to(weights.device).clamp(min=tiny)
    places = (weights / noise).topk(num_kept(P, drop_ratio), dim=1).indices.sort(dim=1).values
    starts = torch.arange(num_times, device=places.device)[:, None] * P
    return (places.view(B, num_times, -1) + starts).flatten(1)
