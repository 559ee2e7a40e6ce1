"""Sentences that are false of a clip and near its caption, for the losses that compare clips and captions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from harvest.interfaces import Batch, HardTextSource, HarvestError
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contrast import HardTexts
from harvest.tokens.hard_negatives import RULES, Rule, false_sentences


def hard_text_source(num: int, rules: tuple[Rule, ...]) -> HardTextSource | None:
    """`num` sentences a clip from these rules; None for none. HarvestError where one setting undoes the other."""
    if num and not rules:
        raise HarvestError(f"objective.hard_negatives {num} needs rules: objective.hard_rules is empty")
    if not num and rules != RULES:
        raise HarvestError(
            "objective.hard_rules does nothing without objective.hard_negatives: give at least 1"
        )
    return HardTextSource(partial(false_sentences, rules=rules), num) if num else None


def encode_hard_texts(model: VideoTextModel, batch: Batch, *, is_trained: bool) -> HardTexts | None:
    """A batch's hard texts `[B, M, E]`, with gradient where the text tower `is_trained`; None where it has none."""
    ids = batch.hard_ids
    if ids.numel() == 0:
        return None
    with torch.set_grad_enabled(is_trained and torch.is_grad_enabled()):
        pooled = model.encode_text(ids.clamp(min=0).flatten(0, 1)).pooled
    return HardTexts(pooled.view(*ids.shape[:2], -1), ids[..., 0] >= 0)


def hard_text_parts(hard: HardTexts | None) -> dict[str, Tensor]:
    """For the log: the share of a batch's clips for which a rule knew a sentence."""
    return {} if hard is None else {"with_hard_text": hard.mask.any(dim=1).float().mean()}
