"""Losses as pure functions of tensors. Letters: R rows and C columns of scores, M hidden words."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.parallel import send


def contrastive_rows(scores_RC: Tensor, row_example: Tensor, column_example: Tensor) -> Tensor:
    """InfoNCE of each row, `[R]`: every column of the row's video is a positive (UMT `get_sim_targets`).

    `scores_RC` scaled cosines; the examples, int64 `[R]` and `[C]`, say which belong together. A row's positives
    share a target of 1 equally; a row without any asks for nothing, and its loss is 0.
    """
    positive = (row_example[:, None] == column_example[None]).to(scores_RC.dtype)
    return -(F.log_softmax(scores_RC, dim=1) * positive).sum(1) / positive.sum(1).clamp(min=1)


def sigmoid_rows(scores_RC: Tensor, row_example: Tensor, column_example: Tensor) -> Tensor:
    """Each pair judged alone, summed over a row, `[R]`: `-log sigmoid(z (t x.y + b))` (SigLIP, arXiv 2303.15343).

    `scores_RC` are `t x.y + b`; z is 1 where row and column are of one video, else -1.
    """
    positive = row_example[:, None] == column_example[None]
    return -F.logsigmoid(torch.where(positive, scores_RC, -scores_RC)).sum(1)


def negatives(scores_QN: Tensor, is_same: Tensor, *, generator: torch.Generator) -> Tensor:
    """For each query one item that is not its own, drawn in proportion to `softmax(scores)`: int64 `[Q]` (ALBEF, UMT).

    `is_same` bool `[Q, N]` says which items a query may not get; one that has no other item gets any. The draws are those
    of `torch.multinomial` with the same generator.
    """
    # Own items are taken out before the softmax, so that something is always left: far ones underflow beside them.
    is_own = is_same & ~is_same.all(dim=1, keepdim=True)
    weights = scores_QN.detach().float().masked_fill(is_own, float("-inf")).softmax(dim=1)
    noise = torch.empty(weights.shape, device=generator.device).exponential_(generator=generator)
    noise = send(noise, weights.device).clamp(min=torch.finfo(torch.float32).tiny)
    return (weights / noise).argmax(dim=1)


def matching(logits: Tensor, is_match: Tensor) -> Tensor:
    """Cross-entropy of scores `[M, 2]` of no and yes; `is_match` bool `[M]`."""
    return F.cross_entropy(logits.float(), is_match.long())


def masked_words(logits_MV: Tensor, targets: Tensor, *, num_hidden: Tensor | None = None) -> Tensor:
    """Cross-entropy at hidden positions, int64 `[M]`, divided by `num_hidden` (default M). Zero where M is 0.

    A target of -100 asks for nothing.
    """
    total = F.cross_entropy(logits_MV.float(), targets, reduction="sum")
    count = num_hidden if num_hidden is not None else (targets >= 0).sum()
    return total / count.clamp(min=1)


def alignment(
    student: Tensor, teacher: Tensor, *, kind: Literal["l2", "mse", "smooth_l1"] = "l2", unit: bool = True
) -> Tensor:
    """How far a student's features `[..., E]` are from a teacher's: mean over all but E (UMT `UTA_Loss`).

    l2: `2 - 2 cos`, the squared distance of unit vectors; mse and smooth_l1 average over E too. `unit` makes both
    unit vectors first.
    """
    student, teacher = student.float(), teacher.float()
    if unit:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if kind == "l2":
        return (2 - 2 * (student * teacher).sum(dim=-1)).mean()
    return F.mse_loss(student, teacher) if kind == "mse" else F.smooth_l1_loss(student, teacher)
