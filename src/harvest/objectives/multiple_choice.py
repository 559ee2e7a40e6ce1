"""Multiple choice: of a clip's own options, the right one is to be the nearest.

MSRVTT-MC has no training set of its own: UMT fine-tunes for it as for retrieval (recipe ft-msrvtt-b16), and so may you.
This objective is for sets whose questions come with their options, as TGIF-QA's action and transition do.

Shapes: B clips, C options a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from harvest.data.labels import check_equally_many
from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.contract import Given, Needs, Reading
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import choose_seen, drop_path_of, seeded_dropout, step_generator, step_seed
from harvest.ranges import Range
from harvest.tokens import Selection

if TYPE_CHECKING:
    from harvest.config import RunConfig
    from harvest.objectives.contract import Rows


@dataclass(frozen=True)
class MultipleChoiceConfig(Selection):
    choice_weight: Annotated[float, Range(least=0)] = 1.0
    """Cross-entropy over a clip's own options."""
    others_weight: Annotated[float, Range(least=0)] = 0.0
    """Cross-entropy over the options of all clips of the batch, the wrong ones of every clip among them."""
    text_tower: Literal["frozen", "trained"] = "trained"
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choice_weight + self.others_weight == 0:
            raise HarvestError("objective: choice_weight or others_weight must be more than 0")

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            from_shards=False,
            rows=_questions,
            mini_world="mini-world/motion_choice",
            reading=self._reading,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> MultipleChoice:
        return MultipleChoice(self, model, seed=run.loop.seed)

    def _reading(self, sizes: ModelConfig, captions: int) -> Reading:
        trained = self.text_tower == "trained"
        return Reading(towers=(3 if trained else 1) * captions, kept=captions if trained else 0)


def _questions(rows: Rows, listed: Path | None) -> tuple[Rows, list[str]]:
    check_equally_many(rows)
    return rows, []


class MultipleChoice(nn.Module):
    """Scaled cosines of a clip and its options, `Batch.text_ids`, of which `Batch.label` is right."""

    def __init__(self, config: MultipleChoiceConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        if config.text_tower == "frozen":
            model.text.requires_grad_(False)
        freeze_unreached(self, hides_words=False)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        B, C, _ = batch.text_ids.shape
        keep = choose_seen(self.model, self.selection, batch.video, generator=generator)
        drop_path_scale = drop_path_of(
            self.model,
            batch.video,
            rate=self.config.drop_path,
            is_training=self.training,
            generator=generator,
        )
        with seeded_dropout(step_seed(self.seed, step)):
            video = self.model.encode_video(batch.video, keep, drop_path_scale=drop_path_scale)
            text = self.model.encode_text(batch.text_ids.flatten(0, 1))
        scores = self.model.scores(video.pooled, text.pooled).T  # [B, B * C]
        rows = torch.arange(B, device=batch.video.device)
        own = scores.view(B, B, C)[rows, rows]
        choice = F.cross_entropy(own, batch.label)
        others = F.cross_entropy(scores, rows * C + batch.label)
        total = self.config.choice_weight * choice + self.config.others_weight * others
        right = (own.argmax(dim=1) == batch.label).float().mean()
        return Losses(total, {"choice": choice.detach(), "others": others.detach(), "right": right.detach()})
