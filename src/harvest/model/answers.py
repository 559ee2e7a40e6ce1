"""Answers said word by word: a causal decoder that looks at a question fused with its video (UMT, after ALBEF).

Shapes: B questions, A answers, L words of a question, M words of an answer, D width, W vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harvest.interfaces import HarvestError
from harvest.model.fusion import FusionConfig, FusionDecoder
from harvest.model.text_encoder import TextEncoder, TextEncoderConfig
from harvest.model.tokenizer import Tokenizer


class AnswerDecoder(nn.Module):
    """Its own word vectors, then blocks in which each word sees those before it and the whole question."""

    def __init__(self, config: FusionConfig, text: TextEncoderConfig) -> None:
        super().__init__()
        # Word vectors alone: nothing is hidden in an answer, and no block is left that a norm could follow.
        mask_id = text.pad_id if text.mask_id is None else text.mask_id
        self.words = TextEncoder(dataclasses.replace(text, depth=0, projection=False, mask_id=mask_id))
        self.words.norm_post = nn.Identity()
        self.decoder = FusionDecoder(config, text=text, context_width=text.width)

    def forward(self, states_BLD: Tensor, word_mask_BL: Tensor, answer_ids: Tensor) -> Tensor:
        """Scores of the word after each, `[A, M, W]`, for answers int64 `[A, M]`.

        A is a multiple of B: equally many neighbouring answers go with one question.
        """
        embedded = self.words.embed(answer_ids)
        states = self.decoder(states_BLD, embedded, None, context_mask=word_mask_BL, causal=True)
        return self.decoder.predict_words(states, self.words.words.weight)


class AnswerIds(NamedTuple):
    """Answers as a decoder says them: a start, their words and an end."""

    ids: Tensor  # int64 [A, M]
    mask: Tensor  # bool [A, M], False on padding


def encode_answers(tokenizer: Tokenizer, text: TextEncoderConfig, answers: Sequence[str]) -> AnswerIds:
    """Ids of answers; where texts end without a mark of their own (UMT's BERT), answers end with [SEP]."""
    end_id = text.end_id if text.end_id is not None else tokenizer.core.token_to_id("[SEP]")
    start_id = text.start_id if text.start_id is not None else text.pad_id
    if end_id is None:
        raise HarvestError("answers need a word that ends them, and the tokenizer has no [SEP]")
    rows = []
    for answer in answers:
        words = tokenizer.words(answer)
        if not words:
            raise HarvestError(f"the answer {answer!r} has no words that the tokenizer knows")
        rows.append([start_id, *words, end_id])
    longest = max(map(len, rows))
    if longest > text.context_length:
        raise HarvestError(f"an answer of {longest} ids is too long for {text.context_length} positions")
    ids = torch.full((len(rows), longest), text.pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = True
    return AnswerIds(ids, mask)
