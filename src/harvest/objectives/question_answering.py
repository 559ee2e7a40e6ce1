"""Open-ended question answering: one of a list of answers, read where the fusion decoder would fill the answer in.

The question is put as a sentence with a hidden word, as in the zero-shot test, so that what post-pretraining learned
about hidden words is where the head begins (CoTrain `vqa_classifier`).

Shapes: B questions, L words, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.heads import HeadConfig, answer_features, answer_width, build_head
from harvest.model.video_text import VideoTextModel, own_attention
from harvest.objectives.masked_alignment import draw_drop_path_scale
from harvest.objectives.multimodal import seeded_dropout
from harvest.parallel import generator_for, seed_for, world_rank_size
from harvest.tokens import Selection, choose


@dataclass(frozen=True)
class QuestionAnsweringConfig(Selection):
    answers: str | None = None
    """The official vocabulary: a JSON list, a JSON object from answers to numbers, or an answer a line. Without it the
    answers of the training set, the most frequent first."""
    num_answers: int | None = None
    """Without a vocabulary: so many of the most frequent answers; None takes all."""
    text_tower: Literal["frozen", "trained"] = "trained"
    head_dropout: float = 0.5
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("head_dropout", "drop_path"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise HarvestError(f"objective.{name}: expected 0 or more and less than 1, got {value}")


class QuestionAnswering(nn.Module):
    """Cross-entropy over the answers."""

    def __init__(
        self, config: QuestionAnsweringConfig, model: VideoTextModel, names: Sequence[str], *, seed: int
    ) -> None:
        super().__init__()
        if model.fusion is None:
            raise HarvestError(
                "question answering reads the fusion decoder, and this model has none: start from one that was trained "
                "to fill in words"
            )
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        self.head = build_head(HeadConfig("answers", tuple(names), answer_width(model)))
        # What no answer reaches: the heads of other tasks, scales, and the shared space of the video tower.
        model.requires_grad_(True)
        model.text.requires_grad_(config.text_tower == "trained")
        for name, parameter in model.named_parameters():
            if name.startswith(("video.projection.", "answers.", "fusion.head_", "log_scale", "score_bias")):
                parameter.requires_grad_(False)
        if model.text.mask_embedding is not None:  # new even where the tower is frozen
            model.text.mask_embedding.requires_grad_(True)

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        B, device = len(batch.video), batch.video.device
        keep = choose(
            self.selection,
            batch.video,
            self.model.grid(batch.video),
            generator=generator,
            attention_fn=lambda: own_attention(self.model, batch.video),
        )
        drop_path_scale = None
        if self.training and self.config.drop_path > 0:
            depth = self.model.config.video.depth
            drop_path_scale = draw_drop_path_scale(
                depth, B, rate=self.config.drop_path, generator=generator
            ).to(device)
        with seeded_dropout(
            seed_for(self.seed, step, rank)
        ):  # in the text tower, where it has any, and in the head
            video = self.model.video_features(batch.video, keep, drop_path_scale=drop_path_scale)
            features = answer_features(self.model, video, batch.text_ids[:, 0])
            scores = self.head(features, dropout=self.config.head_dropout if self.training else 0.0).float()
        loss = F.cross_entropy(scores, batch.label)
        right = (scores.argmax(dim=1) == batch.label).float().mean()
        return Losses(loss, {"answers": loss.detach(), "right": right.detach()})
