"""The formulas of a step's work against the operations of real steps, counted by PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harvest.bench.plan import Probe, plan, sizes_of
from harvest.bench.step import model_config
from harvest.bench.work import OPTIONS, WORDS, gflop_of, teacher_of
from harvest.config import RunConfig
from harvest.interfaces import Box, Example, HarvestError
from harvest.model.answers import AnswerIds
from harvest.model.folder import save_model
from harvest.model.fusion import FusionConfig
from harvest.model.inflation import as_teacher
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import train_tokenizer
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.answer_decoding import AnswerDecoding, AnswerDecodingConfig
from harvest.objectives.classification import Classification, ClassificationConfig
from harvest.objectives.detection import Detection, DetectionConfig
from harvest.objectives.image_text import ImageTextConfig, ImageTextPretraining
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig
from harvest.objectives.pixel_reconstruction import PixelReconstruction, PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnswering, QuestionAnsweringConfig
from harvest.objectives.reach import random_batch
from harvest.recipes import RECIPES
from harvest.tokens import Selection, budget_of

CLIPS = 4
BERT = FusionConfig(2, 4, layout="bert", tied_words=True, matches=True)
DECODER = FusionConfig(2, 4, matches=True)
UMT: dict[str, Any] = {"teacher": "mini-image", "num_layers": 2, "drop_path": 0.0}


def sizes(fusion: FusionConfig | None, *, answers: bool = False) -> ModelConfig:
    """The mini-world's model; with the layout of BERT, a tower and words of different widths, as UMT joins them."""
    base = model_config("mini", frames=4)
    video, text = base.video, base.text_tower
    if fusion is not None and fusion.layout == "bert":
        video = dataclasses.replace(
            video, prefix="none", pooling="mean", pool_times=True, positions="sinusoid", pre_norm=False
        )
        text = TextEncoderConfig(
            **dataclasses.asdict(text)
            | {"width": 96, "mlp_width": 384, "causal": False, "norms": "after", "pooling": "first"}
            | {"mask_id": 3}
        )
    says = dataclasses.replace(fusion, matches=False) if fusion is not None and answers else None
    return ModelConfig(video, text, fusion, says)


def counted(objective: nn.Module, config: RunConfig, made: ModelConfig, *, captions: int = 1) -> float:
    """GFLOP of a clip in a whole step; by the plain products of attention, as the CPU's kernel is not counted."""
    batch = random_batch(made, CLIPS, WORDS, torch.device("cpu"))
    batch = batch._replace(text_ids=batch.text_ids.repeat(1, captions, 1), label=torch.arange(CLIPS) % 2)
    if isinstance(config.objective, QuestionAnsweringConfig):
        batch.text_ids[..., 5] = objective.model.mask_id
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch, 0).total.backward()
    return counter.get_total_flops() / CLIPS / 1e9


def made_of(config: Any, made: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    model = VideoTextModel(made)
    teacher = None
    if isinstance(config, MaskedAlignmentConfig) and (taught := teacher_of(config)) is not None:
        teacher = as_teacher(VideoTextModel(dataclasses.replace(taught, text=None, fusion=None)))
    match config:
        case MultimodalConfig():
            return Multimodal(config, model, teacher, seed=0)
        case MaskedAlignmentConfig():
            assert teacher is not None
            return MaskedAlignment(config, model, teacher, seed=0)
        case PostPretrainingConfig():
            return PostPretraining(config, model, seed=0)
        case ImageTextConfig():
            return ImageTextPretraining(config, model, seed=0)
        case QuestionAnsweringConfig():
            return QuestionAnswering(config, model, ("yes", "no"), seed=0)
        case AnswerDecodingConfig():
            ids = AnswerIds(torch.tensor([[0, 9, 8, 1], [0, 7, 9, 1]]), torch.ones(2, 4, dtype=torch.bool))
            return AnswerDecoding(config, model, ids, seed=0)
        case MultipleChoiceConfig():
            return MultipleChoice(config, model, seed=0)
        case PixelReconstructionConfig():
            return PixelReconstruction(config, model, seed=0)
        case ClassificationConfig():
            return Classification(config, model, ("a", "b"), seed=0)
        case _:
            clips = [Example(str(n), "a.mp4", boxes=(Box((0.1, 0.1, 0.9, 0.9), (0,)),)) for n in range(CLIPS)]
            return Detection(config, model, ("a", "b"), clips, seed=0)


@pytest.mark.parametrize(
    ("objective", "fusion"),
    [
        (PostPretrainingConfig(drop_ratio=0.5), DECODER),
        (PostPretrainingConfig(drop_ratio=0.5, text_tower="trained", masked_words_ratio=0.5), DECODER),
        (PostPretrainingConfig(drop_ratio=0.5, selector="attention", masked_words_weight=0.0), None),
        (ImageTextConfig(drop_ratio=0.5), None),
        (MaskedAlignmentConfig(**UMT), None),
        (MultimodalConfig(**UMT), BERT),
        (MultimodalConfig(**UMT), DECODER),
        (MultimodalConfig(**UMT | {"alignment_weight": 0.0, "masked_words_weight": 0.0}), BERT),
        (
            MultimodalConfig(**UMT | {"matching_weight": 0.0, "drop_ratio": 0.0, "image_drop_ratio": 0.0}),
            BERT,
        ),
        (QuestionAnsweringConfig(drop_ratio=0.5), DECODER),
        (QuestionAnsweringConfig(drop_ratio=0.5, text_tower="frozen"), DECODER),
        (QuestionAnsweringConfig(drop_ratio=0.5, text_tower="frozen"), BERT),
        (AnswerDecodingConfig(drop_path=0.0, drop_ratio=0.5), BERT),
        (AnswerDecodingConfig(drop_path=0.0, drop_ratio=0.5), DECODER),
        (MultipleChoiceConfig(drop_ratio=0.5), None),
        (MultipleChoiceConfig(drop_ratio=0.5, text_tower="frozen"), None),
        (DetectionConfig(), None),
        (ClassificationConfig(), None),
        (PixelReconstructionConfig(decoder_width=96, decoder_depth=2, decoder_heads=2), None),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, FusionConfig) else value.layout,
)
def test_the_formula_counts_what_a_step_computes(objective: Any, fusion: FusionConfig | None) -> None:
    made = sizes(fusion, answers=isinstance(objective, AnswerDecodingConfig))
    frames = 4
    if isinstance(objective, ImageTextConfig):  # it takes one frame of each clip
        frames, made = 1, model_config("mini", frames=1, tubelet_size=1)
    options = OPTIONS if isinstance(objective, MultipleChoiceConfig) else 1
    recipe = RECIPES["mini-image" if frames == 1 else "mini-harvest"]()
    config = dataclasses.replace(
        recipe,
        objective=objective,
        data=dataclasses.replace(
            recipe.data,
            num_frames=frames,
            captions_per_clip=0 if options > 1 else 1,
            fit="squash" if isinstance(objective, DetectionConfig) else recipe.data.fit,
        ),
    )
    selection = objective if isinstance(objective, Selection) else Selection(objective.drop_ratio)
    module = made_of(objective, made)
    grid = module.model.grid(torch.zeros(1, frames, 3, 64, 64))
    kept = budget_of(selection, grid)
    found = counted(module, config, made, captions=options)
    assert gflop_of(config, made, kept) == pytest.approx(found, rel=0.03)


def test_the_sizes_of_umts_second_stage_are_those_that_are_joined() -> None:
    base = sizes_of(RECIPES["umt-stage2-b16"]())
    assert (base.video.num_frames, base.video.width, base.video.depth) == (4, 768, 12)
    assert (base.text_tower.width, base.text_tower.depth, base.text_tower.vocab_size) == (768, 9, 30_522)
    assert base.fusion is not None and (base.fusion.depth, base.fusion.layout) == (3, "bert")
    large = sizes_of(RECIPES["umt-stage2-l16"]())
    assert (large.text_tower.width, large.text_tower.depth, large.text_tower.mlp_width) == (1024, 19, 4096)
    assert sizes_of(RECIPES["umt-ft-msrvtt-b16"]()).video.num_frames == 12
    assert sizes_of(RECIPES["mini-umt-qa"]()).answers is not None
    config = RECIPES["umt-stage2-b16"]()
    with pytest.raises(HarvestError, match=r"sizes of the text tower 'elsewhere'.*bert-base-uncased"):
        sizes_of(dataclasses.replace(config, start=dataclasses.replace(config.start, text="elsewhere")))


@pytest.mark.parametrize(("recipe", "expected"), [("umt-stage2-b16", 286), ("umt-stage2-l16", 984)])
def test_umts_second_stage_costs_what_the_table_says(recipe: str, expected: float) -> None:
    config = RECIPES[recipe]()  # costs.md, 4 frames, 160 tubelets seen
    assert gflop_of(config, sizes_of(config), 160) == pytest.approx(expected, rel=0.03)


def test_sizes_are_read_from_a_model_that_is_there(tmp_path: Path) -> None:
    made = sizes(DECODER)
    with torch.random.fork_rng():
        save_model(
            tmp_path / "runs" / "mine" / "model",
            VideoTextModel(made),
            train_tokenizer(["a b"], vocab_size=300, context_length=32),
        )
    config = RECIPES["mini-ft-qa"]()
    start = dataclasses.replace(config.start, model=str(tmp_path / "runs" / "mine"))
    found = sizes_of(dataclasses.replace(config, start=start))
    assert found == dataclasses.replace(made, video=dataclasses.replace(made.video, num_frames=8))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_planned(recipe: str) -> None:
    found = Probe("a desk", 1000.0, 20.0, 4.0, "a clip", None, None)
    made = plan(RECIPES[recipe](), found, gpus=8, gpu="h200")
    assert made.hours > 0 and all(stage.gflop_per_clip > 0 for stage in made.stages)
