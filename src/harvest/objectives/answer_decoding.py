"""Questions about clips, answered word by word: a decoder learns to say the answer (UMT, after ALBEF).

The question is fused with the whole clip; the decoder looks at what comes of it. At test time it ranks a closed list.

Shapes: B clips, A answers, L words of a question, M words of an answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.answers import AnswerIds, encode_answers
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.contract import ANSWER_WORDS, Given, Needs, Reading
from harvest.objectives.questions import answered_rows
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import check_seen, drop_path_of, seeded_dropout, step_generator, step_seed
from harvest.ranges import Range
from harvest.tokens import Selection, at_hidden, choose

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class AnswerDecodingConfig(Selection):
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.1
    """Stochastic depth of the video tower."""
    answers: str | None = None
    """The official vocabulary: a JSON list, a JSON object from answers to numbers, or an answer a line. Without it the
    answers of the training set. Any list can be ranked afterwards."""
    num_answers: int | None = None
    """Without a vocabulary: the number of most frequent answers that are taken; None takes all."""

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            fusion=True,
            answers=True,
            from_shards=False,
            rows=partial(answered_rows, self.answers, self.num_answers),
            check_seen=partial(check_seen, attention=False),
            mini_world="mini-world/questions",
            reading=_reading,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> AnswerDecoding:
        assert given.tokenizer is not None  # its model has a text tower
        ids = encode_answers(given.tokenizer, model.config.text_tower, given.names)
        return AnswerDecoding(self, model, ids, seed=run.loop.seed)


def _reading(sizes: ModelConfig, captions: int) -> Reading:
    return Reading(towers=3, kept=1, fused=1, hidden=ANSWER_WORDS - 1, answers=True)


class AnswerDecoding(nn.Module):
    """The likelihood of each clip's answer: `Batch.text_ids` are questions, `Batch.label` numbers of answers."""

    def __init__(
        self, config: AnswerDecodingConfig, model: VideoTextModel, answers: AnswerIds, *, seed: int
    ) -> None:
        super().__init__()
        if model.answers is None:
            raise HarvestError("this model has no decoder of answers (model.joining.with_answers)")
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        self.answer_ids: torch.Tensor
        self.answer_mask: torch.Tensor
        self.register_buffer("answer_ids", answers.ids, persistent=False)
        self.register_buffer("answer_mask", answers.mask, persistent=False)
        freeze_unreached(self, hides_words=False)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        model, B = self.model, len(batch.video)
        drop_path_scale = drop_path_of(
            model, batch.video, rate=self.config.drop_path, is_training=self.training, generator=generator
        )
        keep = choose(self.selection, batch.video, model.grid(batch.video), generator=generator)
        with seeded_dropout(step_seed(self.seed, step)):
            video = model.encode_video(batch.video, keep, drop_path_scale=drop_path_scale)
            text = model.encode_text(batch.text_ids[:, 0])
            ids, mask = self.answer_ids[batch.label], self.answer_mask[batch.label]
            logits = model.decode_answers(model.fuse(video, text), text, ids[:, :-1])
        asked = mask[:, 1:]
        said, targets = at_hidden(logits, ids[:, 1:], asked, most=asked.numel())
        nll = F.cross_entropy(said.float(), targets, reduction="sum") / B
        right = (logits.argmax(dim=-1) == ids[:, 1:]).logical_or(~asked).all(dim=1).float().mean()
        return Losses(nll, {"answer": nll.detach(), "answers_right": right.detach()})
