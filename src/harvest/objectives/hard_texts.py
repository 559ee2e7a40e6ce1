"""Sentences that are false of a clip and near its caption, for the losses that compare clips and captions."""

from __future__ import annotations

from functools import partial

import torch

from harvest.interfaces import Batch, HardTextSource
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contrast import HardTexts
from harvest.tokens.hard_negatives import Rule, false_sentences


def hard_text_source(num: int, rules: tuple[Rule, ...]) -> HardTextSource | None:
    """`num` sentences a clip from these rules; None for none."""
    return HardTextSource(partial(false_sentences, rules=rules), num) if num and rules else None


def encode_hard_texts(model: VideoTextModel, batch: Batch) -> HardTexts | None:
    """A batch's hard texts `[B, M, E]`, with gradient where the text tower is trained; None where it has none."""
    ids = batch.hard_ids
    if ids.numel() == 0:
        return None
    is_trained = any(parameter.requires_grad for parameter in model.text.blocks.parameters())
    with torch.set_grad_enabled(is_trained and torch.is_grad_enabled()):
        pooled = model.encode_text(ids.clamp(min=0).flatten(0, 1)).pooled
    return HardTexts(pooled.view(*ids.shape[:2], -1), ids[..., 0] >= 0)
