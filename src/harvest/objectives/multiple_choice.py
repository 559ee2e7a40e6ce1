"""Multiple choice: of a clip's own options, the right one is to be the nearest.

MSRVTT-MC has no training set of its own: UMT fine-tunes for it as for retrieval (recipe ft-msrvtt-b16), and so may you.
This objective is for sets whose questions come with their options, as TGIF-QA's action and transition do.

Shapes: B clips, C options a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.video_text import VideoTextModel, own_attention
from harvest.objectives.masked_alignment import draw_drop_path_scale
from harvest.objectives.multimodal import seeded_dropout
from harvest.parallel import generator_for, seed_for, world_rank_size
from harvest.tokens import Selection, choose


@dataclass(frozen=True)
class MultipleChoiceConfig(Selection):
    choice_weight: float = 1.0
    """Cross-entropy over a clip's own options."""
    others_weight: float = 0.0
    """Cross-entropy over the options of all clips of the batch, the wrong ones of every clip among them."""
    text_tower: Literal["frozen", "trained"] = "trained"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise HarvestError(
                f"objective.drop_path: expected 0 or more and less than 1, got {self.drop_path}"
            )
        if min(self.choice_weight, self.others_weight) < 0 or self.choice_weight + self.others_weight == 0:
            raise HarvestError(
                f"objective: choice_weight {self.choice_weight} and others_weight {self.others_weight} must be at least "
                "0, and one of them more"
            )


class MultipleChoice(nn.Module):
    """Scaled cosines of a clip and its options, `Batch.text_ids`, of which `Batch.label` is right."""

    def __init__(self, config: MultipleChoiceConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        # Only what embeds a clip and a text is in the loss.
        for part in (model.fusion, model.answers):
            if part is not None:
                part.requires_grad_(False)
        if config.text_tower == "frozen":
            model.text.requires_grad_(False)
        if model.text.mask_embedding is not None:
            model.text.mask_embedding.requires_grad_(False)

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        B, C, _ = batch.text_ids.shape
        device = batch.video.device
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
        with seeded_dropout(seed_for(self.seed, step, rank)):
            video = self.model.encode_video(batch.video, keep, drop_path_scale=drop_path_scale)
            text = self.model.encode_text(batch.text_ids.flatten(0, 1))
        scores = self.model.scores(video.pooled, text.pooled).T  # [B, B * C]
        rows = torch.arange(B, device=device)
        own = scores.view(B, B, C)[rows, rows]
        choice = F.cross_entropy(own, batch.label)
        others = F.cross_entropy(scores, rows * C + batch.label)
        total = self.config.choice_weight * choice + self.config.others_weight * others
        right = (own.argmax(dim=1) == batch.label).float().mean()
        return Losses(total, {"choice": choice.detach(), "others": others.detach(), "right": right.detach()})
