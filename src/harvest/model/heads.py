"""Heads that read a trained tower for one task. They live beside the model in its folder.

Shapes: B clips, K tubelets, D width of the tower, A classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harvest.interfaces import HarvestError, VideoFeatures
from harvest.model.layers import AttentionPooling


@dataclass(frozen=True)
class HeadConfig:
    """What a head tells apart and what it reads; written into the model folder."""

    kind: Literal["linear", "attentive"]
    names: tuple[str, ...]
    """What the scores stand for, in their order."""
    width: int
    """Of the tower's tokens."""
    several: bool = False
    """Several names may hold at once: a sigmoid each instead of one softmax."""
    num_heads: int = 1
    """Of the attention of an attentive head."""

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise HarvestError(f"a head tells two or more names apart, got {list(self.names)}")


class LinearHead(nn.Module):
    """One linear layer on a clip's feature (UMT's fine-tuned classifiers)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, len(config.names))
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, video: VideoFeatures) -> Tensor:
        """Scores `[B, A]`; `video.pooled` is `[B, D]`, as `VideoTextModel.video_features` gives it."""
        return self.linear(video.pooled)


class AttentiveHead(nn.Module):
    """A learned query looks at all tokens, then one linear layer: how frozen video towers are probed (V-JEPA)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.pool = AttentionPooling(D, config.num_heads, 4 * D, "gelu", 1e-6)
        self.norm = nn.LayerNorm(D, 1e-6)
        self.linear = nn.Linear(D, len(config.names))
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, video: VideoFeatures) -> Tensor:
        """Scores `[B, A]` of tokens `[B, K, D]`."""
        return self.linear(self.norm(self.pool(video.tokens)))


Head = LinearHead | AttentiveHead


def build_head(config: HeadConfig) -> Head:
    return LinearHead(config) if config.kind == "linear" else AttentiveHead(config)


def dropout(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Dropout whose draws are a function of a generator, so that a resumed run repeats them."""
    if rate == 0:
        return x
    kept = torch.rand(x.shape, generator=generator, device=generator.device) >= rate
    return x * (kept / (1 - rate)).to(x)
