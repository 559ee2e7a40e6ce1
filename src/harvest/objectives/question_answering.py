"""Open-ended question answering: one of a list of answers, read where the fusion decoder would fill the answer in.

The question is put as a sentence with a hidden word, as in the zero-shot test, so that what post-pretraining learned
about hidden words is where the head begins (CoTrain `vqa_classifier`).

Shapes: B questions, L words, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import torch.nn.functional as F
from torch import nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.heads import HeadConfig, answer_features, answer_width, build_head
from harvest.model.prompt import QuestionTokenizer
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.contract import Given, Needs, Reading
from harvest.objectives.questions import answered_rows
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import choose_seen, drop_path_of, seeded_dropout, step_generator, step_seed
from harvest.ranges import Range
from harvest.tokens import Selection

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class QuestionAnsweringConfig(Selection):
    answers: str | None = None
    """The official vocabulary: a JSON list, a JSON object from answers to numbers, or an answer a line. Without it the
    answers of the training set, the most frequent first."""
    num_answers: int | None = None
    """Without a vocabulary: the number of most frequent answers that are taken; None takes all."""
    text_tower: Literal["frozen", "trained"] = "trained"
    head_dropout: Annotated[float, Range(least=0, below=1)] = 0.5
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.0

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            fusion=True,
            from_shards=False,
            rows=partial(answered_rows, self.answers, self.num_answers),
            texts=lambda sizes, tokenizer: QuestionTokenizer(sizes.text_tower, tokenizer),
            mini_world="mini-world/questions",
            reading=self._reading,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> QuestionAnswering:
        return QuestionAnswering(self, model, given.names, seed=run.loop.seed)

    def _reading(self, sizes: ModelConfig, captions: int) -> Reading:
        # a frozen tower is passed through, down to the vector of the hidden word where that is new
        frozen = 2 if sizes.text_tower.mask_id is None else 1
        return Reading(towers=3 if self.text_tower == "trained" else frozen, kept=1, fused=1)


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
        model.text.requires_grad_(config.text_tower == "trained")
        freeze_unreached(self, hides_words=True, asks=True)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        keep = choose_seen(self.model, self.selection, batch.video, generator=generator)
        drop_path_scale = drop_path_of(
            self.model,
            batch.video,
            rate=self.config.drop_path,
            is_training=self.training,
            generator=generator,
        )
        with seeded_dropout(
            step_seed(self.seed, step)
        ):  # in the text tower, where it has any, and in the head
            video = self.model.video_features(batch.video, keep, drop_path_scale=drop_path_scale)
            features = answer_features(self.model, video, batch.text_ids[:, 0])
            scores = self.head(features, dropout=self.config.head_dropout if self.training else 0.0).float()
        loss = F.cross_entropy(scores, batch.label)
        right = (scores.argmax(dim=1) == batch.label).float().mean()
        return Losses(loss, {"answers": loss.detach(), "right": right.detach()})
