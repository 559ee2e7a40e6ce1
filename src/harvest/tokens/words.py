"""Hiding words of captions that a model has to fill in."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_text(
    text_ids: Tensor,
    *,
    maskable: Tensor,
    ratio: float,
    mask_id: int,
    generator: torch.Generator,
    random_words: int = 0,
) -> tuple[Tensor, Tensor]:
    """Replace words by `mask_id`, each maskable one with probability `ratio`, at least one in a text that has any.

    `text_ids` int64 `[B, L]`; `maskable` bool `[B, L]`, False on start, end and padding. Returns the masked ids
    `[B, L]` and `hidden`, bool `[B, L]`, True where a word was replaced. A text without a maskable word keeps all.

    Without `random_words`, all hidden words become `mask_id` (CoTrain `mask_text_ids`). With it, BERT's rule: of ten
    hidden words eight become `mask_id`, one a random id below `random_words`, and one stays, yet is asked for.
    """
    noise = torch.rand(text_ids.shape, generator=generator, device=generator.device).to(text_ids.device)
    noise = noise.masked_fill(~maskable, 2.0)
    hidden = noise < ratio
    # Without this, short captions would often ask nothing, and a batch of them would have no loss at all.
    lowest = torch.zeros_like(hidden).scatter_(1, noise.argmin(dim=1, keepdim=True), True)
    hidden = (hidden | lowest) & maskable
    masked_ids = text_ids.masked_fill(hidden, mask_id)
    if random_words:
        fate = torch.rand(text_ids.shape, generator=generator, device=generator.device).to(text_ids.device)
        words = torch.randint(random_words, text_ids.shape, generator=generator, device=generator.device)
        masked_ids = torch.where(hidden & (fate < 0.2), words.to(text_ids.device), masked_ids)
        masked_ids = torch.where(hidden & (fate < 0.1), text_ids, masked_ids)
    return masked_ids, hidden
