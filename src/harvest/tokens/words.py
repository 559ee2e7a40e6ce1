"""Hiding words of captions that a model has to fill in."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from harvest.parallel import send


def mask_text(
    text_ids: Tensor,
    *,
    maskable: Tensor,
    ratio: float,
    mask_id: int,
    generator: torch.Generator,
    random_words: int = 0,
    length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace words by `mask_id`, each maskable one with probability `ratio`, at least one in a text that has any.

    `text_ids` int64 `[B, L]`; `maskable` bool `[B, L]`, False on start, end and padding. Returns the masked ids
    `[B, L]` and `hidden`, bool `[B, L]`, True where a word was replaced. A text without a maskable word keeps all.

    Without `random_words`, all hidden words become `mask_id` (CoTrain `mask_text_ids`). With it, BERT's rule: of ten
    hidden words eight become `mask_id`, one a random id below `random_words`, and one stays, yet is asked for.

    `length` (default L) is the number of words of a text for which random numbers are drawn, so that what is hidden does
    not depend on how far a batch is padded.
    """
    B, L = text_ids.shape
    shape = (B, L if length is None else length)

    def uniform() -> Tensor:
        return send(torch.rand(shape, generator=generator, device=generator.device), text_ids.device)[:, :L]

    noise = uniform().masked_fill(~maskable, 2.0)
    hidden = noise < ratio
    # Without this, short captions would often ask nothing, and a batch of them would have no loss at all.
    lowest = torch.zeros_like(hidden).scatter_(1, noise.argmin(dim=1, keepdim=True), True)
    hidden = (hidden | lowest) & maskable
    masked_ids = text_ids.masked_fill(hidden, mask_id)
    if random_words:
        fate = uniform()
        words = torch.randint(random_words, shape, generator=generator, device=generator.device)
        words = send(words, text_ids.device)[:, :L]
        masked_ids = torch.where(hidden & (fate < 0.2), words, masked_ids)
        masked_ids = torch.where(hidden & (fate < 0.1), text_ids, masked_ids)
    return masked_ids, hidden


def at_hidden(states: Tensor, text_ids: Tensor, hidden: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """The states `[B, L, D]` of words that are `hidden`, bool `[B, L]`, row by row, and what stands there: `[M, D]` and
    int64 `[M]`.

    On a CPU M is their number. A GPU would have to be waited for to know it: there M is `most`, and the surplus, of
    which nothing is asked, has the target -100, which `F.cross_entropy` ignores.
    """
    flat = hidden.flatten()
    places = flat.nonzero_static(size=_num_asked(flat, most), fill_value=-1)[:, 0]
    targets = text_ids.flatten()[places].masked_fill(places < 0, -100)
    return states.flatten(0, 1)[places.clamp(min=0)], targets


def _num_asked(hidden: Tensor, most: int) -> int:
    return int(hidden.sum()) if hidden.device.type == "cpu" else most


@cache
def most_hidden(num_texts: int, num_words: int, *, ratio: float) -> int:
    """A number of hidden words that texts of at most `num_words` maskable ones exceed with a chance below 10^-9.

    A text of n words hides max(1, Binomial(n, ratio)) of them, the more the larger n is. Chernoff's bound of their sum,
    its parameter found on a grid.
    """
    bounds = []
    for rate in (1.1**power for power in range(-60, 30)):
        one = num_words * math.log1p(ratio * math.expm1(rate))
        one += math.log1p(
            (1 - ratio) ** num_words * math.expm1(rate) * math.exp(-one)
        )  # one word of those with none
        bounds.append((num_texts * one + math.log(1e9)) / rate)
    return min(num_texts * num_words, math.ceil(min(bounds)))
