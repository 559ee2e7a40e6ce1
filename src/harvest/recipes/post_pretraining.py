"""Harvest (arXiv 2310.19554): CLIP learns video from captioned clips; and from clips without captions."""

from __future__ import annotations

import dataclasses

from harvest.config import LoopConfig, RunConfig, StartConfig, TuningConfig
from harvest.data.dataset import DataConfig
from harvest.model.fusion import FusionConfig
from harvest.objectives.embedding_alignment import EmbeddingAlignmentConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.training.optim import OptimConfig
from harvest.training.vary import VaryConfig


def harvest_b16() -> RunConfig:
    """The paper's recipe, CLIP ViT-B/16 on WebVid: 8 frames, 224, 90 % dropped, text frozen, 8 x 128 clips."""
    # Values and the strength of their evidence: docs/method.md. 104,000 steps of 1,024 are ten epochs of WebVid-10M,
    # 20,900 of 256 half of one, as ViCLIP is tuned.
    return RunConfig(
        recipe="harvest-b16",
        start=StartConfig(model="openai/clip-vit-base-patch16"),
        objective=PostPretrainingConfig(),
        data=DataConfig(num_frames=8, crop_scale=(0.5, 1.0), flip=True, workers=8),
        optim=OptimConfig(
            lr=1e-5, warmup_steps=4000, weight_decay=0.2, betas=(0.9, 0.98), lr_factors={"fusion": 10.0}
        ),
        loop=LoopConfig(steps=104_000, global_batch=1024),
        tuning=TuningConfig(steps=20_900, drop_ratio=0.0, lr=1e-7, global_batch=256),
        blend=1.0,
    )


def harvest_l14() -> RunConfig:
    """The paper's recipe, CLIP ViT-L/14 on WebVid."""
    base = harvest_b16()
    return dataclasses.replace(
        base,
        recipe="harvest-l14",
        start=StartConfig(model="openai/clip-vit-large-patch14", fusion=FusionConfig(depth=4, num_heads=12)),
        loop=dataclasses.replace(base.loop, checkpointing=True),
    )


def adapt_b16() -> RunConfig:
    """Videos without captions, CLIP ViT-B/16: the embedding of all frames from 5, 10 or 20 % of 8 frames' tubelets."""
    return RunConfig(
        recipe="adapt-b16",
        start=StartConfig(model="openai/clip-vit-base-patch16", fusion=None),
        objective=EmbeddingAlignmentConfig(),
        data=DataConfig(num_frames=8, times="middle", workers=8),
        vary=VaryConfig(budgets=(78, 157, 314)),
        optim=OptimConfig(lr=1e-5, warmup_steps=500, weight_decay=0.05, betas=(0.9, 0.98), max_grad_norm=1.0),
        loop=LoopConfig(steps=5000, global_batch=256),
        tuning=TuningConfig(steps=0),
    )
