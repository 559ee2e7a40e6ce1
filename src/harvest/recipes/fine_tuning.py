"""Fine-tuning for one task: the values of UMT's scripts; docs/tasks.md says what they start from."""

from __future__ import annotations

import dataclasses

from harvest.config import LoopConfig, ObjectiveConfig, RunConfig, StartConfig
from harvest.data.dataset import DataConfig
from harvest.objectives.answer_decoding import AnswerDecodingConfig
from harvest.objectives.classification import ClassificationConfig
from harvest.objectives.detection import DetectionConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoiceConfig
from harvest.objectives.question_answering import QuestionAnsweringConfig
from harvest.training.optim import OptimConfig

_MATCHED = MultimodalConfig(
    drop_ratio=0.0, image_drop_ratio=0.0, alignment_weight=0.0, masked_words_weight=0.0, drop_path=0.2
)
"""Contrastive and matching, everything seen: UMT's fine-tuning for retrieval."""


def umt_ft_msrvtt_b16() -> RunConfig:
    """MSR-VTT retrieval fine-tuned from UMT stage 2: contrastive and matching, everything seen; 12 frames, 10 epochs."""
    # UMT's B/16 of 25M pairs: 180,000 captions in steps of 256 are 703 an epoch, the first of them warm-up.
    return RunConfig(
        recipe="umt-ft-msrvtt-b16",
        start=StartConfig(model="runs/umt-stage2-b16"),
        objective=_MATCHED,
        data=DataConfig(num_frames=12, crop_scale=(0.5, 1.0), flip=True, workers=8),
        optim=OptimConfig(lr=1e-5, lr_end=1e-7, warmup_steps=703, weight_decay=0.02, betas=(0.9, 0.999)),
        loop=LoopConfig(steps=7031, global_batch=256, checkpointing=True),
    )


def umt_ft_msrvtt_l16() -> RunConfig:
    """MSR-VTT retrieval fine-tuned from UMT stage 2 of ViT-L/16: 7 epochs."""
    base = umt_ft_msrvtt_b16()
    return dataclasses.replace(
        base,
        recipe="umt-ft-msrvtt-l16",
        start=dataclasses.replace(base.start, model="runs/umt-stage2-l16"),
        objective=dataclasses.replace(_MATCHED, drop_path=0.3),
        optim=dataclasses.replace(base.optim, lr=2e-5, lr_end=2e-7),
        loop=dataclasses.replace(base.loop, steps=7 * 703),
    )


def umt_ft_msrvtt_mc_b16() -> RunConfig:
    """MSRVTT-MC from UMT stage 2: it has no training set, so contrastive and matching on captions of MSR-VTT; 3 epochs."""
    # UMT's B/16 of 25M pairs: lr 8e-5, no warm-up. Its test clips are those of the full split, so that the captions are
    # of the training split of 7,010 videos: 140,200 in steps of 256 are 548 an epoch.
    base = umt_ft_msrvtt_b16()
    return dataclasses.replace(
        base,
        recipe="umt-ft-msrvtt-mc-b16",
        optim=dataclasses.replace(base.optim, lr=8e-5, lr_end=8e-7, warmup_steps=0),
        loop=dataclasses.replace(base.loop, steps=3 * 548),
    )


def umt_ft_msrvtt_mc_l16() -> RunConfig:
    """MSRVTT-MC from UMT stage 2 of ViT-L/16: 5 epochs."""
    base = umt_ft_msrvtt_mc_b16()
    return dataclasses.replace(
        base,
        recipe="umt-ft-msrvtt-mc-l16",
        start=StartConfig(model="runs/umt-stage2-l16"),
        objective=dataclasses.replace(_MATCHED, drop_path=0.3),
        optim=dataclasses.replace(base.optim, lr=4e-5, lr_end=4e-7),
        loop=dataclasses.replace(base.loop, steps=5 * 548),
    )


def umt_ft_msrvtt_qa_b16() -> RunConfig:
    """MSRVTT-QA from UMT stage 2: a decoder learns to say the answer, the official ones are ranked; 12 frames, 8 epochs."""
    # 158,581 questions in steps of 256 are 619 an epoch, the first of them warm-up. Values of 17M pairs: UMT's file for
    # B/16 of 25M holds those of an L/16.
    base = umt_ft_msrvtt_b16()
    return dataclasses.replace(
        base,
        recipe="umt-ft-msrvtt-qa-b16",
        objective=AnswerDecodingConfig(drop_path=0.2),
        optim=dataclasses.replace(base.optim, lr=2e-5, lr_end=2e-7, warmup_steps=619),
        loop=dataclasses.replace(base.loop, steps=8 * 619),
    )


def umt_ft_msrvtt_qa_l16() -> RunConfig:
    """MSRVTT-QA from UMT stage 2 of ViT-L/16: 5 epochs."""
    base = umt_ft_msrvtt_qa_b16()
    return dataclasses.replace(
        base,
        recipe="umt-ft-msrvtt-qa-l16",
        start=StartConfig(model="runs/umt-stage2-l16"),
        objective=AnswerDecodingConfig(drop_path=0.4),
        optim=dataclasses.replace(base.optim, lr=4e-5, lr_end=4e-7),
        loop=dataclasses.replace(base.loop, steps=5 * 619),
    )


def _large(
    base: RunConfig,
    name: str,
    start: str,
    objective: ObjectiveConfig,
    *,
    lr: float,
    steps: int,
    warmup: int,
) -> RunConfig:
    """ViT-L/16's values of a fine-tuning of ViT-B/16: slower early blocks, more of them left out."""
    return dataclasses.replace(
        base,
        recipe=name,
        start=dataclasses.replace(base.start, model=start),
        objective=objective,
        optim=dataclasses.replace(base.optim, lr=lr, warmup_steps=warmup, layer_decay=0.85),
        loop=dataclasses.replace(base.loop, steps=steps, checkpointing=True),
    )


def ft_k710_b16() -> RunConfig:
    """Kinetics-710 fine-tuned from UMT stage 1, ViT-B/16 at 8 frames: 35 epochs; what the other Kinetics start from."""
    base = ft_k400_b16()
    return dataclasses.replace(
        base,
        recipe="ft-k710-b16",
        start=dataclasses.replace(base.start, model="runs/umt-stage1-b16"),
        optim=dataclasses.replace(
            base.optim, lr=4e-4, warmup_steps=2 * 2570
        ),  # 658,000 clips in steps of 256
        loop=dataclasses.replace(base.loop, steps=35 * 2570),
    )


def ft_k710_l16() -> RunConfig:
    """Kinetics-710 fine-tuned from UMT stage 1, ViT-L/16 at 8 frames: 20 epochs."""
    return _large(
        ft_k710_b16(),
        "ft-k710-l16",
        "runs/umt-stage1-l16",
        ClassificationConfig(drop_path=0.2),
        lr=2e-4,
        steps=20 * 2570,
        warmup=2 * 2570,
    )


def ft_k400_b16() -> RunConfig:
    """Kinetics-400 fine-tuned, ViT-B/16 at 8 frames, from UMT's K710 model: 5 epochs; tested with 4 clips x 3 crops."""
    # 240,000 clips in steps of 256, each seen twice, are 938 steps an epoch; lr 2e-5 and 1e-6 x 512 / 256.
    return RunConfig(
        recipe="ft-k400-b16",
        start=StartConfig(model="runs/ft-k710-b16", fusion=None),
        objective=ClassificationConfig(),
        data=DataConfig(
            num_frames=8, crop_scale=(0.08, 1.0), flip=True, rand_augment=4, views_per_clip=2, workers=8
        ),
        optim=OptimConfig(
            lr=4e-5,
            lr_end=2e-6,
            warmup_steps=938,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            layer_decay=0.75,
        ),
        loop=LoopConfig(steps=5 * 938, global_batch=512),
    )


def ft_k400_l16() -> RunConfig:
    """Kinetics-400 fine-tuned, ViT-L/16 at 8 frames, from UMT's K710 model: 5 epochs; 4 clips x 3 crops."""
    return _large(
        ft_k400_b16(),
        "ft-k400-l16",
        "runs/ft-k710-l16",
        ClassificationConfig(drop_path=0.2),
        lr=2e-5,
        steps=5 * 938,
        warmup=938,
    )


def ft_ssv2_b16() -> RunConfig:
    """Something-Something V2 fine-tuned, ViT-B/16 at 8 frames, from UMT stage 1: 30 epochs; 2 clips x 3 crops."""
    base = ft_k400_b16()
    return dataclasses.replace(
        base,
        recipe="ft-ssv2-b16",
        start=dataclasses.replace(base.start, model="runs/umt-stage1-b16"),
        data=dataclasses.replace(base.data, flip=False),  # its classes say left and right
        optim=dataclasses.replace(base.optim, lr=4e-4, warmup_steps=5 * 660),
        loop=dataclasses.replace(base.loop, steps=30 * 660),
    )


def ft_ssv2_l16() -> RunConfig:
    """Something-Something V2 fine-tuned, ViT-L/16 at 8 frames, from UMT stage 1: 14 epochs; 2 clips x 3 crops."""
    return _large(
        ft_ssv2_b16(),
        "ft-ssv2-l16",
        "runs/umt-stage1-l16",
        ClassificationConfig(drop_path=0.2),
        lr=8e-4,
        steps=14 * 660,
        warmup=4 * 660,
    )


def ft_msrvtt_b16() -> RunConfig:
    """MSR-VTT retrieval fine-tuned from a Harvest model: contrastive and matching, everything seen, both towers trained."""
    # UMT's schedule (B/16, 17M): 10 epochs of 180,000 captions in steps of 256 are 7,031, lr 2e-5 to 2e-7, no warm-up.
    return RunConfig(
        recipe="ft-msrvtt-b16",
        start=StartConfig(model="runs/harvest-b16"),
        objective=_MATCHED,
        data=DataConfig(num_frames=8, crop_scale=(0.5, 1.0), flip=True, workers=8),
        optim=OptimConfig(lr=2e-5, lr_end=2e-7, warmup_steps=0, weight_decay=0.02, betas=(0.9, 0.999)),
        loop=LoopConfig(steps=7031, global_batch=256),
    )


def ft_msrvtt_qa_b16() -> RunConfig:
    """MSRVTT-QA fine-tuned from a Harvest model: a head of the official answers behind the fusion decoder."""
    # CoTrain's: 20 epochs of 158,581 questions in steps of 512 are 6,200, lr 1e-5, ten times that for the head.
    return RunConfig(
        recipe="ft-msrvtt-qa-b16",
        start=StartConfig(model="runs/harvest-b16"),
        objective=QuestionAnsweringConfig(),
        data=DataConfig(num_frames=8, crop_scale=(0.5, 1.0), flip=True, workers=8),
        optim=OptimConfig(
            lr=1e-5, warmup_steps=620, weight_decay=0.02, betas=(0.9, 0.999), lr_factors={"head.": 10.0}
        ),
        loop=LoopConfig(steps=6200, global_batch=512),
    )


def ft_msrvtt_qa_l14() -> RunConfig:
    """MSRVTT-QA fine-tuned from a Harvest model of CLIP ViT-L/14, on CoTrain's schedule."""
    base = ft_msrvtt_qa_b16()
    return dataclasses.replace(
        base,
        recipe="ft-msrvtt-qa-l14",
        start=StartConfig(model="runs/harvest-l14"),
        loop=dataclasses.replace(base.loop, checkpointing=True),
    )


def ft_choice_b16() -> RunConfig:
    """Multiple choice fine-tuned from a Harvest model on questions with options (TGIF-QA action or transition)."""
    # UMT's schedule of MSRVTT-MC (B/16, 17M): lr 2e-5 to 2e-7, 5 epochs; of TGIF's 20,475 action questions in steps of
    # 256 these are 400.
    return RunConfig(
        recipe="ft-choice-b16",
        start=StartConfig(model="runs/harvest-b16"),
        objective=MultipleChoiceConfig(drop_path=0.2),
        data=DataConfig(num_frames=8, captions_per_clip=0, crop_scale=(0.5, 1.0), workers=8),
        optim=OptimConfig(lr=2e-5, lr_end=2e-7, warmup_steps=0, weight_decay=0.02, betas=(0.9, 0.999)),
        loop=LoopConfig(steps=400, global_batch=256),
    )


def ft_choice_l14() -> RunConfig:
    """Multiple choice fine-tuned from a Harvest model of CLIP ViT-L/14: the values of UMT's L/16."""
    base = ft_choice_b16()
    return dataclasses.replace(
        base,
        recipe="ft-choice-l14",
        start=StartConfig(model="runs/harvest-l14"),
        objective=MultipleChoiceConfig(drop_path=0.3),
        optim=dataclasses.replace(base.optim, lr=4e-5, lr_end=4e-7),
        loop=dataclasses.replace(base.loop, checkpointing=True),
    )


def ft_ava_b16() -> RunConfig:
    """AVA 2.2 action detection, ViT-B/16 at 8 frames, from UMT's K710 model: 30 epochs on annotated boxes."""
    # 184,000 pictures with boxes in steps of 128 are 1,438 an epoch; lr 2.5e-4.
    return RunConfig(
        recipe="ft-ava-b16",
        start=StartConfig(model="runs/ft-k710-b16", fusion=None),
        objective=DetectionConfig(),
        data=DataConfig(num_frames=8, fit="squash", workers=8),
        optim=OptimConfig(
            lr=2.5e-4,
            lr_end=1e-6,
            warmup_steps=5 * 1438,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            layer_decay=0.75,
        ),
        loop=LoopConfig(steps=30 * 1438, global_batch=128),
    )


def ft_ava_l16() -> RunConfig:
    """AVA 2.2 action detection, ViT-L/16 at 8 frames, from UMT's K710 model: 25 epochs, in fp32 as UMT's."""
    base = _large(
        ft_ava_b16(),
        "ft-ava-l16",
        "runs/ft-k710-l16",
        DetectionConfig(drop_path=0.4),
        lr=2.5e-4,
        steps=25 * 1438,
        warmup=5 * 1438,
    )
    return dataclasses.replace(base, loop=dataclasses.replace(base.loop, precision="fp32"))
