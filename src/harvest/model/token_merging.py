"""Tokens that say the same become one, between the blocks of a trained tower (ToMe, arXiv 2210.09461).

For inference: nothing is trained, and all of a clip is read. Half of the tokens look for the most similar one in the
other half, and the most similar pairs become their mean, weighted by how many each already stands for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.interfaces import HarvestError


def merge_plan(num_tokens: int, budget: int, depth: int) -> list[int]:
    """Tokens in each of `depth` blocks: falling evenly from `num_tokens` to `budget`, by half at most.

    >>> merge_plan(128, 32, 4)
    [128, 96, 64, 32]
    >>> merge_plan(128, 16, 4)
    [128, 64, 32, 16]
    """
    if not 1 <= budget <= num_tokens:
        raise HarvestError(
            f"budget: expected 1 to {num_tokens}, the number of tubelets of a clip, got {budget}"
        )
    if depth == 1:
        plan = [num_tokens]
    else:
        plan = [num_tokens - (num_tokens - budget) * block // (depth - 1) for block in range(depth)]
    for block in reversed(range(depth - 1)):
        plan[block] = min(plan[block], 2 * plan[block + 1])
    if plan[0] < num_tokens or plan[-1] > budget:
        least = -(-num_tokens // 2 ** (depth - 1))
        raise HarvestError(
            f"merging halves the tokens at most between two blocks: {num_tokens} become {least} or more in a tower of "
            f"{depth} blocks, not {budget}. Raise the budget, or choose with selector motion or random."
        )
    return plan


def merge_tokens(x_BND: Tensor, sizes_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` fewer tokens, and how many of the first ones each stands for: `[B, N - count, D]`, `[B, N - count]`.

    Neighbours of the same parity are not compared with each other, so `count` is at most N // 2.
    """
    if count == 0:
        return x_BND, sizes_BN
    N, D = x_BND.shape[1:]
    if count > N // 2:
        raise ValueError(f"{count} of {N} tokens cannot be merged at once: at most {N // 2}")
    unit = F.normalize(x_BND.float(), dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)  # [B, ceil(N / 2)]
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, rest = order[:, :count], order[:, count:].sort(dim=1).values
    weighted = torch.cat([x_BND * sizes_BN[..., None], sizes_BN[..., None]], dim=2)  # sums, and their sizes
    first, second = weighted[:, ::2], weighted[:, 1::2]
    moved = first.gather(1, merged[..., None].expand(-1, -1, D + 1))
    target = partner.gather(1, merged)[..., None].expand(-1, -1, D + 1)
    second = second.scatter_add(1, target, moved)
    sums = torch.cat([first.gather(1, rest[..., None].expand(-1, -1, D + 1)), second], dim=1)
    sizes = sums[..., -1]
    return sums[..., :-1] / sizes[..., None], sizes
