"""Words look at the video and at each other: filled words, matching pairs, and answers are read from what they see.

One decoder in two layouts. "decoder" is CoTrain's, put behind a whole text tower. "bert" is UMT's: the last layers
of a BERT, which attend to the video between looking at each other and thinking.

Shapes: B texts, V contexts (videos, or fused questions), L words, K context tokens, D width of the text tower, C width
of the context, W vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.model.layers import MLP, Activation, Attention, CrossAttention, Norms
from harvest.model.text_encoder import TextEncoderConfig

UMT_SCALE_RANGE = (2.0, 1000.0)
"""Of the scale of cosines: temperatures from 0.5 to 0.001."""


@dataclass(frozen=True)
class FusionConfig:
    """Four blocks at the width of the text tower is CoTrain's `MaskedTextDecoder`; its heads are 64 wide."""

    depth: int = 4
    num_heads: int = 8
    layout: Literal["decoder", "bert"] = "decoder"
    """decoder: norms before each branch, text and video mapped in first. bert: norms behind, at the text tower's sizes,
    keys and values at the video's own width."""
    fills_words: bool = True
    """A head that reads hidden words from their states."""
    tied_words: bool = False
    """Read words with the text tower's own word vectors (BERT)."""
    matches: bool = False
    """A head that says whether text and video belong together."""


class FusionBlock(nn.Module):
    """Self-attention among words, cross-attention to the context, MLP; each residual, with its norm.

    CoTrain's decoder has no self-attention, so behind a causal text tower a hidden word never sees its right
    context. With it, it does.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_width: int,
        mlp_width: int,
        activation: Activation,
        norm_eps: float,
        norms: Norms,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norms = norms
        self.dropout = dropout
        self.norm_words = nn.LayerNorm(width, norm_eps)
        self.words = Attention(width, num_heads, dropout=dropout)
        self.norm_video = nn.LayerNorm(width, norm_eps)
        self.video = CrossAttention(width, context_width, num_heads, dropout=dropout)
        self.norm_mlp = nn.LayerNorm(width, norm_eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(
        self,
        x_BLD: Tensor,
        context_VKC: Tensor,
        mask: Tensor | None,
        *,
        context_mask: Tensor | None = None,
        causal: bool = False,
        only: Tensor | None = None,
    ) -> Tensor:
        """`only` int64 `[B]`, a word of each text: after looking at each other the other words go no further."""
        if self.norms == "before":
            x_BLD = x_BLD + self._drop(self.words(self.norm_words(x_BLD), mask, causal=causal))
            x_BLD = _rows(x_BLD, only)
            x_BLD = x_BLD + self._drop(self.video(self.norm_video(x_BLD), context_VKC, context_mask))
            return x_BLD + self._drop(self.mlp(self.norm_mlp(x_BLD)))
        x_BLD = self.norm_words(x_BLD + self._drop(self.words(x_BLD, mask, causal=causal)))
        x_BLD = _rows(x_BLD, only)
        x_BLD = self.norm_video(x_BLD + self._drop(self.video(x_BLD, context_VKC, context_mask)))
        return self.norm_mlp(x_BLD + self._drop(self.mlp(x_BLD)))

    def _drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training)


def _rows(x_BLD: Tensor, only: Tensor | None) -> Tensor:
    return x_BLD if only is None else x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), only][:, None]


class FusionDecoder(nn.Module):
    """Text and context tokens in, fused words out, and the heads that read words and matches from their states."""

    def __init__(self, config: FusionConfig, *, text: TextEncoderConfig, context_width: int) -> None:
        super().__init__()
        self.config = config
        D, is_bert = text.width, config.layout == "bert"
        self.norm_video_in = nn.Identity() if is_bert else nn.LayerNorm(context_width)
        self.video_in = nn.Identity() if is_bert else nn.Linear(context_width, D)
        self.text_in = nn.Identity() if is_bert else nn.Linear(D, D)
        self.blocks = nn.ModuleList(
            FusionBlock(
                D,
                config.num_heads,
                context_width=context_width if is_bert else D,
                mlp_width=text.mlp_width if is_bert else 4 * D,
                activation=text.activation if is_bert else "quick_gelu",
                norm_eps=text.norm_eps if is_bert else 1e-5,
                norms="after" if is_bert else "before",
                dropout=text.dropout,
            )
            for _ in range(config.depth)
        )
        if config.fills_words:
            self.head_dense = nn.Linear(D, D)
            self.head_norm = nn.LayerNorm(D, text.norm_eps if is_bert else 1e-5)
            if config.tied_words:
                self.head_bias = nn.Parameter(torch.zeros(text.vocab_size))
            else:
                self.head_words = nn.Linear(D, text.vocab_size)
                nn.init.normal_(self.head_words.weight, std=0.02)
                nn.init.zeros_(self.head_words.bias)
        self.head_match = nn.Linear(D, 2) if config.matches else None

    def forward(
        self,
        context_VKC: Tensor,
        text_BLD: Tensor,
        word_mask_BL: Tensor | None,
        *,
        context_mask: Tensor | None = None,
        causal: bool = False,
        only: Tensor | None = None,
    ) -> Tensor:
        """Fused words `[B, L, D]`; padding is attended to by nobody.

        With `only`, int64 `[B]`, the state of that word of each text, `[B, 1, D]`: the last block leaves out the others.

        V contexts for B texts: equally many neighbours share one. `causal` words see no later ones, and take no mask:
        padding comes last.
        """
        context = self.video_in(self.norm_video_in(context_VKC))
        x_BLD = self.text_in(text_BLD)
        mask = word_mask_BL[:, None, None] if word_mask_BL is not None else None
        for number, block in enumerate(self.blocks, 1):
            last = only if number == len(self.blocks) else None
            x_BLD = block(x_BLD, context, mask, context_mask=context_mask, causal=causal, only=last)
        return x_BLD

    def predict_words(self, states_MD: Tensor, words_WD: Tensor) -> Tensor:
        """Scores over the vocabulary, `[M, W]`, of M fused states; `words_WD` is read where words are tied."""
        if not self.config.fills_words:
            raise ValueError("this model's fusion has no head that fills in words")
        hidden = self.head_norm(F.gelu(self.head_dense(states_MD)))
        if self.config.tied_words:
            return F.linear(hidden, words_WD, self.head_bias)
        return self.head_words(hidden)
