"""Losses as pure functions of tensors. Letters: G videos and H texts of the global batch, M hidden words."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(scores_HG: Tensor, video_example: Tensor, text_example: Tensor) -> Tensor:
    """Symmetric InfoNCE in which every caption of a video is a positive of it (UMT `get_sim_targets`).

    `scores_HG` scaled cosines, texts by videos; the examples, int64 `[G]` and `[H]`, say which belong together.
    Each row's positives share a target of 1 equally. Mean of text-to-video and video-to-text. A text without a
    video here is a negative of all videos, and asks for none itself.
    """
    positive = (text_example[:, None] == video_example[None]).to(scores_HG.dtype)
    num_videos = positive.sum(1)
    t2v = -(F.log_softmax(scores_HG, dim=1) * positive).sum(1) / num_videos.clamp(min=1)
    v2t = -(F.log_softmax(scores_HG, dim=0) * positive).sum(0) / positive.sum(0)
    return (t2v.sum() / (num_videos > 0).sum() + v2t.mean()) / 2


def paraphrase(first: Tensor, second: Tensor, *, example: Tensor, temperature: float) -> Tensor:
    """InfoNCE between two captions of each clip, unit vectors `[B, E]`: different sentences are kept apart.

    Pictures never ask a text tower to tell captions apart that differ only in the motion; this does.
    """
    with torch.autocast(first.device.type, enabled=False):  # in bf16 near sentences fall on one point
        scores = first.float() @ second.float().T / temperature
    return contrastive(scores, example, example)


def negatives(scores_QN: Tensor, is_same: Tensor, *, generator: torch.Generator) -> Tensor | None:
    """For each query one item that is not its own, drawn in proportion to `softmax(scores)`: int64 `[Q]` (ALBEF, UMT).

    `is_same` bool `[Q, N]` says which items a query may not get. None where some query has no other item. The draws
    are those of `torch.multinomial` with the same generator.
    """
    if not bool((~is_same).any(dim=1).all()):
        return None
    # Own items are taken out before the softmax, so that something is always left: far ones underflow beside them.
    weights = scores_QN.detach().float().masked_fill(is_same, float("-inf")).softmax(dim=1)
    noise = torch.empty(weights.shape, device=generator.device).exponential_(generator=generator)
    return (weights / noise.to(weights.device).clamp(min=torch.finfo(torch.float32).tiny)).argmax(dim=1)


def matching(logits: Tensor, is_match: Tensor) -> Tensor:
    """Cross-entropy of scores `[M, 2]` of no and yes; `is_match` bool `[M]`."""
    return F.cross_entropy(logits.float(), is_match.long())


def masked_words(logits_MV: Tensor, targets: Tensor, *, num_hidden: Tensor | None = None) -> Tensor:
    """Cross-entropy at hidden positions, int64 `[M]`, divided by `num_hidden` (default M). Zero where M is 0."""
    total = F.cross_entropy(logits_MV.float(), targets, reduction="sum")
    count = num_hidden if num_hidden is not None else torch.tensor(len(targets), device=logits_MV.device)
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
