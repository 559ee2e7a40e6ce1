"""Words look at the video and at each other: the decoder that fills masked words.

Shapes: B texts, L words, K video tokens, D width of the text tower, C width of the video tower, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from harvest.model.layers import MLP, Attention, CrossAttention


@dataclass(frozen=True)
class FusionConfig:
    """Four blocks at the width of the text tower is CoTrain's `MaskedTextDecoder`; its heads are 64 wide."""

    depth: int = 4
    num_heads: int = 8


class FusionBlock(nn.Module):
    """Self-attention among words, cross-attention to the video, MLP; each pre-normed and residual.

    CoTrain's decoder has no self-attention, so behind a causal text tower a hidden word never sees its right
    context. With it, it does.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_words = nn.LayerNorm(width)
        self.words = Attention(width, num_heads)
        self.norm_video = nn.LayerNorm(width)
        self.video = CrossAttention(width, width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width, "quick_gelu")

    def forward(self, x_BLD: Tensor, video_BKD: Tensor, mask: Tensor) -> Tensor:
        x_BLD = x_BLD + self.words(self.norm_words(x_BLD), mask)
        x_BLD = x_BLD + self.video(self.norm_video(x_BLD), video_BKD)
        return x_BLD + self.mlp(self.norm_mlp(x_BLD))


class FusionDecoder(nn.Module):
    """Text and video tokens in, fused words out, and the head that reads a hidden word from its state."""

    def __init__(self, config: FusionConfig, *, text_width: int, video_width: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm_video_in = nn.LayerNorm(video_width)
        self.video_in = nn.Linear(video_width, text_width)
        self.text_in = nn.Linear(text_width, text_width)
        self.blocks = nn.ModuleList(FusionBlock(text_width, config.num_heads) for _ in range(config.depth))
        self.head_dense = nn.Linear(text_width, text_width)
        self.head_norm = nn.LayerNorm(text_width)
        self.head_words = nn.Linear(text_width, vocab_size)
        nn.init.normal_(self.head_words.weight, std=0.02)
        nn.init.zeros_(self.head_words.bias)

    def forward(self, video_BKC: Tensor, text_BLD: Tensor, word_mask_BL: Tensor) -> Tensor:
        """Fused words `[B, L, D]`; padding is attended to by nobody."""
        video_BKD = self.video_in(self.norm_video_in(video_BKC))
        x_BLD = self.text_in(text_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD, video_BKD, word_mask_BL[:, None, None])
        return x_BLD

    def predict_words(self, states_MD: Tensor) -> Tensor:
        """Scores over the vocabulary, `[M, V]`, of M fused states."""
        return self.head_words(self.head_norm(F.gelu(self.head_dense(states_MD))))
