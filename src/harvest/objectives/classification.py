"""Action classification: a head on the whole video tower, both trained (UMT, VideoMAE).

What is drawn beyond the loader's crops and RandAugment happens here on the device, for a whole batch at once: random
erasing, then mixup or cutmix.

Shapes: B clips, T frames, A classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import Batch, HarvestError, Losses, VideoFeatures
from harvest.model.heads import HeadConfig, build_head, dropout
from harvest.model.video_text import VideoTextModel, own_attention
from harvest.objectives.masked_alignment import draw_drop_path_scale
from harvest.parallel import generator_for, seed_for, world_rank_size
from harvest.tokens import Selection, choose


@dataclass(frozen=True)
class ClassificationConfig(Selection):
    classes: str | None = None
    """File of the classes' names in the order of the labels: a JSON list, a name a line, or names with their
    numbers (docs/tasks.md). Without it the text of every row is the name of its class; in the mini-world they are its
    motions."""
    head: Literal["linear", "attentive"] = "linear"
    label_smoothing: float = 0.1
    mixup: float = 0.8
    """Both parameters of the beta distribution of shares in mixup; 0 is none."""
    cutmix: float = 1.0
    """The same for cutmix. Where both are above 0, a step takes either with chance 1/2."""
    random_erasing: float = 0.25
    """Chance that a box of a clip, the same in all its frames, is replaced by noise."""
    drop_path: float = 0.1
    """Stochastic depth of the tower: from 0 in the first block to this in the last."""
    head_dropout: float = 0.0
    head_scale: float = 0.001
    """The head starts at this multiple of its usual start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("label_smoothing", "drop_path", "head_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise HarvestError(f"objective.{name}: expected 0 or more and less than 1, got {value}")
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.random_erasing <= 1:
            raise HarvestError(
                f"objective: mixup {self.mixup} and cutmix {self.cutmix} must be at least 0, random_erasing "
                f"{self.random_erasing} from 0 to 1"
            )


class Classification(nn.Module):
    """Cross-entropy of one class a clip, or a binary one for each of several."""

    def __init__(
        self,
        config: ClassificationConfig,
        model: VideoTextModel,
        names: Sequence[str],
        *,
        several: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        video = model.config.video
        self.head = build_head(
            HeadConfig(config.head, tuple(names), video.width, several=several, num_heads=video.num_heads)
        )
        with torch.no_grad():
            self.head.linear.weight.mul_(config.head_scale)
            self.head.linear.bias.mul_(config.head_scale)
        # Nothing here trains what is not in the loss: words, scales, and what follows the feature that is read.
        model.requires_grad_(False)
        unused = ("projection.", "pool.", "norm_pooled.") if config.head == "attentive" else ("projection.",)
        for name, parameter in model.video.named_parameters():
            parameter.requires_grad_(not name.startswith(unused))

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        B, device = len(batch.video), batch.video.device
        target = targets(batch.label, len(self.head.config.names), smoothing=self._smoothing)
        video = batch.video
        if self.training:
            video, target = self._augmented(video, target, step, generator)
        keep = choose(
            self.selection,
            video,
            self.model.grid(video),
            generator=generator,
            attention_fn=lambda: own_attention(self.model, video),
        )
        drop_path_scale = None
        if self.training and self.config.drop_path > 0:
            depth = self.model.config.video.depth
            drop_path_scale = draw_drop_path_scale(
                depth, B, rate=self.config.drop_path, generator=generator
            ).to(device)
        seen = self.model.video_features(video, keep, drop_path_scale=drop_path_scale)
        if self.training and self.config.head_dropout > 0:
            pooled = dropout(seen.pooled, self.config.head_dropout, generator)
            seen = VideoFeatures(dropout(seen.tokens, self.config.head_dropout, generator), pooled)
        scores = self.head(seen).float()
        if self.head.config.several:
            loss = F.binary_cross_entropy_with_logits(scores, target)
        else:
            loss = F.cross_entropy(scores, target)
        # Of a mixed clip the larger share counts.
        right = (scores.argmax(dim=1) == target.argmax(dim=1)).float().mean()
        return Losses(loss, {"classes": loss.detach(), "top1": right.detach()})

    @property
    def _smoothing(self) -> float:
        return 0.0 if self.head.config.several else self.config.label_smoothing

    def _augmented(
        self, video: Tensor, target: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Erased and mixed clips, normalised, with the targets that belong to them."""
        config = self.config
        if not (config.random_erasing or config.mixup or config.cutmix):
            return video, target
        video = self.model.normalise(video)
        if config.random_erasing > 0:
            # Noise is drawn where the pixels are: a batch of it would be slow to bring there.
            noise = generator_for(self.seed, step, world_rank_size()[0], device=video.device)
            video = erase(video, chance=config.random_erasing, generator=generator, noise=noise)
        if config.mixup > 0 or config.cutmix > 0:
            draws = np.random.default_rng(seed_for(self.seed, step, world_rank_size()[0]))
            mix = draw_mix(video.shape[-2:], mixup=config.mixup, cutmix=config.cutmix, draws=draws)
            video, target = apply_mix(video, target, mix)
        return video, target


def targets(label: Tensor, num_classes: int, *, smoothing: float) -> Tensor:
    """What is to be said of each clip, fp32 `[B, A]`: int64 `[B]` labels, or 0 and 1 for each class `[B, ≤ A]`.

    Smoothing takes this share of the one and gives all classes an equal part of it.
    """
    if label.ndim == 2:
        return F.pad(label.float(), (0, num_classes - label.shape[1]))
    if (label < 0).any():
        raise HarvestError("classification needs a label in every row, and some row has none")
    return F.one_hot(label, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def erase(video: Tensor, *, chance: float, generator: torch.Generator, noise: torch.Generator) -> Tensor:
    """Normalised clips `[B, T, 3, H, W]`, some with a box of 2 to 33 % of the picture replaced by noise (timm, cube)."""
    B, T, _, H, W = video.shape
    draws = torch.rand(B, 5, dtype=torch.float64, generator=generator).tolist()
    video = video.clone()
    for clip, (is_erased, for_area, for_aspect, for_top, for_left) in zip(video, draws, strict=True):
        if is_erased >= chance:
            continue
        area = H * W * (0.02 + (1 / 3 - 0.02) * for_area)
        aspect = math.exp((2 * for_aspect - 1) * math.log(1 / 0.3))
        height = min(H - 1, max(1, round(math.sqrt(area * aspect))))
        width = min(W - 1, max(1, round(math.sqrt(area / aspect))))
        top, left = int(for_top * (H - height + 1)), int(for_left * (W - width + 1))
        box = torch.randn(T, 3, height, width, generator=noise, device=video.device, dtype=video.dtype)
        clip[..., top : top + height, left : left + width] = box
    return video


class Mix(NamedTuple):
    """How every clip of a batch is mixed with its mirror place in the batch, first with last."""

    share: float
    """What stays of a clip."""
    box: tuple[int, int, int, int] | None
    """Top, bottom, left, right of what cutmix takes from the other clip; None is mixup."""


def draw_mix(size: Sequence[int], *, mixup: float, cutmix: float, draws: np.random.Generator) -> Mix:
    """One mix for a batch of pictures of `size` (height, width), as timm's `Mixup` in batch mode."""
    is_cut = cutmix > 0 and (mixup == 0 or draws.random() < 0.5)
    alpha = cutmix if is_cut else mixup
    share = float(draws.beta(alpha, alpha))
    if not is_cut:
        return Mix(share, None)
    H, W = size
    side = math.sqrt(1 - share)
    height, width = int(H * side), int(W * side)
    y, x = int(draws.integers(H)), int(draws.integers(W))
    top, bottom = max(0, y - height // 2), min(H, y + height // 2)
    left, right = max(0, x - width // 2), min(W, x + width // 2)
    return Mix(1 - (bottom - top) * (right - left) / (H * W), (top, bottom, left, right))


def apply_mix(video: Tensor, target: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Normalised clips `[B, T, 3, H, W]` and their targets `[B, A]`, mixed alike."""
    other = video.flip(0)
    if mix.box is None:
        video = video.lerp(other, 1 - mix.share)
    else:
        top, bottom, left, right = mix.box
        video = video.clone()
        video[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return video, target.lerp(target.flip(0), 1 - mix.share)
