"""Questions answered by a decoder that says how likely each answer of a closed list is (UMT, after ALBEF).

Shapes: B questions, A answers, L words, M words of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harvest.evaluation.embed import Clips, evaluating
from harvest.evaluation.question_answering import asked_of, check_answered, closed_list, report_answers
from harvest.evaluation.result import Result
from harvest.interfaces import Example, HarvestError, TextFeatures, VideoFeatures
from harvest.model.answers import AnswerIds, encode_answers
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision

TOP_K = 128
"""Answers said in full, those with the likeliest first words; of a shorter list, all."""


def answer_ranking(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    clips: Clips,
    *,
    answers: Sequence[str] | None = None,
    precision: Precision = "fp32",
    top_k: int = TOP_K,
) -> Result:
    """Answer `Example.question` with the likeliest of a list of answers, its end included.

    An answer's score is the log-probability of all its words, each counted once: the reference counts the first one
    twice. `answers` None takes the distinct answers of the examples. A right answer that is not on the list is never
    given, and counted.
    """
    if model.answers is None:
        raise HarvestError("this model has no decoder of answers: fine-tune it on questions first")
    check_answered(examples)
    wanted, listed = closed_list(examples, answers)
    candidates = encode_answers(tokenizer, model.config.text_tower, listed)
    asked: list[int] = []
    stretch: list[int] = []
    parts: list[Tensor] = []
    for places, rows, stretches, video in asked_of(clips):
        with evaluating(model, precision):
            ids = tokenizer([examples[place].question or "" for place in places])
            text = model.encode_text(ids.to(model.log_scale.device))
            states = model.fuse(VideoFeatures(video.tokens[rows], text.pooled), text)
            parts.append(rank(model, states, text, candidates, top_k=top_k).cpu())
        asked += places
        stretch += stretches
    return report_answers(
        torch.cat(parts),
        asked,
        torch.tensor(stretch),
        examples=examples,
        clips=clips,
        wanted=wanted,
        listed=listed,
        how="The likeliest of {} answers, said word by word by the decoder",
    )


def rank(
    model: VideoTextModel, states: Tensor, text: TextFeatures, answers: AnswerIds, *, top_k: int
) -> Tensor:
    """Log-probabilities of answers to fused questions `[B, L, D]`: fp32 `[B, A]`, -inf for those not said in full."""
    B, A = len(states), len(answers.ids)
    ids, mask = answers.ids.to(states.device), answers.mask.to(states.device)
    scores = torch.full((B, A), float("-inf"), device=states.device)
    chosen = torch.arange(A, device=states.device).expand(B, -1)
    if top_k < A:
        start = ids[:1, :1].expand(B, -1)
        first = model.decode_answers(states, text, start)[:, 0].float().log_softmax(dim=-1)  # [B, V]
        chosen = first[:, ids[:, 1]].topk(top_k, dim=1).indices
    for row in range(B):
        one = TextFeatures(*(part[row : row + 1] for part in text))
        said = chosen[row]
        log_probs = (
            model.decode_answers(states[row : row + 1], one, ids[said, :-1]).float().log_softmax(dim=-1)
        )
        of_words = log_probs.gather(2, ids[said, 1:, None])[..., 0]
        scores[row, said] = of_words.masked_fill(~mask[said, 1:], 0.0).sum(dim=1)
    return scores
