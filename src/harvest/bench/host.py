"""What a plan says first, whether a run takes a day, and what it needs beside the devices: cores, memory, disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harvest.bench.work import OPTIONS, teacher_sizes
from harvest.config import RunConfig
from harvest.data.stored_rows import row_size
from harvest.interfaces import Grid
from harvest.model.video_text import ModelConfig
from harvest.objectives.embedding_alignment import EmbeddingAlignmentConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.teacher_cache import fields_of
from harvest.objectives.text_store import STORED

DAY_H = 24.0
PREFETCH = 4
"""Batches that each loader worker has ready (`TrainLoader`)."""
CAPTIONS = 10_700_000
"""WebVid-10M's, where a store of captions is sized."""

Source = Literal["measured", "formula", "data sheet", "assumed", "recipe"]


@dataclass(frozen=True)
class Line:
    what: str
    figure: str
    source: Source


@dataclass(frozen=True)
class Probe:
    """What was found on this machine."""

    device: str
    matmul_gflop_per_s: float
    copy_gb_per_s: float
    decode_clips_per_s: float | None
    """Of one core, by processor time; None where nothing could be decoded."""
    decoded: str
    """What was decoded."""
    step_gflop_per_s: float | None
    """Of a real step, forward, backward and optimizer; None where none was timed."""
    memory_gb: float | None
    """Of the device, a GPU."""


@dataclass(frozen=True)
class Stage:
    """A part of the run."""

    name: str
    steps: int
    global_batch: int
    kept: int
    gflop_per_clip: float
    clips_per_s: float
    """What all devices compute, were there always data."""
    hours: float
    """By the slower of computing and reading."""
    memory_gb: float
    """Of each device, at its share of the global batch."""
    largest_batch: int | None
    """Clips that fit on a device; None where memory does not bound them (objective.chunk_clips)."""
    workers: int | None
    """Loader workers that each device needs; None where decoding was not measured."""
    bound: Literal["compute", "decode", "unknown"]
    """By the recipe's data.workers."""


def day_lines(
    config: RunConfig, found: Probe, stages: Sequence[Stage], hours: float, gpus: int
) -> list[Line]:
    """Whether the run takes a day at most, and if not what would make it one."""
    if hours <= DAY_H:
        return [Line("within a day", f"yes: {time_text(hours)} on these devices", "formula")]
    clips = [stage.steps * stage.global_batch for stage in stages]
    computing = sum(n / stage.clips_per_s for n, stage in zip(clips, stages, strict=True)) / 3600
    lines = [
        Line("within a day", f"no: {time_text(hours)}; computing alone {time_text(computing)}", "formula")
    ]
    if computing > DAY_H:
        needed = -int(-gpus * computing // DAY_H)
        return [*lines, Line("for a day", f"{needed:,} such devices", "formula")]
    if found.decode_clips_per_s is None:
        return lines
    workers = config.data.workers
    while hours > DAY_H:
        workers += 1
        read = found.decode_clips_per_s * gpus * workers
        hours = sum(n / min(read, s.clips_per_s) for n, s in zip(clips, stages, strict=True)) / 3600
    told = f"--data.workers {workers}, {workers * gpus:,} cores like this one's in all: {time_text(hours)}"
    packed = (
        "or clips that decode faster: harvest prepare, then --data SHARDS here, which decodes some of them"
    )
    return [*lines, Line("for a day", told, "formula"), Line("", packed, "formula")]


def host_lines(config: RunConfig, sizes: ModelConfig, stages: Sequence[Stage], gpus: int) -> list[Line]:
    """Memory and disk of the machine that `gpus` devices are in."""
    video, data, lines = sizes.video, config.data, []
    share = max(-(-stage.global_batch // gpus) for stage in stages)
    stored = stored_bytes(config, sizes)
    clip = data.num_frames * 3 * video.image_size**2 + stored
    if data.cache == "none" and data.workers:
        shared = gpus * data.workers * PREFETCH * share * clip / 1e9
        lines.append(Line("shared memory of all devices' workers (/dev/shm)", f"{shared:,.1f} GB", "formula"))
    else:
        lines.append(Line("frames in memory", f"{clip / 1e6:.1f} MB a clip, for each device", "formula"))
    copied = max(stage.clips_per_s for stage in stages) * clip / gpus / 1e9
    lines.append(Line("copied to a device", f"{copied:.2f} GB/s at most", "formula"))
    if getattr(config.objective, "cache_texts", False):
        disk = stored / (data.captions_per_clip or OPTIONS) * CAPTIONS / 1e9
        lines.append(Line("encoded captions on disk", f"{disk:,.1f} GB for 10.7 million", "formula"))
    elif stored:
        lines.append(Line("what a teacher sees, on disk", f"{stored / 1e6:.3f} MB a clip", "formula"))
    return lines


def stored_bytes(config: RunConfig, sizes: ModelConfig) -> int:
    """Of a clip in a batch, what comes from a store (`Batch.stored`)."""
    objective, video = config.objective, sizes.video
    if isinstance(objective, PostPretrainingConfig) and objective.cache_texts:
        size = STORED[objective.text_store_type].itemsize * video.embed_dim
        return size * (config.data.captions_per_clip or OPTIONS)
    if isinstance(objective, EmbeddingAlignmentConfig):
        return 2 * video.embed_dim
    if isinstance(objective, MaskedAlignmentConfig) and objective.teacher_cache is not None:
        grid = Grid(video.num_times, video.num_patches, video.tubelet_size, video.patch_size)
        fields = fields_of(
            grid,
            layers=objective.num_layers,
            width=teacher_sizes(objective).video.embed_dim,
            share=objective.teacher_cache_ratio,
            stored=objective.teacher_cache_type,
        )
        return row_size(fields)
    return 0


def time_text(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
