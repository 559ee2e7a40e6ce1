"""Heads that read a trained tower for one task. They live beside the model in its folder.

Shapes: B clips, K tubelets, D width of the tower, A classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import HarvestError, VideoFeatures
from harvest.model.layers import AttentionPooling
from harvest.model.video_text import VideoTextModel
from harvest.parallel import send


@dataclass(frozen=True)
class HeadConfig:
    """What a head tells apart and what it reads; written into the model folder."""

    kind: Literal["linear", "attentive", "answers", "boxes"]
    names: tuple[str, ...]
    """What the scores stand for, in their order."""
    width: int
    """Of what it reads: the tower's tokens, or the features of a question."""
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


class AnswerHead(nn.Module):
    """Two layers on what is known of a clip and a question (CoTrain `vqa_classifier`)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.width, 2 * config.width)
        self.norm = nn.LayerNorm(2 * config.width)
        self.linear = nn.Linear(2 * config.width, len(config.names))

    def forward(self, features: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Scores `[B, A]` of `answer_features` `[B, width]`; dropout draws from PyTorch's own generator."""
        hidden = F.gelu(self.norm(self.dense(F.dropout(features, dropout))))
        return self.linear(F.dropout(hidden, dropout))


class BoxHead(nn.Module):
    """Two layers on a region's feature (`model.regions`), a yes or no for each action."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.width, config.width)
        self.linear = nn.Linear(config.width, len(config.names))

    def forward(self, regions: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Scores `[R, A]` of regions `[R, D]`; dropout draws from PyTorch's own generator."""
        return self.linear(F.dropout(F.relu(self.dense(F.dropout(regions, dropout))), dropout))


def answer_width(model: VideoTextModel) -> int:
    words, video = model.config.text_tower, model.config.video
    return words.width + video.pooled_width + words.embed_dim


def answer_features(model: VideoTextModel, video: VideoFeatures, text_ids: Tensor) -> Tensor:
    """What is known of clips and questions, `[B, answer_width]`: the state of the hidden word where the answer stands,
    the clip's feature, and the question's embedding.

    `video` is `VideoTextModel.video_features`; ids `[B, L]` have one hidden word a row (`model.prompt`).
    """
    text = model.encode_text(text_ids)
    states = model.fuse(video, text)
    place = (text_ids == model.mask_id).long().argmax(dim=1)
    hidden = states[torch.arange(len(states), device=states.device), place]
    return torch.cat([hidden, video.pooled.to(hidden), text.pooled.to(hidden)], dim=-1)


ClipHead = LinearHead | AttentiveHead
"""Heads that read a clip alone."""
Head = ClipHead | AnswerHead | BoxHead


def build_head(config: HeadConfig) -> Head:
    if config.kind == "answers":
        return AnswerHead(config)
    if config.kind == "boxes":
        return BoxHead(config)
    return LinearHead(config) if config.kind == "linear" else AttentiveHead(config)


def dropout(x: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Dropout whose draws are a function of a generator, so that a resumed run repeats them."""
    if rate == 0:
        return x
    kept = torch.rand(x.shape, generator=generator, device=generator.device) >= rate
    return x * send(kept / (1 - rate), x.device).to(x)
