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


def contrast(
    score: Score,
    video_BE: Tensor,
    text_RE: Tensor,
    *,
    example: Tensor,
    loss: ContrastiveLoss = "softmax",
    bank: Bank | None = None,
) -> Tensor:
    """This rank's part of the loss over the global batch; the mean over ranks is the whole.

    `example` int64 `[B]` numbers the clips' videos; equally many neighbouring captions belong to each clip, and every
    caption of a video is right for all its clips. softmax: the mean of text-to-video and video-to-text. sigmoid: the
    sum over all pairs divided by the captions of the batch. A caption of the bank whose video is not in the batch is a
    negative, and asks for none itself.
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
    if loss == "sigmoid":
        return size * sigmoid_rows(t2v_RG, text_example, video_examples).sum() / num_texts
    t2v = contrastive_rows(t2v_RG, text_example, video_examples).sum()
    v2t = contrastive_rows(score(video_BE, texts_HE).T, example, text_examples).sum()
    num_asking = torch.isin(text_examples, video_examples).sum()
    return size * (t2v / num_asking + v2t / len(videos_GE)) / 2


def paraphrase(first: Tensor, second: Tensor, *, example: Tensor, temperature: float) -> Tensor:
    """Contrast between two captions of each clip, unit vectors `[B, E]`: different sentences are kept apart.

    Pictures never ask a text tower to tell captions apart that differ only in the motion; this does.
    """

    def score(left: Tensor, right: Tensor) -> Tensor:
        with torch.autocast(left.device.type, enabled=False):  # in bf16 near sentences fall on one point
            return right.float() @ left.float().T / temperature

    return contrast(score, second, first, example=example)
