"""The runs that Harvest knows: one function each, returning the whole configuration, and its tiny twin.

`harvest recipes` lists them; `harvest train NAME --optim.lr 1e-5 …` overrides any leaf. A tiny twin is the same
recipe at a size that two CPU cores train in under a minute; the tests run them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from harvest.config import LoopConfig, ObjectiveConfig, RunConfig, StartConfig, TuningConfig
from harvest.data.dataset import DataConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.model.alignment import student_tower
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig
from harvest.objectives.answer_decoding import AnswerDecodingConfig
from harvest.objectives.classification import ClassificationConfig
from harvest.objectives.detection import DetectionConfig
from harvest.objectives.image_text import ImageTextConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoiceConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnsweringConfig
from harvest.training.optim import OptimConfig


def mini_image() -> RunConfig:
    """The mini-world's image-text model, from scratch on stills: what the demo starts from."""
    return RunConfig(
        recipe="mini-image",
        start=StartConfig(
            model="scratch",
            scratch=ModelConfig(
                video=VideoEncoderConfig(
                    image_size=64,
                    patch_size=8,
                    num_frames=1,
                    width=128,
                    depth=4,
                    num_heads=4,
                    mlp_width=512,
                    embed_dim=128,
                    activation="gelu",
                ),
                text=TextEncoderConfig(
                    vocab_size=768,
                    context_length=32,
                    width=128,
                    depth=3,
                    num_heads=4,
                    mlp_width=512,
                    embed_dim=128,
                    activation="gelu",
                    start_id=0,
                    end_id=1,
                    pad_id=2,
                ),
            ),
        ),
        objective=ImageTextConfig(drop_ratio=0.5, paraphrase_weight=1.0, paraphrase_temperature=0.07),
        data=DataConfig(
            train="mini-world/stills", num_frames=1, times="middle", captions_per_clip=2, cache="memory"
        ),
        world=MiniWorldConfig(seed=1001, train=30_000),
        optim=OptimConfig(
            lr=1e-3, warmup_steps=100, weight_decay=0.05, max_grad_norm=1.0, lr_factors={"log_scale": 10.0}
        ),
        loop=LoopConfig(steps=1500, global_batch=256, save_every=250),
    )


def mini_harvest() -> RunConfig:
    """Harvest in the mini-world, in minutes on two CPU cores: the run of `harvest demo`."""
    return RunConfig(
        recipe="mini-harvest",
        start=StartConfig(
            model="mini-image",
            tubelet_size=2,
            time_positions="gated",
            fusion=FusionConfig(depth=2, num_heads=4),
        ),
        objective=PostPretrainingConfig(
            selector="motion", text_mask_ratio=0.3, masked_words_ratio=0.5, cache_texts=True, text_bank=1024
        ),
        data=DataConfig(train="mini-world", num_frames=8, cache="memory"),
        world=MiniWorldConfig(seed=0, train=15_000),
        optim=OptimConfig(
            lr=1.5e-3,
            warmup_steps=50,
            weight_decay=0.05,
            max_grad_norm=1.0,
            # What CLIP brings ready-made has to grow here in minutes: the temperature, and where and when things are.
            lr_factors={
                "log_scale": 10.0,
                "time_positions": 130.0,
                "place_positions": 10.0,
                "patches": 4.0,
                "fusion": 0.67,
            },
        ),
        loop=LoopConfig(steps=1300, global_batch=128, save_every=500),
        tuning=TuningConfig(steps=100, drop_ratio=0.6, selector="random", lr=5e-4),
    )


def harvest_b16() -> RunConfig:
    """The paper's recipe, CLIP ViT-B/16 on WebVid: 8 frames, 224, 90 % dropped, text frozen, 8 x 128 clips."""
    # Values and the strength of their evidence: docs/method.md. 104,000 steps of 1,024 are ten epochs of WebVid-10M.
    return RunConfig(
        recipe="harvest-b16",
        start=StartConfig(model="openai/clip-vit-base-patch16"),
        objective=PostPretrainingConfig(),
        data=DataConfig(num_frames=8, crop_scale=(0.5, 1.0), flip=True, workers=8),
        optim=OptimConfig(
            lr=1e-5, warmup_steps=4000, weight_decay=0.2, betas=(0.9, 0.98), lr_factors={"fusion": 10.0}
        ),
        loop=LoopConfig(steps=104_000, global_batch=1024),
        tuning=TuningConfig(steps=5200, drop_ratio=0.0, lr=1e-7, global_batch=256),
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


def _student(video: VideoEncoderConfig) -> StartConfig:
    """A video tower from scratch, without a text tower."""
    return StartConfig(model="scratch", fusion=None, scratch=ModelConfig(video=video, text=None))


def umt_stage1_b16() -> RunConfig:
    """UMT stage 1, ViT-B/16 from scratch taught by CLIP-B/16: 8 frames, 224, 80 % hidden, 200 epochs of K710."""
    # 658,000 clips in batches of 2,048 are 321 steps an epoch; 40 epochs of warm-up; lr 1.5e-4 and 1e-5 x 2,048 / 256.
    return RunConfig(
        recipe="umt-stage1-b16",
        start=_student(student_tower(width=768, depth=12, num_heads=12)),
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
        start=_student(student_tower(width=1024, depth=24, num_heads=16)),
        objective=MaskedAlignmentConfig(
            teacher="openai/clip-vit-large-patch14", teacher_image_size=196, drop_path=0.2
        ),
    )


def videomae_b16() -> RunConfig:
    """The baseline VideoMAE, ViT-B/16: 90 % of 16 frames hidden as tubes, normalised pixels rebuilt by a light decoder."""
    # 800 epochs of Kinetics-400's 240,000 clips in batches of 1,024: lr 1.5e-4 x 1,024 / 256, 40 epochs of warm-up.
    video = student_tower(width=768, depth=12, num_heads=12, num_frames=16, tubelet_size=2)
    return RunConfig(
        recipe="videomae-b16",
        start=_student(video),
        objective=PixelReconstructionConfig(),
        data=DataConfig(num_frames=16, crop_scale=(0.44, 1.0), flip=True, workers=8),
        optim=OptimConfig(lr=6e-4, lr_end=1e-5, warmup_steps=40 * 235, weight_decay=0.05, betas=(0.9, 0.95)),
        loop=LoopConfig(steps=800 * 235, global_batch=1024),
    )


def mini_videomae() -> RunConfig:
    """Pixel reconstruction in the mini-world: what `mini-umt-stage1` is compared with."""
    return dataclasses.replace(
        mini_umt_stage1(),
        recipe="mini-videomae",
        objective=PixelReconstructionConfig(decoder_width=64, decoder_depth=2, decoder_heads=2),
    )


# A part of a clip pasted into another would show two motions.
_MINI_ACTIONS = ClassificationConfig(
    selector="motion", drop_ratio=0.75, mixup=0.0, cutmix=0.0, random_erasing=0.0, drop_path=0.0
)


def mini_actions() -> RunConfig:
    """Action labels of the mini-world: from scratch, or fine-tuned with --start.model runs/mini-umt-stage1."""
    base = mini_umt_stage1()
    return dataclasses.replace(
        base,
        recipe="mini-actions",
        objective=_MINI_ACTIONS,
        data=DataConfig(train="mini-world/actions", num_frames=8, cache="memory"),
        world=MiniWorldConfig(seed=2, train=1, retrieval=1, questions=4000),
        optim=dataclasses.replace(base.optim, lr=1e-3),
        loop=dataclasses.replace(base.loop, steps=500),
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


def mini_umt_stage1() -> RunConfig:
    """UMT stage 1 in the mini-world: a tower from scratch taught by the mini-world's image model, in minutes."""
    video = student_tower(width=128, depth=4, num_heads=4, image_size=64, patch_size=8, tubelet_size=2)
    return RunConfig(
        recipe="mini-umt-stage1",
        start=_student(video),
        objective=MaskedAlignmentConfig(teacher="mini-image", num_layers=2, drop_path=0.0),
        data=DataConfig(train="mini-world", num_frames=8, cache="memory"),
        world=MiniWorldConfig(seed=0, train=15_000),
        optim=OptimConfig(
            lr=1.5e-3, warmup_steps=50, weight_decay=0.05, betas=(0.9, 0.95), max_grad_norm=1.0
        ),
        loop=LoopConfig(steps=1300, global_batch=128, save_every=500),
    )


def mini_umt_stage2() -> RunConfig:
    """UMT stage 2 in the mini-world, from `mini-umt-stage1`, with the image model's text tower and stills mixed in."""
    base = mini_umt_stage1()
    return dataclasses.replace(
        base,
        recipe="mini-umt-stage2",
        start=StartConfig(
            model="runs/mini-umt-stage1",
            text="mini-image",
            fusion=FusionConfig(depth=2, num_heads=4, matches=True),
        ),
        objective=MultimodalConfig(teacher="mini-image", num_layers=2, drop_path=0.0),
        data=dataclasses.replace(base.data, images="mini-world/stills"),
        optim=dataclasses.replace(
            base.optim, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98), lr_factors={"log_scale": 10.0}
        ),
    )


def mini_umt_qa() -> RunConfig:
    """Questions about the mini-world answered by a decoder, from `mini-umt-stage2`; its answers are then ranked."""
    base = mini_umt_stage1()
    return dataclasses.replace(
        base,
        recipe="mini-umt-qa",
        start=StartConfig(model="runs/mini-umt-stage2"),
        objective=AnswerDecodingConfig(drop_path=0.0),
        data=DataConfig(train="mini-world/questions", num_frames=8, cache="memory"),
        world=MiniWorldConfig(seed=1, train=1, retrieval=1, questions=4000),
        optim=dataclasses.replace(base.optim, lr=5e-4, weight_decay=0.02, betas=(0.9, 0.98)),
        loop=dataclasses.replace(base.loop, steps=500),
    )


def mini_ft_retrieval() -> RunConfig:
    """Search in the mini-world fine-tuned, contrastive and matching, from the demo's model; results can be re-ranked."""
    base = mini_harvest()
    return dataclasses.replace(
        base,
        recipe="mini-ft-retrieval",
        start=StartConfig(model="runs/demo/model"),
        objective=MultimodalConfig(
            selector="motion",
            drop_ratio=0.5,
            image_drop_ratio=0.0,
            alignment_weight=0.0,
            masked_words_weight=0.0,
            drop_path=0.0,
        ),
        optim=dataclasses.replace(base.optim, lr=5e-4, lr_factors={"log_scale": 10.0}),
        loop=dataclasses.replace(base.loop, steps=500, global_batch=128),
        tuning=TuningConfig(steps=60, drop_ratio=0.0, selector="random", lr=1e-4),
    )


def _mini_ft(name: str, objective: ObjectiveConfig, train: str, *, world: MiniWorldConfig) -> RunConfig:
    """About a minute of fine-tuning on one CPU core, from the demo's model."""
    base = mini_harvest()
    return dataclasses.replace(
        base,
        recipe=name,
        start=StartConfig(model="runs/demo/model"),
        objective=objective,
        data=DataConfig(train=f"mini-world/{train}", num_frames=8, cache="memory"),
        world=world,
        optim=OptimConfig(
            lr=3e-4, warmup_steps=10, weight_decay=0.02, max_grad_norm=1.0, lr_factors={"head.": 10.0}
        ),
        loop=LoopConfig(steps=150, global_batch=64),
        tuning=TuningConfig(),
    )


_MINI_QUESTIONS = MiniWorldConfig(seed=3, train=1, retrieval=1, questions=3000)


def mini_ft_actions() -> RunConfig:
    """Action labels of the mini-world, fine-tuned from the demo's model."""
    return _mini_ft("mini-ft-actions", _MINI_ACTIONS, "actions", world=_MINI_QUESTIONS)


def mini_ft_qa() -> RunConfig:
    """Questions about the mini-world answered by a head, fine-tuned from the demo's model."""
    objective = QuestionAnsweringConfig(selector="motion", drop_ratio=0.75, head_dropout=0.1)
    return _mini_ft("mini-ft-qa", objective, "questions", world=_MINI_QUESTIONS)


def mini_ft_choice() -> RunConfig:
    """Which of four motions, fine-tuned on questions with options from the demo's model."""
    base = _mini_ft(
        "mini-ft-choice",
        MultipleChoiceConfig(drop_ratio=0.0),
        "motion_choice",
        world=_MINI_QUESTIONS,
    )
    return dataclasses.replace(base, data=dataclasses.replace(base.data, captions_per_clip=0))


def mini_ft_boxes() -> RunConfig:
    """Who does what where in the mini-world: a head on regions, fine-tuned from the demo's model."""
    objective = DetectionConfig(drop_path=0.0, flip=False)
    base = _mini_ft(
        "mini-ft-boxes", objective, "acting", world=MiniWorldConfig(seed=3, train=3000, questions=1)
    )
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, crop="squash"),
        loop=dataclasses.replace(base.loop, global_batch=32),
    )


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


# ---- fine-tuning: the values of UMT's scripts, docs/tasks.md says what they start from ---------------------------


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


def _large(base: RunConfig, name: str, start: str, *, lr: float, steps: int, warmup: int) -> RunConfig:
    """ViT-L/16's values of a fine-tuning of ViT-B/16: slower early blocks, more of them left out."""
    assert isinstance(base.objective, ClassificationConfig | DetectionConfig)
    drop_path = 0.4 if isinstance(base.objective, DetectionConfig) else 0.2
    return dataclasses.replace(
        base,
        recipe=name,
        start=dataclasses.replace(base.start, model=start),
        objective=dataclasses.replace(base.objective, drop_path=drop_path),
        optim=dataclasses.replace(base.optim, lr=lr, warmup_steps=warmup, layer_decay=0.85),
        loop=dataclasses.replace(base.loop, steps=steps, checkpointing=True),
    )


def ft_k710_l16() -> RunConfig:
    """Kinetics-710 fine-tuned from UMT stage 1, ViT-L/16 at 8 frames: 20 epochs."""
    return _large(
        ft_k710_b16(), "ft-k710-l16", "runs/umt-stage1-l16", lr=2e-4, steps=20 * 2570, warmup=2 * 2570
    )


def ft_k400_l16() -> RunConfig:
    """Kinetics-400 fine-tuned, ViT-L/16 at 8 frames, from UMT's K710 model: 5 epochs; 4 clips x 3 crops."""
    return _large(ft_k400_b16(), "ft-k400-l16", "runs/ft-k710-l16", lr=2e-5, steps=5 * 938, warmup=938)


def ft_ssv2_l16() -> RunConfig:
    """Something-Something V2 fine-tuned, ViT-L/16 at 8 frames, from UMT stage 1: 14 epochs; 2 clips x 3 crops."""
    return _large(
        ft_ssv2_b16(), "ft-ssv2-l16", "runs/umt-stage1-l16", lr=8e-4, steps=14 * 660, warmup=4 * 660
    )


def ft_ava_l16() -> RunConfig:
    """AVA 2.2 action detection, ViT-L/16 at 8 frames, from UMT's K710 model: 25 epochs, in fp32 as UMT's."""
    base = _large(ft_ava_b16(), "ft-ava-l16", "runs/ft-k710-l16", lr=2.5e-4, steps=25 * 1438, warmup=5 * 1438)
    return dataclasses.replace(base, loop=dataclasses.replace(base.loop, precision="fp32"))


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


def ft_msrvtt_qa_l14() -> RunConfig:
    """MSRVTT-QA fine-tuned from a Harvest model of CLIP ViT-L/14, on CoTrain's schedule."""
    base = ft_msrvtt_qa_b16()
    return dataclasses.replace(
        base,
        recipe="ft-msrvtt-qa-l14",
        start=StartConfig(model="runs/harvest-l14"),
        loop=dataclasses.replace(base.loop, checkpointing=True),
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
        data=DataConfig(num_frames=8, crop="squash", workers=8),
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


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "mini-image": mini_image,
    "mini-harvest": mini_harvest,
    "harvest-b16": harvest_b16,
    "harvest-l14": harvest_l14,
    "umt-stage1-b16": umt_stage1_b16,
    "umt-stage1-l16": umt_stage1_l16,
    "umt-stage2-b16": umt_stage2_b16,
    "umt-stage2-l16": umt_stage2_l16,
    "mini-umt-stage1": mini_umt_stage1,
    "mini-umt-stage2": mini_umt_stage2,
    "mini-ft-retrieval": mini_ft_retrieval,
    "mini-ft-actions": mini_ft_actions,
    "mini-ft-qa": mini_ft_qa,
    "mini-ft-choice": mini_ft_choice,
    "mini-ft-boxes": mini_ft_boxes,
    "mini-umt-qa": mini_umt_qa,
    "mini-videomae": mini_videomae,
    "mini-actions": mini_actions,
    "videomae-b16": videomae_b16,
    "umt-ft-msrvtt-b16": umt_ft_msrvtt_b16,
    "ft-k710-b16": ft_k710_b16,
    "ft-k400-b16": ft_k400_b16,
    "ft-ssv2-b16": ft_ssv2_b16,
    "ft-msrvtt-b16": ft_msrvtt_b16,
    "ft-msrvtt-qa-b16": ft_msrvtt_qa_b16,
    "ft-choice-b16": ft_choice_b16,
    "ft-ava-b16": ft_ava_b16,
    "ft-msrvtt-qa-l14": ft_msrvtt_qa_l14,
    "ft-choice-l14": ft_choice_l14,
    "umt-ft-msrvtt-l16": umt_ft_msrvtt_l16,
    "umt-ft-msrvtt-qa-b16": umt_ft_msrvtt_qa_b16,
    "umt-ft-msrvtt-qa-l16": umt_ft_msrvtt_qa_l16,
    "umt-ft-msrvtt-mc-b16": umt_ft_msrvtt_mc_b16,
    "umt-ft-msrvtt-mc-l16": umt_ft_msrvtt_mc_l16,
    "ft-k710-l16": ft_k710_l16,
    "ft-k400-l16": ft_k400_l16,
    "ft-ssv2-l16": ft_ssv2_l16,
    "ft-ava-l16": ft_ava_l16,
}


def _small_student(start: StartConfig) -> StartConfig:
    """A tower from scratch at the size of a twin; other starts as they are."""
    sizes = start.scratch
    if sizes is None or sizes.text is not None or sizes.video.width <= 128:
        return start
    old = sizes.video
    video = student_tower(
        width=64,
        depth=3,
        num_heads=2,
        image_size=64,
        patch_size=8,
        num_frames=old.num_frames,
        tubelet_size=old.tubelet_size,
    )
    return dataclasses.replace(start, scratch=dataclasses.replace(sizes, video=video))


_TINY_BERT = TextEncoderConfig(
    vocab_size=768,
    context_length=32,
    width=64,
    depth=1,
    num_heads=2,
    mlp_width=128,
    activation="gelu",
    norm_eps=1e-12,
    causal=False,
    norms="after",
    dropout=0.1,
    pooling="first",
    projection_bias=True,
    start_id=0,
    end_id=1,
    pad_id=2,
)


def tiny(name: str) -> RunConfig:
    """The tiny twin of a recipe: the same code path on a few generated clips, seconds long.

    Twins of recipes that start from CLIP, or are taught by it, take `mini-image` instead, so they need no download.
    Twins of UMT's second stage go on from a twin of its first, with words from scratch in the layout of BERT.
    """
    config = RECIPES[name]()
    if isinstance(config.objective, MaskedAlignmentConfig):
        start = config.start
        if isinstance(config.objective, MultimodalConfig):
            start = dataclasses.replace(start, model="runs/umt-stage1-b16", embed_dim=128)
            if start.text != "mini-image":
                fusion = FusionConfig(layout="bert", tied_words=True, matches=True)
                start = dataclasses.replace(start, text="scratch", scratch_text=_TINY_BERT, fusion=fusion)
        config = dataclasses.replace(
            config,
            start=start,
            objective=dataclasses.replace(
                config.objective, teacher="mini-image", teacher_image_size=None, num_layers=2
            ),
        )
    if isinstance(config.objective, PixelReconstructionConfig):
        light = dataclasses.replace(config.objective, decoder_width=32, decoder_depth=1, decoder_heads=2)
        config = dataclasses.replace(config, objective=light)
    start = _small_student(config.start)
    if start.scratch is None and not isinstance(config.objective, MultimodalConfig):
        start = dataclasses.replace(start, model="mini-image")
    if start.fusion is not None:
        start = dataclasses.replace(start, fusion=dataclasses.replace(start.fusion, depth=1, num_heads=4))
    train = config.data.train if config.data.train.startswith("mini-world") else "mini-world"
    if isinstance(config.objective, (QuestionAnsweringConfig, AnswerDecodingConfig)):
        train = "mini-world/questions"
    elif isinstance(config.objective, MultipleChoiceConfig):
        train = "mini-world/motion_choice"
    elif isinstance(config.objective, DetectionConfig):
        train = "mini-world/acting"
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, flip=False))
    images = "mini-world/stills" if isinstance(config.objective, MultimodalConfig) else config.data.images
    return dataclasses.replace(
        config,
        start=start,
        data=dataclasses.replace(
            config.data,
            train=train,
            images=images,
            workers=0
            if name.startswith(("ft-", "umt-ft-"))
            else min(1, config.data.workers),  # one path with workers is enough
            flip=False,
        ),
        world=MiniWorldConfig(seed=7, train=96, retrieval=100, questions=20),
        optim=dataclasses.replace(config.optim, warmup_steps=2),
        loop=dataclasses.replace(
            config.loop, steps=6, global_batch=16, save_every=3, log_every=1, threads=1, checkpointing=False
        ),
        tuning=dataclasses.replace(config.tuning, steps=min(2, config.tuning.steps), global_batch=8),
    )
