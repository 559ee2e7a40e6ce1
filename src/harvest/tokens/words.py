"""Hiding words of captions that a model has to fill in."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_text(
    text_ids: Tensor, *, maskable: Tensor, ratio: float, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace words by `mask_id`, each maskable one with probability `ratio`, at least one in a text that has any.

    `text_ids` int64 `[B, L]`; `maskable` bool `[B, L]`, False on start, end and padding. Returns the masked ids
    `[B, L]` and `hidden`, bool `[B, L]`, True where a word was replaced. A text without a maskable word keeps all.
    There is no 80/10/10 rule: hidden words share one learnable embedding (CoTrain `mask_text_ids`).
    """
    noise = torch.rand(text_ids.shape, generator=generator, device=generator.device).to(text_ids.device)
    noise = noise.masked_fill(~maskable, 2.0)
    hidden = noise < ratio
    # Without this, short captions would often ask nothing, and a batch of them would have no loss at all.
    lowest = torch.zeros_like(hidden).scatter_(1, noise.argmin(dim=1, keepdim=True), True)
    hidden = (hidden | lowest) & maskable
    return text_ids.masked_fill(hidden, mask_id), hidden
