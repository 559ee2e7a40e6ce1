"""Answers said word by word: a causal decoder that looks at a question fused with its video (UMT, after ALBEF).

Shapes: B questions, A answers, L words of a question, M words of an answer, D width, W vocabulary.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from harvest.model.encoders import TextEncoder, TextEncoderConfig
from harvest.model.fusion import FusionConfig, FusionDecoder


class AnswerDecoder(nn.Module):
    """Its own word vectors, then blocks in which each word sees those before it and the whole question."""

    def __init__(self, config: FusionConfig, text: TextEncoderConfig) -> None:
        super().__init__()
        self.words = TextEncoder(dataclasses.replace(text, depth=0, projection=False))
        self.decoder = FusionDecoder(config, text=text, context_width=text.width)

    def forward(self, states_BLD: Tensor, word_mask_BL: Tensor, answer_ids: Tensor) -> Tensor:
        """Scores of the word after each, `[A, M, W]`, for answers int64 `[A, M]`.

        A is a multiple of B: equally many neighbouring answers go with one question.
        """
        embedded = self.words.embed(answer_ids)
        states = self.decoder(states_BLD, embedded, None, context_mask=word_mask_BL, causal=True)
        return self.decoder.predict_words(states, self.words.words.weight)
