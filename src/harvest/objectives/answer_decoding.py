"""Questions about clips, answered word by word: a decoder learns to say the answer (UMT, after ALBEF).

The question is fused with the whole clip; the decoder looks at what comes of it. At test time it ranks a closed list.

Shapes: B clips, A answers, L words of a question, M words of an answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.answers import AnswerIds
from harvest.model.video_text import VideoTextModel
from harvest.objectives.masked_alignment import draw_drop_path_scale
from harvest.objectives.multimodal import seeded_dropout
from harvest.parallel import generator_for, seed_for, world_rank_size
from harvest.tokens import Selection, choose


@dataclass(frozen=True)
class AnswerDecodingConfig(Selection):
    drop_path: float = 0.1
    """Stochastic depth of the video tower."""
    answers: str | None = None
    """The official vocabulary: a JSON list, a JSON object from answers to numbers, or an answer a line. Without it the
    answers of the training set. Any list can be ranked afterwards."""
    num_answers: int | None = None
    """Without a vocabulary: so many of the most frequent answers; None takes all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise HarvestError(
                f"objective.drop_path: expected 0 or more and less than 1, got {self.drop_path}"
            )


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
        # Embeddings in a shared space, and the heads of other tasks, have no part in answers.
        unused = (
            "video.projection.",
            "video.norm_pooled.",
            "text.projection.",
            "text.mask_embedding",
            "log_scale",
            "score_bias",
            "fusion.head_",
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(unused))

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        model, B = self.model, len(batch.video)
        drop_path_scale = None
        if self.training and self.config.drop_path > 0:
            depth = model.config.video.depth
            drop_path_scale = draw_drop_path_scale(depth, B, rate=self.config.drop_path, generator=generator)
            drop_path_scale = drop_path_scale.to(batch.video.device)
        keep = choose(self.selection, batch.video, model.grid(batch.video), generator=generator)
        with seeded_dropout(seed_for(self.seed, step, rank)):
            video = model.encode_video(batch.video, keep, drop_path_scale=drop_path_scale)
            text = model.encode_text(batch.text_ids[:, 0])
            ids, mask = self.answer_ids[batch.label], self.answer_mask[batch.label]
            logits = model.decode_answers(model.fuse(video, text), text, ids[:, :-1])
        asked = mask[:, 1:]
        nll = F.cross_entropy(logits[asked].float(), ids[:, 1:][asked], reduction="sum") / B
        right = (logits.argmax(dim=-1) == ids[:, 1:]).logical_or(~asked).all(dim=1).float().mean()
        return Losses(nll, {"answer": nll.detach(), "answers_right": right.detach()})
