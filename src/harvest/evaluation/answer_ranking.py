"""How likely a decoder finds each answer of a closed list (UMT, after ALBEF).

Shapes: B questions, A answers, L words of a question, M words of an answer, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harvest.interfaces import TextFeatures
from harvest.model.answers import AnswerIds
from harvest.model.video_text import VideoTextModel

_SCORES = 2**26  # of words, held at a time: 256 MB in fp32


def rank_answers(
    model: VideoTextModel, states: Tensor, text: TextFeatures, answers: AnswerIds, *, top_k: int
) -> Tensor:
    """Log-probabilities of answers to fused questions `[B, L, D]`: fp32 `[B, A]`, -inf for those not scored in full.

    The `top_k` answers with the likeliest first words are. A score is the log-probability of all words of an answer, its
    end included, each counted once: the reference counts the first one twice.
    """
    B, A = len(states), len(answers.ids)
    ids, mask = answers.ids.to(states.device), answers.mask.to(states.device)
    scores = torch.full((B, A), float("-inf"), device=states.device)
    chosen = torch.arange(A, device=states.device).expand(B, -1)
    if top_k < A:
        start = ids[:1, :1].expand(B, -1)
        first = model.decode_answers(states, text, start)[:, 0].float().log_softmax(dim=-1)  # [B, V]
        chosen = first[:, ids[:, 1]].topk(top_k, dim=1).indices
    num, M = chosen.shape[1], ids.shape[1] - 1
    at_once = max(1, _SCORES // (num * M * model.config.text_tower.vocab_size))
    for start_row in range(0, B, at_once):
        rows = slice(start_row, start_row + at_once)
        candidates = chosen[rows].flatten()  # equally many neighbouring answers go with one question
        some = TextFeatures(*(part[rows] for part in text))
        log_probs = model.decode_answers(states[rows], some, ids[candidates, :-1]).float().log_softmax(dim=-1)
        of_words = log_probs.gather(2, ids[candidates, 1:, None])[..., 0]
        total = of_words.masked_fill(~mask[candidates, 1:], 0.0).sum(dim=1)
        scores[rows] = scores[rows].scatter(1, chosen[rows], total.view(-1, num))
    return scores
