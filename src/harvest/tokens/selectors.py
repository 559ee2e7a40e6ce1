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
