"""Every objective on a GPU that is not there: no two devices meet, and the host waits for the device nowhere.

Every wait of a training step that stays is in `WAITS`, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import WORDS, encoded_captions, small_batch, small_model, stage2_model
from torch import nn

from harvest.data.stored_rows import pack
from harvest.data.transforms import crop_batch
from harvest.evaluation.answer_ranking import rank_answers
from harvest.evaluation.embed import Embeddings, encode_clips
from harvest.evaluation.matching import read_pairs
from harvest.evaluation.task import Evaluation
from harvest.interfaces import Batch, Box, Example, Merged, Packed
from harvest.model.answers import AnswerIds
from harvest.model.inflation import as_teacher
from harvest.model.joining import with_answers, with_matching
from harvest.objectives import OBJECTIVES
from harvest.objectives.answer_decoding import AnswerDecoding, AnswerDecodingConfig
from harvest.objectives.classification import Classification, ClassificationConfig
from harvest.objectives.detection import Detection, DetectionConfig
from harvest.objectives.embedding_alignment import EmbeddingAlignment, EmbeddingAlignmentConfig
from harvest.objectives.image_text import ImageTextConfig, ImageTextPretraining
from harvest.objectives.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from harvest.objectives.multimodal import Multimodal, MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoice, MultipleChoiceConfig
from harvest.objectives.pixel_reconstruction import PixelReconstruction, PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnswering, QuestionAnsweringConfig
from harvest.parallel import deterministic, send
from harvest.tokens import Selection, run_length_keep
from harvest.training.average import WeightAverage
from harvest.training.optim import OptimConfig, build_optimizer
from harvest.training.step import LossScale, OptimizerStep
from harvest.training.vary import show_frames, show_size

try:
    from fake_gpu import FakeGpu
except (ImportError, AttributeError) as error:
    pytest.skip(f"no fake GPU with this PyTorch: {error}", allow_module_level=True)

WAITS = {
    "tokens/selectors.py run_length_keep": "how many tubelets a clip keeps is its content's, and sizes what is computed",
    "objectives/detection.py of": "the number of boxes of a batch sizes what is computed of them",
}
"""Where the host waits in a step: function, and why it has to."""

B = 4
GPU = torch.device("gpu")
TRAINING = ("random", "tube", "motion", "attention", "run_length")


def given(**changes: int) -> Batch:
    return small_batch(B, **changes)


def teacher() -> nn.Module:
    return as_teacher(small_model(fusion=False, num_frames=1))


def multimodal(**changes: object) -> Callable[[], nn.Module]:
    config = MultimodalConfig(num_layers=2, **changes)
    return lambda: Multimodal(config, stage2_model(), teacher() if config.needs_teacher else None, seed=0)


def post(**changes: object) -> Callable[[], nn.Module]:
    return lambda: PostPretraining(PostPretrainingConfig(**changes), small_model(), seed=0)


def detection() -> nn.Module:
    rows = [Example(str(n), "", boxes=(Box((0.1, 0.0, 0.4, 0.7), (n % 2,)),)) for n in range(B)]
    return Detection(DetectionConfig(head_dropout=0.1), small_model(fusion=False), ("a", "b"), rows, seed=0)


def answer_decoding() -> nn.Module:
    ids = AnswerIds(torch.tensor([[0, 5, 1], [0, 6, 1]]), torch.ones(2, 3, dtype=torch.bool))
    return AnswerDecoding(AnswerDecodingConfig(), with_answers(small_model())[0], ids, seed=0)


def classification(**changes: object) -> Callable[[], nn.Module]:
    config = ClassificationConfig(random_erasing=0.9, head_dropout=0.1, **changes)
    return lambda: Classification(config, small_model(fusion=False), ("a", "b"), seed=0)


def embedding_alignment() -> nn.Module:
    return EmbeddingAlignment(EmbeddingAlignmentConfig(), small_model(fusion=False), seed=0)


def with_embeddings() -> Batch:
    return given()._replace(stored=torch.rand(B, 12).half().view(torch.uint8))


CACHE = {
    "places": (torch.int32, (64,)),
    "attention": (torch.float16, (64,)),
    "layers": (torch.float8_e4m3fn, (2, 64, 12)),
}


def taught(*, cached: bool = False) -> nn.Module:
    config = MaskedAlignmentConfig(num_layers=2)
    made = MaskedAlignment(config, small_model(fusion=False), teacher(), seed=0)
    made.teaching.stored = CACHE if cached else None
    return made


def with_layers() -> Batch:
    fields = {name: torch.ones(B, *shape) for name, (_, shape) in CACHE.items()}
    return given()._replace(stored=pack(fields, CACHE))


def asked() -> Batch:
    batch = given()
    batch.text_ids[:, 0, 1] = WORDS  # the hidden word
    return batch


def hard() -> Batch:
    return given(captions=2)._replace(hard_ids=given(captions=3).text_ids)


def stored() -> nn.Module:
    made = post(cache_texts=True, text_bank=5)()
    made.captions = encoded_captions(made.model, given())
    return made


def with_texts() -> Batch:
    return given()._replace(stored=torch.rand(B, 1, 12).view(torch.uint8))


TEACHES = ("random", "tube", "motion", "attention")
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], tuple[str, ...]]] = {
    "harvest": (post(), given, TRAINING),
    "harvest, everything else": (
        post(
            contrastive_loss="sigmoid",
            text_tower="trained",
            hard_negatives=3,
            dims=(4,),
            masked_words_ratio=0.5,
        ),
        hard,
        ("random",),
    ),
    "harvest, in chunks": (post(chunk_clips=2), given, ("random",)),
    "harvest, texts stored": (stored, with_texts, ("random",)),
    "UMT stage 1": (
        taught,
        given,
        TEACHES,
    ),
    "UMT stage 1, cached": (lambda: taught(cached=True), with_layers, TEACHES),
    "UMT stage 2": (multimodal(), given, TEACHES),
    "UMT stage 2, pictures": (multimodal(), lambda: show_frames(given(), 1), ("attention",)),
    "UMT retrieval": (
        multimodal(drop_ratio=0.0, image_drop_ratio=0.0, alignment_weight=0.0, masked_words_weight=0.0),
        given,
        ("random",),
    ),
    "embeddings of an image model": (embedding_alignment, with_embeddings, TRAINING),
    "classification": (classification(), given, TRAINING[:-1]),
    "classification, attentive": (classification(head="attentive", drop_path=0.0), given, ("run_length",)),
    "detection": (detection, given, ("random",)),
    "questions by a head": (
        lambda: QuestionAnswering(QuestionAnsweringConfig(), small_model(), ("a", "b"), seed=0),
        asked,
        TRAINING,
    ),
    "questions by a decoder": (answer_decoding, given, ("random", "tube", "motion")),
    "multiple choice": (
        lambda: MultipleChoice(MultipleChoiceConfig(), small_model(fusion=False), seed=0),
        lambda: given(captions=2),
        TRAINING,
    ),
    "image-text": (
        lambda: ImageTextPretraining(ImageTextConfig(hard_negatives=3), small_model(fusion=False), seed=0),
        hard,
        ("random",),
    ),
    "pixels": (
        lambda: PixelReconstruction(
            PixelReconstructionConfig(decoder_width=32, decoder_depth=1, decoder_heads=2),
            stage2_model(),
            seed=0,
        ),
        given,
        ("random", "tube", "motion"),
    ),
}


def unlisted(gpu: FakeGpu) -> list[tuple[str, str]]:
    return [wait for wait in gpu.waits if wait[1] not in WAITS]


def test_every_objective_has_a_case() -> None:
    made = {type(build().config) for build, _, _ in CASES.values()}
    assert made == set(OBJECTIVES)
    assert len(WAITS) <= 3


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing(name: str) -> None:
    build, batch, selectors = CASES[name]
    objective, shown = build().train(), batch()
    with FakeGpu() as gpu:
        objective.to("gpu")
        optimizer, average = build_optimizer(objective, OptimConfig()), WeightAverage(objective, decay=0.9)
        step = OptimizerStep(objective, optimizer, GPU, "fp32", 1.0, average)
        on_gpu = Batch(*(tensor.to("gpu") for tensor in shown))
        gpu.waits.clear()
        for number, selector in enumerate(selectors):
            objective.selection = Selection(drop_ratio=0.5, selector=selector)
            losses = step(on_gpu, number, lr=1e-4)
            assert {value.device.type for value in (losses.total, *losses.parts.values())} == {"gpu"}
    assert unlisted(gpu) == []


def test_a_step_in_fp16_with_the_draws_of_a_cpu_waits_for_nothing() -> None:
    """Its loss is scaled, and what is drawn on the CPU is sent (`loop.deterministic`)."""
    objective = post()().train()
    with FakeGpu() as gpu, deterministic(True):
        objective.to("gpu")
        step = OptimizerStep(
            objective,
            build_optimizer(objective, OptimConfig()),
            GPU,
            "fp32",
            1.0,
            None,
            LossScale().to("gpu"),
        )
        on_gpu = Batch(*(tensor.to("gpu") for tensor in given()))
        gpu.waits.clear()
        for number, selector in enumerate(TRAINING[:-1]):
            objective.selection = Selection(drop_ratio=0.5, selector=selector)
            step(on_gpu, number)
    assert unlisted(gpu) == []


def test_encoding_waits_for_nothing() -> None:
    """All of a clip, some, different numbers of each (packed), merged; with layers and attention; and every change of a
    batch on the device."""
    model, batch = small_model().eval(), given()
    packed = run_length_keep(torch.randint(0, 12, (B, 3, 16)).float(), budget=40)
    with FakeGpu() as gpu, torch.no_grad():
        model.to("gpu")
        on_gpu = Batch(*(tensor.to("gpu") for tensor in batch))
        keep = torch.arange(8).expand(B, -1).to("gpu")
        in_a_row = Packed(*(part.to("gpu") if isinstance(part, torch.Tensor) else part for part in packed))
        gpu.waits.clear()
        for seen in (None, in_a_row, Merged(32)):
            model.encode_video(on_gpu.video, seen)
        model.encode_video(on_gpu.video, keep, layers=(-1,), attention=True)
        model.encode_video(show_size(show_frames(on_gpu, 2), 12).video)
        crop_batch(on_gpu.video, torch.rand(B, 4), 16)
    assert gpu.waits == []


class Words:
    """In place of a tokenizer."""

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return given().text_ids[:1, 0].expand(len(texts), -1).contiguous()


def test_evaluation_runs_on_it() -> None:
    """Scorers have their model on the device and their figures on the CPU: they may wait."""
    both, says = with_matching(small_model())[0].eval(), with_answers(small_model())[0].eval()
    video = given().video
    with FakeGpu() as gpu:
        both.to("gpu"), says.to("gpu")
        for selector in ("random", "tube", "motion", "attention", "merge"):
            encode_clips(says, video, selection=Selection(budget=32, selector=selector))
        encode_clips(says, video, mode="image")
        tokens = encode_clips(both, video).tokens.cpu()
        videos = Embeddings(torch.rand(B, 12), torch.arange(B), torch.arange(B), {}, tokens)
        scores = read_pairs(
            Evaluation(both, Words(), []), ["a"] * 4, videos, torch.ones(4, B, dtype=torch.bool)
        )
        with torch.no_grad():
            text = says.encode_text(given().text_ids[:, 0].to("gpu"))
            states = says.fuse(encode_clips(says, video), text)
            answers = AnswerIds(
                torch.tensor([[0, 5, 1], [0, 6, 1], [0, 7, 1]]), torch.ones(3, 3, dtype=torch.bool)
            )
            ranked = rank_answers(says, states, text, answers, top_k=2)
    assert scores.logits.device.type == "cpu" and ranked.device.type == "gpu" and gpu.waits


@pytest.mark.parametrize(
    "waits",
    [
        lambda x, i: x.sum().item(),
        lambda x, i: bool(x.any()),
        lambda x, i: x.tolist(),
        lambda x, i: x.cpu(),
        lambda x, i: x[x > 0],
        lambda x, i: x.__setitem__(x > 0, x[0]),
        lambda x, i: x.nonzero(),
        lambda x, i: x.unique(),
        lambda x, i: torch.isin(i, i),
        lambda x, i: torch.arange(4, device="gpu").repeat_interleave(i),
        lambda x, i: x[torch.arange(2)],
        lambda x, i: torch.tensor([1.0], device="gpu"),
        lambda x, i: torch.ones(3).to("gpu"),
        lambda x, i: torch.ones(1 << 16).to("gpu", non_blocking=True),
    ],
)
def test_the_fake_gpu_notes_a_wait(waits: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    with FakeGpu() as gpu:
        x, i = torch.rand(4).to("gpu"), torch.arange(4).to("gpu")
        gpu.waits.clear()
        x * i + x.clamp(min=0).topk(2).values.sum()
        send(torch.ones(1 << 16), GPU)
        assert gpu.waits == []
        waits(x, i)
    assert gpu.waits


def test_the_fake_gpu_refuses_what_a_gpu_refuses() -> None:
    with FakeGpu():
        x = torch.rand(4).to("gpu")
        with pytest.raises(RuntimeError, match="device"):
            x + torch.rand(4)
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            torch.rand(4, device="gpu", generator=torch.Generator())
