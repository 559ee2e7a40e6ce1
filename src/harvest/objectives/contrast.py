"""Clips and captions find each other over all ranks, and no rank computes the whole matrix of scores.

A rank scores its own clips against everybody's captions, and its own captions against everybody's clips: what it keeps
grows with its share of the batch times the batch. The mean over ranks is the loss of the global batch, and so are the
gradients: `gather_rows` sums what every rank wants of a row, and DDP and FSDP2 average over ranks.

Letters: B clips and R captions of a rank, G clips and H captions of all ranks, K of a bank, E shared width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.objectives.losses import contrastive_rows, sigmoid_rows
from harvest.parallel import gather_rows, world_rank_size

ContrastiveLoss = Literal["softmax", "sigmoid"]
"""softmax: of all captions the right one, and of all clips (InfoNCE, CLIP). sigmoid: of each pair whether it belongs
together (SigLIP); it suits small batches, and the model learns a bias of its scores beside their scale."""

Score = Callable[[Tensor, Tensor], Tensor]
"""`score(videos, texts)` of `[B, E]` and `[H, E]` is `[H, B]`."""


class Bank(NamedTuple):
    """Further captions, negatives of all clips that are not theirs; the same on all ranks, without gradient."""

    pooled: Tensor  # [K, E]
    example: Tensor  # [K]


class HardTexts(NamedTuple):
    """Sentences that are false of one clip each and near its caption: negatives of that clip alone."""

    pooled: Tensor  # [B, M, E]
    mask: Tensor  # bool [B, M], False where a clip has fewer


def contrast(
    score: Score,
    video_BE: Tensor,
    text_RE: Tensor,
    *,
    example: Tensor,
    loss: ContrastiveLoss = "softmax",
    bank: Bank | None = None,
    hard: HardTexts | None = None,
) -> Tensor:
    """This rank's part of the loss over the global batch; the mean over ranks is the whole.

    `example` int64 `[B]` numbers the clips' videos; equally many neighbouring captions belong to each clip, and every
    caption of a video is right for all its clips. softmax: the mean of text-to-video and video-to-text. sigmoid: the
    sum over all pairs divided by the captions of the batch. A caption of the bank whose video is not in the batch is a
    negative, and asks for none itself. Hard texts join the choice among captions of their own clip, and no other's.
    """
    rank, size = world_rank_size()
    text_example = example.repeat_interleave(len(text_RE) // len(example))
    videos_GE, video_examples = gather_rows(video_BE), gather_rows(example)
    texts_HE, text_examples = gather_rows(text_RE), gather_rows(text_example)
    num_texts = len(texts_HE)
    if bank is not None:
        texts_HE, text_examples = torch.cat([texts_HE, bank.pooled]), torch.cat([text_examples, bank.example])
        text_RE = torch.cat([text_RE, bank.pooled[rank::size]])  # each rank asks for its share of the bank
        text_example = torch.cat([text_example, bank.example[rank::size]])
    t2v_RG = score(videos_GE, text_RE)
    hard_BM = None if hard is None else _own_scores(score, video_BE, hard)
    if loss == "sigmoid":
        total = sigmoid_rows(t2v_RG, text_example, video_examples).sum()
        if hard_BM is not None:
            total = total + F.softplus(hard_BM).sum()  # -log sigmoid(-score); 0 where there is none
        return size * total / num_texts
    t2v = contrastive_rows(t2v_RG, text_example, video_examples).sum()
    v2t_BH = score(video_BE, texts_HE).T
    columns = text_examples
    if hard_BM is not None:
        v2t_BH = torch.cat([v2t_BH, hard_BM], dim=1)
        columns = torch.cat([columns, columns.new_full((hard_BM.shape[1],), -1)])  # nobody's example
    v2t = contrastive_rows(v2t_BH, example, columns).sum()
    order = video_examples.sort().values
    place = torch.searchsorted(order, text_examples).clamp(max=len(order) - 1)
    num_asking = (order[place] == text_examples).sum()  # captions whose video is in the batch
    return size * (t2v / num_asking + v2t / len(videos_GE)) / 2


def _own_scores(score: Score, video_BE: Tensor, hard: HardTexts) -> Tensor:
    """Each clip's scores with its own hard texts, `[B, M]`; so low where there is none that it weighs nothing."""
    B, M = hard.mask.shape
    every = score(video_BE, hard.pooled.flatten(0, 1)).view(B, M, B)
    own = every.diagonal(dim1=0, dim2=2).T
    return own.masked_fill(~hard.mask, torch.finfo(own.dtype).min / 2)


def paraphrase(
    first: Tensor, second: Tensor, *, example: Tensor, temperature: float, hard: HardTexts | None = None
) -> Tensor:
    """Contrast between two captions of each clip, unit vectors `[B, E]`: different sentences are kept apart.

    Pictures never ask a text tower to tell captions apart that differ only in the motion; this does. `hard` are
    sentences false of the clips, which the second caption is to tell from the first.
    """

    def score(left: Tensor, right: Tensor) -> Tensor:
        with torch.autocast(left.device.type, enabled=False):  # in bf16 near sentences fall on one point
            return right.float() @ left.float().T / temperature

    return contrast(score, second, first, example=example, hard=hard)
