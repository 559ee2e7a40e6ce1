"""UMT's two stages (arXiv 2303.16058) and VideoMAE, which it is compared with."""

from __future__ import annotations

import dataclasses

from harvest.config import LoopConfig, RunConfig, StartConfig
from harvest.data.dataset import DataConfig
from harvest.model.alignment import student_tower
from harvest.model.fusion import FusionConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.training.optim import OptimConfig


def student(video: VideoEncoderConfig) -> StartConfig:
    """A video tower from scratch, without a text tower."""
    return StartConfig(model="scratch", fusion=None, scratch=ModelConfig(video=video, text=None))


def umt_stage1_b16() -> RunConfig:
    """UMT stage 1, ViT-B/16 from scratch taught by CLIP-B/16: 8 frames, 224, 80 % hidden, 200 epochs of K710."""
    # 658,000 clips in batches of 2,048 are 321 steps an epoch; 40 epochs of warm-up; lr 1.5e-4 and 1e-5 x 2,048 / 256.
    return RunConfig(
        recipe="umt-stage1-b16",
        start=student(student_tower(width=768, depth=12, num_heads=12)),
        objective=MaskedAlignmentConfig(),
        data=DataConfig(num_frames=8, crop_scale=(0.44, 1.0), flip=True, workers=8),
        optim=OptimConfig(
            lr=1.2e-3, lr_end=8e-5, warmup_steps=40 * 321, weight_decay=0.05, betas=(0.9, 0.95)
        ),
        loop=LoopConfig(steps=200 * 321, global_batch=2048),
    )


def umt_stage1_l16() -> RunConfig:
    """UMT stage 1, ViT-L/16 from scratch taught by CLIP-L/14 at 196."""
    return dataclasses.replace(
        umt_stage1_b16(),
        recipe="umt-stage1-l16",
        start=student(student_tower(width=1024, depth=24, num_heads=16)),
        objective=MaskedAlignmentConfig(
            teacher="openai/clip-vit-large-patch14", teacher_image_size=196, drop_path=0.2
        ),
    )


def umt_stage2_b16() -> RunConfig:
    """UMT stage 2: the tower of stage 1 meets a BERT; 4 frames, 80 % hidden, pictures mixed in, 25M pairs, 10 epochs."""
    # The paper's 25M: WebVid-10M, and as --data.images CC3M, CC12M, COCO, VG and SBU. 12,207 steps of 2,048 an epoch.
    return RunConfig(
        recipe="umt-stage2-b16",
        start=StartConfig(
            model="runs/umt-stage1-b16",
            text="bert-base-uncased",
            embed_dim=512,
            fusion=FusionConfig(depth=3, num_heads=12, layout="bert", tied_words=True, matches=True),
        ),
        objective=MultimodalConfig(),
        data=DataConfig(num_frames=4, crop_scale=(0.5, 1.0), flip=True, workers=8),
        optim=OptimConfig(lr=1e-4, lr_end=1e-6, warmup_steps=12_207, weight_decay=0.02, betas=(0.9, 0.999)),
        loop=LoopConfig(steps=122_070, global_batch=2048),
    )


def umt_stage2_l16() -> RunConfig:
    """UMT stage 2 of ViT-L/16 with BERT-large, 4,096 pairs a step."""
    base = umt_stage2_b16()
    return dataclasses.replace(
        base,
        recipe="umt-stage2-l16",
        start=StartConfig(
            model="runs/umt-stage1-l16",
            text="bert-large-uncased",
            embed_dim=768,
            fusion=FusionConfig(depth=5, num_heads=16, layout="bert", tied_words=True, matches=True),
        ),
        objective=MultimodalConfig(
            teacher="openai/clip-vit-large-patch14", teacher_image_size=196, drop_path=0.2
        ),
        optim=dataclasses.replace(base.optim, warmup_steps=6103),
        loop=dataclasses.replace(base.loop, steps=61_035, global_batch=4096),
    )


def videomae_b16() -> RunConfig:
    """The baseline VideoMAE, ViT-B/16: 90 % of 16 frames hidden as tubes, normalised pixels rebuilt by a light decoder."""
    # 800 epochs of Kinetics-400's 240,000 clips in batches of 1,024: lr 1.5e-4 x 1,024 / 256, 40 epochs of warm-up.
    video = student_tower(width=768, depth=12, num_heads=12, num_frames=16, tubelet_size=2)
    return RunConfig(
        recipe="videomae-b16",
        start=student(video),
        objective=PixelReconstructionConfig(),
        data=DataConfig(num_frames=16, crop_scale=(0.44, 1.0), flip=True, workers=8),
        optim=OptimConfig(lr=6e-4, lr_end=1e-5, warmup_steps=40 * 235, weight_decay=0.05, betas=(0.9, 0.95)),
        loop=LoopConfig(steps=800 * 235, global_batch=1024),
    )
