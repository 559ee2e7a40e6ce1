"""Work of one clip's training step, by formula, for every objective: what a plan and a benchmark divide by.

Matrix products alone; norms, softmax and activations are below 1 %. The backward pass costs twice the forward where
weights are trained, once where it only passes through. A MAC is one multiply and add, 2 FLOP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harvest.bench.step import Size, block_mac, fused_mac, model_config, text_mac, video_mac, word_head_mac
from harvest.interfaces import HarvestError
from harvest.model.video_text import ModelConfig
from harvest.objectives.contract import ANSWER_WORDS, WORDS, Reading
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig

if TYPE_CHECKING:
    from harvest.config import RunConfig

OPTIONS = 5
"""Options that a question is assumed to have, where a run takes all that are there (data.captions_per_clip 0)."""

KNOWN: Mapping[str, Size] = {
    "openai/clip-vit-base-patch16": "b16",
    "openai/clip-vit-large-patch14": "l14",
    "mini-image": "mini",
}
"""Image-text models whose sizes are known without their weights."""


def reading_of(config: RunConfig, sizes: ModelConfig) -> Reading:
    """What a run's objective does with texts."""
    return config.objective.needs.reading(sizes, config.data.captions_per_clip or OPTIONS)


def gflop_of(config: RunConfig, sizes: ModelConfig, kept: int) -> float:
    """GFLOP of one clip's training step: forward, backward, and what is computed a second time to save memory.

    Heads of fine-tuning are left out: below 0.1 % of their towers.
    """
    objective = config.objective
    patches, encoder = video_mac(sizes.video, kept)
    again = encoder if config.loop.checkpointing else 0
    macs: float = 2 * patches + 3 * encoder + again
    reading = reading_of(config, sizes)
    if reading != Reading():
        macs += reading.towers * text_mac(sizes.text_tower, WORDS)
    if reading.fused and sizes.fusion is not None:
        once = fused_mac(
            sizes.fusion, sizes.text_tower, context_width=sizes.video.width, context=kept, words=WORDS
        )
        macs += 3 * (reading.fused * once + reading.hidden * word_head_mac(sizes.text_tower))
    if reading.answers and sizes.answers is not None:
        text = sizes.text_tower
        macs += 3 * fused_mac(
            sizes.answers, text, context_width=text.width, context=WORDS, words=ANSWER_WORDS - 1
        )
    if getattr(objective, "chunk_clips", 0):
        macs += (macs - again) / 3  # the forward pass once more
    if isinstance(objective, MaskedAlignmentConfig):
        macs += _taught_mac(objective, sizes, kept)
    elif isinstance(objective, PixelReconstructionConfig):
        macs += 3 * _rebuilding_mac(objective, sizes, kept)
    elif objective.needs.selection.selector == "attention" and kept < _all(sizes):
        macs += sum(video_mac(sizes.video, _all(sizes)))  # the model itself looks first
    return 2 * macs / 1e9


def _all(sizes: ModelConfig) -> int:
    return sizes.video.num_times * sizes.video.num_patches


def teacher_of(objective: MaskedAlignmentConfig) -> ModelConfig | None:
    """Sizes of the teacher, None where the run computes none; HarvestError where they are not known here."""
    if objective.teacher_cache is not None or not objective.needs_teacher:
        return None
    return teacher_sizes(objective)


def teacher_sizes(objective: MaskedAlignmentConfig) -> ModelConfig:
    """Sizes of the teacher; HarvestError where they are not known here."""
    if objective.teacher not in KNOWN:
        raise HarvestError(
            f"plan does not know the sizes of the teacher {objective.teacher!r}; it knows {', '.join(KNOWN)}"
        )
    size = objective.teacher_image_size
    return model_config(KNOWN[objective.teacher], frames=1, image_size=size, tubelet_size=1)


def _taught_mac(objective: MaskedAlignmentConfig, sizes: ModelConfig, kept: int) -> float:
    """What a teacher computes, and the heads that carry the student's layers to it."""
    macs = 0.0
    if objective.aligns:
        width = teacher_sizes(objective).video.embed_dim
        macs += 3 * objective.num_layers * kept * sizes.video.width * width
    teacher = teacher_of(objective)
    if teacher is None:
        return macs
    tower, S = teacher.video, sizes.video.num_times
    P, D = tower.num_patches, tower.width
    patches, blocks = video_mac(tower, P)
    last = block_mac(P + 1, D, tower.mlp_width)
    macs += S * (patches + blocks - last)
    if objective.selector == "attention" and kept < _all(sizes):  # keys of the last block say where it looks
        macs += S * (P + 1) * D**2
    if objective.aligns:  # of the last block no more than what is kept, beside the keys and values of all
        macs += S * 2 * (P + 1) * D**2
        macs += kept * (2 * D**2 + 2 * D * tower.mlp_width + 2 * (P + 1) * D)
        macs += objective.num_layers * kept * D * tower.embed_dim
    return macs


def _rebuilding_mac(objective: PixelReconstructionConfig, sizes: ModelConfig, kept: int) -> float:
    """Forward MACs of VideoMAE's decoder: all tubelets in its blocks, pixels of the hidden ones."""
    video, D, N = sizes.video, objective.decoder_width, _all(sizes)
    values = video.tubelet_size * 3 * video.patch_size**2
    blocks = objective.decoder_depth * block_mac(N, D, 4 * D)
    return kept * video.width * D + blocks + (N - kept) * D * values
