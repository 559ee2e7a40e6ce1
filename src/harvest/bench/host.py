"""What a plan says first, whether a run takes a day, and what it needs beside the devices: cores, memory, disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harvest.config import RunConfig
from harvest.model.video_text import ModelConfig

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
    clip = data.num_frames * 3 * video.image_size**2
    if data.cache == "none" and data.workers:
        shared = gpus * data.workers * PREFETCH * share * clip / 1e9
        lines.append(Line("shared memory of all devices' workers (/dev/shm)", f"{shared:,.1f} GB", "formula"))
    else:
        lines.append(Line("frames in memory", f"{clip / 1e6:.1f} MB a clip, for each device", "formula"))
    copied = max(stage.clips_per_s for stage in stages) * clip / gpus / 1e9
    lines.append(Line("frames copied to a device", f"{copied:.2f} GB/s at most", "formula"))
    if getattr(config.objective, "cache_texts", False):
        size = {"fp32": 4, "fp16": 2}[config.objective.text_store_type]  # type: ignore[attr-defined]
        stored = size * video.embed_dim * CAPTIONS / 1e9
        lines.append(Line("encoded captions on disk", f"{stored:,.1f} GB for 10.7 million", "formula"))
    return lines


def time_text(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
