"""An image-text model from scratch: how the mini-world's own foundation model is made.

Contrastive learning on stills, and beside it a loss on texts alone: two captions of one clip are a pair. Stills
never ask a text tower to tell "moves left" from "moves right"; CLIP's tower knows the difference from the web,
this one learns it from paraphrases. Without it, a frozen tower has nothing to teach a video model about motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from torch import nn

from harvest.interfaces import Batch, Losses
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.contract import Given, Needs, Reading
from harvest.objectives.contrast import ContrastiveLoss, contrast, paraphrase
from harvest.objectives.hard_texts import encode_hard_texts, hard_text_parts, hard_text_source
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import check_seen, step_generator
from harvest.parallel import send
from harvest.ranges import Range, check_ranges
from harvest.tokens import Selection, choose
from harvest.tokens.hard_negatives import RULES, Rule

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class ImageTextConfig:
    drop_ratio: Annotated[float, Range(least=0, below=1)] = 0.5
    contrastive_loss: ContrastiveLoss = "softmax"
    """How captions and stills find each other: softmax as CLIP, sigmoid as SigLIP."""
    paraphrase_weight: float = 0.5
    paraphrase_temperature: Annotated[float, Range(above=0)] = 0.05
    hard_negatives: Annotated[int, Range(least=0)] = 0
    """Sentences a clip, drawn at each step, that a rule makes false of it: the second caption is to tell them from the
    first (`tokens.hard_negatives`)."""
    hard_rules: tuple[Rule, ...] = RULES
    """What those sentences change of the caption."""

    def __post_init__(self) -> None:
        check_ranges(self, "objective")

    @property
    def needs(self) -> Needs:
        return Needs(
            Selection(self.drop_ratio),
            stills=True,
            hard_texts=hard_text_source(self.hard_negatives, self.hard_rules),
            check_seen=partial(check_seen, attention=False),
            reading=_reading,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> ImageTextPretraining:
        return ImageTextPretraining(self, model, seed=run.loop.seed)


def _reading(sizes: ModelConfig, captions: int) -> Reading:
    return Reading(towers=3 * captions, kept=captions)


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
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        B, T = batch.video.shape[:2]
        C = batch.text_ids.shape[1]
        chosen = torch.randint(T, (B,), generator=generator, device=generator.device)
        chosen = send(chosen, batch.video.device)
        stills = batch.video[torch.arange(B, device=chosen.device), chosen][:, None]
        keep = choose(self.selection, stills, self.model.grid(stills), generator=generator)
        image_BE = self.model.encode_video(stills, keep).pooled
        text_RE = self.model.encode_text(batch.text_ids.flatten(0, 1)).pooled
        itc = contrast(
            self.model.scores, image_BE, text_RE, example=batch.example, loss=self.config.contrastive_loss
        )
        first, second = text_RE[0::C], text_RE[1::C] if C > 1 else text_RE
        temperature = self.config.paraphrase_temperature
        hard = encode_hard_texts(self.model, batch, is_trained=True)
        texts = paraphrase(first, second, example=batch.example, temperature=temperature, hard=hard)
        total = itc + self.config.paraphrase_weight * texts
        return Losses(total, {"itc": itc.detach(), "paraphrase": texts.detach(), **hard_text_parts(hard)})
