"""Action classification: a head on the whole video tower, both trained (UMT, VideoMAE).

What is drawn beyond the loader's crops and RandAugment happens here on the device, for a whole batch at once: random
erasing, then mixup or cutmix.

Shapes: B clips, T frames, A classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.data.columns import Columns
from harvest.data.labels import class_names_of, labelled, read_class_names
from harvest.interfaces import Batch, HarvestError, Losses, VideoFeatures
from harvest.model.heads import HeadConfig, build_head, dropout
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given, Needs
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import choose_seen, drop_path_of, step_generator, step_seed
from harvest.progress import say
from harvest.ranges import Range
from harvest.tokens import Selection

if TYPE_CHECKING:
    from harvest.config import RunConfig
    from harvest.data.shards import ShardSet
    from harvest.objectives.contract import Rows


@dataclass(frozen=True)
class ClassificationConfig(Selection):
    classes: str | None = None
    """File of the classes' names in the order of the labels: a JSON list, a name a line, or names with their
    numbers (docs/tasks.md). Without it the text of every row is the name of its class; in the mini-world they are its
    motions."""
    head: Literal["linear", "attentive"] = "linear"
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.1
    mixup: Annotated[float, Range(least=0)] = 0.8
    """Both parameters of the beta distribution of shares in mixup; 0 is none."""
    cutmix: Annotated[float, Range(least=0)] = 1.0
    """The same for cutmix. Where both are above 0, a step takes either with chance 1/2."""
    random_erasing: Annotated[float, Range(least=0, most=1)] = 0.25
    """Chance that a box of a clip, the same in all its frames, is replaced by noise."""
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.1
    """Stochastic depth of the tower: from 0 in the first block to this in the last."""
    head_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    head_scale: float = 0.001
    """The head starts at this multiple of its usual start."""

    @property
    def needs(self) -> Needs:
        return Needs(self, text=False, rows=self._labelled)

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> Classification:
        return Classification(self, model, given.names, several=given.several, seed=run.loop.seed)

    def _labelled(self, rows: Rows, listed: Path | None) -> tuple[Rows, list[str]]:
        """The rows with a label, and the names of the classes."""
        if not isinstance(rows, Columns | list):
            return rows, _classes_of_shards(self.classes, cast("ShardSet", rows))
        if self.classes is not None:
            names = read_class_names(self.classes)
        else:
            names = class_names_of(rows) if listed is None else read_class_names(listed)
        kept = labelled(rows, len(names))
        if len(kept) < len(rows):
            say(f"{len(rows) - len(kept)} of {len(rows)} rows have no label and are left out")
        return kept, names


def _classes_of_shards(classes: str | None, shards: ShardSet) -> list[str]:
    """The names of the classes, which fit the labels in the shards' indexes."""
    if classes is None:
        raise HarvestError(
            "classification from shards needs the classes' names in the order of their labels: --objective.classes FILE"
        )
    names = read_class_names(classes)
    wrong = (shards.labels < 0) | (shards.labels >= len(names))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise HarvestError(
            f"{int(wrong.sum())} of {len(shards)} samples of the shards have no label from 0 to {len(names) - 1}; first:"
            f" {shards.id_of(first)} ({int(shards.labels[first])}): prepare them from a manifest of labelled rows, or"
            " give all the classes"
        )
    return names


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
        width = video.pooled_width if config.head == "linear" else video.width
        self.head = build_head(
            HeadConfig(config.head, tuple(names), width, several=several, num_heads=video.num_heads)
        )
        with torch.no_grad():
            self.head.linear.weight.mul_(config.head_scale)
            self.head.linear.bias.mul_(config.head_scale)
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        target = targets(batch.label, len(self.head.config.names), smoothing=self._smoothing)
        video = batch.video
        if self.training:
            video, target = self._augmented(video, target, step, generator)
        keep = choose_seen(self.model, self.selection, video, generator=generator)
        drop_path_scale = drop_path_of(
            self.model, video, rate=self.config.drop_path, is_training=self.training, generator=generator
        )
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
            noise = step_generator(self.seed, step, device=video.device)
            host = generator if generator.device.type == "cpu" else step_generator(self.seed, step)
            video = erase(video, chance=config.random_erasing, generator=host, noise=noise)
        if config.mixup > 0 or config.cutmix > 0:
            draws = np.random.default_rng(step_seed(self.seed, step))
            mix = draw_mix(video.shape[-2:], mixup=config.mixup, cutmix=config.cutmix, draws=draws)
            video, target = apply_mix(video, target, mix)
        return video, target


def targets(label: Tensor, num_classes: int, *, smoothing: float) -> Tensor:
    """What is to be said of each clip, fp32 `[B, A]`: int64 `[B]` labels, or 0 and 1 for each class `[B, ≤ A]`.

    Smoothing takes this share of the one and gives all classes an equal part of it.
    """
    if label.ndim == 2:
        return F.pad(label.float(), (0, num_classes - label.shape[1]))
    is_class = label[:, None] == torch.arange(num_classes, device=label.device)
    return is_class.float() * (1 - smoothing) + smoothing / num_classes


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
