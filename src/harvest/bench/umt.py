"""UMT's two stages with random weights, at the sizes of `harvest bench step`: what `bench gpu` and experiments time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harvest.bench.step import Size, Variant, make_stepper, model_config
from harvest.data.stored_rows import pack
from harvest.interfaces import Batch
from harvest.model.alignment import student_tower
from harvest.model.fusion import FusionConfig
from harvest.model.inflation import as_teacher
from harvest.model.text_encoder import bert_text
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel, compile_blocks
from harvest.objectives import teacher_cache
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.objectives.reach import random_batch
from harvest.parallel import Precision, autocast, computed_in


def _sizes(model: Size) -> dict[str, Any]:
    """Of the student's and the teacher's blocks: those of `harvest bench step`."""
    video = model_config(model, frames=1).video
    names = ("width", "depth", "num_heads", "mlp_width", "image_size", "patch_size")
    return {name: getattr(video, name) for name in names}


def tower_of(model: Size, frames: int) -> VideoEncoderConfig:
    """The student's."""
    return student_tower(num_frames=frames, **_sizes(model))


def _teacher(model: Size, place: torch.device, precision: Precision, *, int8: bool = False) -> VideoEncoder:
    taught = VideoEncoderConfig(num_frames=1, embed_dim=512, **_sizes(model))
    dtype = torch.bfloat16 if computed_in(place, precision) == "bf16" else torch.float32
    return as_teacher(VideoTextModel(ModelConfig(video=taught, text=None)), dtype=dtype, int8=int8)


def stage1(
    model: Size, frames: int, place: torch.device, precision: Precision, *, int8: bool = False
) -> MaskedAlignment:
    torch.manual_seed(0)
    config = ModelConfig(video=tower_of(model, frames), text=None)
    settings = MaskedAlignmentConfig(num_layers=min(6, config.video.depth))
    made = MaskedAlignment(
        settings, VideoTextModel(config), _teacher(model, place, precision, int8=int8), seed=0
    )
    return made.to(place)


def stage2(model: Size, frames: int, place: torch.device, precision: Precision) -> Multimodal:
    torch.manual_seed(0)
    is_small = model == "mini"
    text = bert_text(
        vocab_size=768 if is_small else 30522,
        context_length=32,
        width=128 if is_small else 768,
        depth=3 if is_small else 9,
        num_heads=4 if is_small else 12,
        mlp_width=512 if is_small else 3072,
        start_id=101,
        end_id=None,
        pad_id=0,
        mask_id=103,
    )
    fusion = FusionConfig(
        depth=1 if is_small else 3, num_heads=text.num_heads, layout="bert", tied_words=True, matches=True
    )
    video = dataclasses.replace(
        tower_of(model, frames),
        projection=True,
        projection_bias=True,
        embed_dim=512,
        pooled_norm=True,
        pool_times=True,
    )
    config = ModelConfig(video=video, text=text, fusion=fusion)
    settings = MultimodalConfig(num_layers=min(6, video.depth))
    made = Multimodal(settings, VideoTextModel(config), _teacher(model, place, precision), seed=0)
    return made.to(place)


def umt_variants(
    model: Size,
    batch: int,
    frames: tuple[int, int],
    precision: Precision,
    place: torch.device,
    *,
    compile: bool = False,
    plain: bool = False,
) -> Iterator[Variant]:
    """Steps of stage 1 with the teacher, with it in 8 bits and with its cache, and of stage 2; `plain` begins with stage 1
    in fp32, not compiled."""
    made: list[tuple[str, Precision, Callable[[], MaskedAlignment | Multimodal]]] = [
        ("stage 1", precision, lambda: stage1(model, frames[0], place, precision)),
        (
            "stage 1, teacher in int8",
            precision,
            lambda: stage1(model, frames[0], place, precision, int8=True),
        ),
        ("stage 1, teacher cached", precision, lambda: stage1(model, frames[0], place, precision)),
        ("stage 2", precision, lambda: stage2(model, frames[1], place, precision)),
    ]
    if plain:
        made.insert(0, ("stage 1, plain", "fp32", lambda: stage1(model, frames[0], place, "fp32")))
    for name, how, build in made:
        objective = build()
        sizes = objective.model.config
        clips = random_batch(sizes, batch, 12, place)
        if name.endswith("cached"):
            assert isinstance(objective, MaskedAlignment)
            clips = with_rows(objective, clips, place, how)
        if compile and not name.endswith("plain"):
            compile_blocks(objective.model)
            assert objective.teaching is not None
            compile_blocks(objective.teaching.teacher)
        yield Variant(name, objective.config, make_stepper(objective, how, place), clips)


def with_rows(objective: MaskedAlignment, batch: Batch, place: torch.device, precision: Precision) -> Batch:
    """The batch with what the teacher sees of it, as the loader's workers bring it."""
    grid, settings, teaching = objective.model.grid(batch.video), objective.config, objective.teaching
    share = settings.teacher_cache_ratio
    fields = teaching.fields(grid, share=share, stored=settings.teacher_cache_type)
    with autocast(place, precision):
        looks = teacher_cache.look(teaching, batch.example, batch.video, grid, share=share, seed=0)
    teaching.stored = fields
    return batch._replace(stored=pack(looks, fields).to(place))
