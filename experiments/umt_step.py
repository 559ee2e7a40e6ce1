"""The training steps of UMT's two stages, timed, with the teacher and with its cache: `python -m experiments.umt_step`."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments import main
from harvest.bench.ceiling import wait_for
from harvest.bench.step import Size, describe_machine, model_config, print_table
from harvest.files import finish_filling
from harvest.interfaces import Batch, HarvestError, OnProgress
from harvest.machine import keep_memory
from harvest.model.alignment import student_tower
from harvest.model.fusion import FusionConfig
from harvest.model.inflation import as_teacher
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel, compile_blocks
from harvest.objectives import teacher_cache
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.objectives.reach import random_batch
from harvest.parallel import Precision, autocast, computed_in
from harvest.progress import bar
from harvest.training.optim import OptimConfig, build_optimizer
from harvest.training.step import OptimizerStep


def _sizes(model: Size) -> dict[str, Any]:
    """Of the student's and the teacher's blocks: those of `harvest bench step`."""
    video = model_config(model, frames=1).video
    names = ("width", "depth", "num_heads", "mlp_width", "image_size", "patch_size")
    return {name: getattr(video, name) for name in names}


def umt_step(
    model: Literal["b16", "mini"] = "b16",
    batch: int = 8,
    frames: tuple[int, int] = (8, 4),
    precision: Precision = "bf16",
    plain: bool = False,
    compile: bool = False,
    threads: int | None = None,
    seconds: float = 30.0,
    device: str | None = None,
) -> None:
    """Clips a second of UMT's stage 1, with the teacher, with it in int8 and with its cache, and of stage 2.

    $ python -m experiments.umt_step --compile --seconds 20

    Args:
        model: b16 is ViT-B/16 taught by CLIP-B/16, with a BERT-base; mini is the size of the mini-world's.
        batch: Clips a step.
        frames: Frames a clip in the two stages.
        precision: bf16 or fp32, of student and teacher.
        plain: Measure stage 1 in fp32 besides: what the reference computes.
        compile: Compile the transformer blocks, the teacher's too; not those of the plain one.
        threads: Threads PyTorch computes with.
        seconds: For each, after two steps of warm-up.
        device: cpu or cuda; without it the GPU where there is one.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cpu":
        keep_memory()
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        runs: list[tuple[str, MaskedAlignment | Multimodal, ModelConfig, Precision]] = []
        if plain:
            config, objective = _stage1(model, frames[0], place, "fp32")
            runs.append(("stage 1, plain", objective, config, "fp32"))
        config, objective = _stage1(model, frames[0], place, precision)
        runs.append(("stage 1", objective, config, precision))
        config, objective = _stage1(model, frames[0], place, precision, int8=True)
        runs.append(("stage 1, teacher in int8", objective, config, precision))
        with_cache = _stage1(model, frames[0], place, precision)[1]
        _fill(Path(folder), with_cache, random_batch(_with_words(config), batch, 3, place), place, precision)
        runs.append(("stage 1, teacher cached", with_cache, config, precision))
        both, stage2 = _stage2(model, frames[1], place, precision)
        runs.append(("stage 2", stage2, both, precision))
        for name, stage, sizes, how in runs:
            if compile and not name.endswith("plain"):
                compile_blocks(stage.model)
                assert stage.teaching is not None
                compile_blocks(stage.teaching.teacher)
            clips = random_batch(_with_words(sizes), batch, 12, place)
            with bar(f"{name}, seconds") as progress:
                times = _time(stage, clips, how, place, seconds, progress=progress)
            rate = batch / median(times)
            rows.append((name, str(batch), str(len(times)), f"{1000 * median(times):.0f} ms", f"{rate:.2f}"))
    print(", ".join(str(value) for value in describe_machine(place).values()))
    print_table(("what", "batch", "steps", "step", "clips/s"), rows)


def _video(model: Size, frames: int) -> VideoEncoderConfig:
    return student_tower(num_frames=frames, **_sizes(model))


def _teacher(model: Size, place: torch.device, precision: Precision, *, int8: bool = False) -> VideoEncoder:
    taught = VideoEncoderConfig(num_frames=1, embed_dim=512, **_sizes(model))
    dtype = torch.bfloat16 if computed_in(place, precision) == "bf16" else torch.float32
    return as_teacher(VideoTextModel(ModelConfig(video=taught, text=None)), dtype=dtype, int8=int8)


def _stage1(
    model: Size, frames: int, place: torch.device, precision: Precision, *, int8: bool = False
) -> tuple[ModelConfig, MaskedAlignment]:
    torch.manual_seed(0)
    config = ModelConfig(video=_video(model, frames), text=None)
    settings = MaskedAlignmentConfig(num_layers=min(6, config.video.depth))
    made = MaskedAlignment(
        settings, VideoTextModel(config), _teacher(model, place, precision, int8=int8), seed=0
    )
    return config, made.to(place)


def _stage2(
    model: Size, frames: int, place: torch.device, precision: Precision
) -> tuple[ModelConfig, Multimodal]:
    torch.manual_seed(0)
    is_small = model == "mini"
    text = TextEncoderConfig(
        vocab_size=768 if is_small else 30522,
        context_length=32,
        width=128 if is_small else 768,
        depth=3 if is_small else 9,
        num_heads=4 if is_small else 12,
        mlp_width=512 if is_small else 3072,
        activation="gelu",
        norm_eps=1e-12,
        causal=False,
        norms="after",
        dropout=0.1,
        pooling="first",
        projection_bias=True,
        start_id=101,
        end_id=None,
        pad_id=0,
        mask_id=103,
    )
    fusion = FusionConfig(
        depth=1 if is_small else 3, num_heads=text.num_heads, layout="bert", tied_words=True, matches=True
    )
    video = dataclasses.replace(
        _video(model, frames),
        projection=True,
        projection_bias=True,
        embed_dim=512,
        pooled_norm=True,
        pool_times=True,
    )
    config = ModelConfig(video=video, text=text, fusion=fusion)
    settings = MultimodalConfig(num_layers=min(6, video.depth))
    made = Multimodal(settings, VideoTextModel(config), _teacher(model, place, precision), seed=0)
    return config, made.to(place)


def _with_words(config: ModelConfig) -> ModelConfig:
    """Sizes that a random batch can be made of; the captions of stage 1 are looked at by nobody."""
    return config if config.text is not None else dataclasses.replace(config, text=TextEncoderConfig())


def _fill(
    folder: Path, objective: MaskedAlignment, batch: Batch, place: torch.device, precision: Precision
) -> None:
    grid = objective.model.grid(batch.video)
    settings = objective.config

    def looks() -> list[tuple[Tensor, Tensor]]:
        return [(batch.example.cpu(), batch.video)]

    with autocast(place, precision):
        teacher_cache.fill(
            folder,
            objective.teaching,
            [(0, partial(looks))],
            grid,
            share=settings.teacher_cache_ratio,
            stored=settings.teacher_cache_type,
            seed=0,
            device=place,
        )
    finish_filling(folder, {})
    objective.teaching.cache = teacher_cache.TeacherCache(folder, made_of={})


def _time(
    objective: nn.Module,
    batch: Batch,
    precision: Precision,
    place: torch.device,
    seconds: float,
    *,
    progress: OnProgress,
) -> list[float]:
    if len(batch.video) < 1 or seconds <= 0:
        raise HarvestError(
            f"expected a batch of at least 1 and more than 0 seconds, got {len(batch.video)} and {seconds}"
        )
    optimizer = build_optimizer(objective, OptimConfig(lr=1e-6))
    take_step = OptimizerStep(objective.train(), optimizer, place, precision)
    times: list[float] = []
    step = 0
    while step < 4 or sum(times) < seconds:
        wait_for(place)
        before = time.perf_counter()
        take_step(batch, step)
        wait_for(place)
        if step >= 2:  # after the warm-up
            times.append(time.perf_counter() - before)
        progress(round(min(sum(times), seconds)), round(seconds))
        step += 1
    return times


if __name__ == "__main__":
    main(umt_step)
