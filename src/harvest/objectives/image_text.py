"""An image-text model from scratch: how the mini-world's own foundation model is made.

Contrastive learning on stills, and beside it a loss on texts alone: two captions of one clip are a pair. Stills
never ask a text tower to tell "moves left" from "moves right"; CLIP's tower knows the difference from the web,
this one learns it from paraphrases. Without it, a frozen tower has nothing to teach a video model about motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contrast import ContrastiveLoss, contrast, paraphrase
from harvest.parallel import generator_for, world_rank_size
from harvest.tokens import Selection, choose


@dataclass(frozen=True)
class ImageTextConfig:
    drop_ratio: float = 0.5
    contrastive_loss: ContrastiveLoss = "softmax"
    """How captions and stills find each other: softmax as CLIP, sigmoid as SigLIP."""
    paraphrase_weight: float = 0.5
    paraphrase_temperature: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.drop_ratio < 1:
            raise HarvestError(
                f"objective.drop_ratio: expected 0 or more and less than 1, got {self.drop_ratio}"
            )
        if self.paraphrase_temperature <= 0:
            raise HarvestError(
                f"objective.paraphrase_temperature: expected more than 0, got {self.paraphrase_temperature}"
            )


class ImageTextPretraining(nn.Module):
    """One random frame of each clip against its captions, and captions against each other (needs C >= 2)."""

    def __init__(self, config: ImageTextConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        if config.contrastive_loss == "sigmoid":
            model.start_sigmoid()
        self.seed = seed
        self.selection = Selection(drop_ratio=config.drop_ratio)

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        B, T = batch.video.shape[:2]
        C = batch.text_ids.shape[1]
        chosen = torch.randint(T, (B,), generator=generator)
        stills = batch.video[torch.arange(B), chosen][:, None]
        keep = choose(self.selection, stills, self.model.grid(stills), generator=generator)
        image_BE = self.model.encode_video(stills, keep).pooled
        text_RE = self.model.encode_text(batch.text_ids.flatten(0, 1)).pooled
        itc = contrast(
            self.model.scores, image_BE, text_RE, example=batch.example, loss=self.config.contrastive_loss
        )
        first, second = text_RE[0::C], text_RE[1::C] if C > 1 else text_RE
        temperature = self.config.paraphrase_temperature
        texts = paraphrase(first, second, example=batch.example, temperature=temperature)
        total = itc + self.config.paraphrase_weight * texts
        return Losses(total, {"itc": itc.detach(), "paraphrase": texts.detach()})
