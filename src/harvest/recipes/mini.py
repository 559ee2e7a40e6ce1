"""Runs in the mini-world, minutes long on two CPU cores."""

from __future__ import annotations

import dataclasses

from harvest.config import LoopConfig, ObjectiveConfig, RunConfig, StartConfig, TuningConfig
from harvest.data.dataset import DataConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.interfaces import Fit
from harvest.model.alignment import student_tower
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig
from harvest.objectives.answer_decoding import AnswerDecodingConfig
from harvest.objectives.classification import ClassificationConfig
from harvest.objectives.detection import DetectionConfig
from harvest.objectives.embedding_alignment import EmbeddingAlignmentConfig
from harvest.objectives.image_text import ImageTextConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoiceConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnsweringConfig
from harvest.objectives.text_tuning import TextTuningConfig
from harvest.recipes.umt import student
from harvest.training.optim import OptimConfig
from harvest.training.vary import VaryConfig


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
            selector="motion",
            random_ratio=0.4,
            text_mask_ratio=0.3,
            masked_words_ratio=0.5,
            cache_texts=True,
            text_bank=1024,
            # The image model's text tower hardly tells "A, then B" from "B, then A".
            text_tuning=TextTuningConfig(steps=200, captions=64, lr=1e-3, blocks=3),
            hard_negatives=2,
            hard_rules=("direction", "order", "action"),
        ),
        data=DataConfig(train="mini-world", num_frames=8, cache="memory"),
        world=MiniWorldConfig(seed=0, train=15_000),
        optim=OptimConfig(
            lr=1.5e-3,
            lr_end=1e-3,  # the last stage brings it to 0
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
        loop=LoopConfig(steps=800, global_batch=128, save_every=500),
        tuning=TuningConfig(steps=250, drop_ratio=0.6, selector="random", lr=1e-3),
    )


def mini_adapt() -> RunConfig:
    """The mini-world's clips without their captions: the image model's embeddings from a few tubelets, in minutes."""
    base = mini_harvest()
    return dataclasses.replace(
        base,
        recipe="mini-adapt",
        start=dataclasses.replace(base.start, fusion=None),
        objective=EmbeddingAlignmentConfig(),
        data=dataclasses.replace(base.data, times="middle"),
        vary=VaryConfig(budgets=(13, 26, 51)),
        optim=dataclasses.replace(base.optim, lr=5e-4, lr_end=0.0, lr_factors={"time_positions": 10.0}),
        loop=dataclasses.replace(base.loop, steps=2000),
        tuning=TuningConfig(steps=0),
    )


def mini_umt_stage1() -> RunConfig:
    """UMT stage 1 in the mini-world: a tower from scratch taught by the mini-world's image model, in minutes."""
    video = student_tower(width=128, depth=4, num_heads=4, image_size=64, patch_size=8, tubelet_size=2)
    return RunConfig(
        recipe="mini-umt-stage1",
        start=student(video),
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
        optim=dataclasses.replace(base.optim, lr=5e-4, lr_end=0.0, lr_factors={"log_scale": 10.0}),
        loop=dataclasses.replace(base.loop, steps=500, global_batch=128),
        tuning=TuningConfig(steps=60, drop_ratio=0.0, selector="random", lr=1e-4),
    )


def _mini_ft(
    name: str,
    objective: ObjectiveConfig,
    train: str,
    *,
    world: MiniWorldConfig,
    fit: Fit = "crop",
) -> RunConfig:
    """About a minute of fine-tuning on one CPU core, from the demo's model."""
    base = mini_harvest()
    return dataclasses.replace(
        base,
        recipe=name,
        start=StartConfig(model="runs/demo/model"),
        objective=objective,
        data=DataConfig(train=f"mini-world/{train}", num_frames=8, cache="memory", fit=fit),
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
    world = MiniWorldConfig(seed=3, train=3000, questions=1)
    base = _mini_ft("mini-ft-boxes", objective, "acting", world=world, fit="squash")
    return dataclasses.replace(base, loop=dataclasses.replace(base.loop, global_batch=32))
