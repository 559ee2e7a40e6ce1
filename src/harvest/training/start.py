"""What a run starts from: the model it trains, its tokenizer, its teacher, and the objective around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from harvest.config import RunConfig
from harvest.interfaces import Example, HarvestError
from harvest.model.adaptation import adapt
from harvest.model.alignment import AlignmentHeads, init_xavier
from harvest.model.answers import encode_answers
from harvest.model.fusion import FusionConfig
from harvest.model.importing.bert import TextTower, load_bert
from harvest.model.importing.files import read_json
from harvest.model.importing.pretrained import load_any, load_pretrained
from harvest.model.importing.sources import find_model
from harvest.model.importing.tables import ImportReport
from harvest.model.importing.umt import read_heads
from harvest.model.inflation import as_teacher, as_video_model
from harvest.model.joining import join, with_answers, with_frames, with_matching
from harvest.model.matryoshka import turn_by_captions
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_encoder import VideoEncoder
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
from harvest.parallel import computed_in, own_device
from harvest.progress import say
from harvest.training.checkpoint import newest_weights

Objective = (
    PostPretraining
    | ImageTextPretraining
    | MaskedAlignment
    | Multimodal
    | Classification
    | QuestionAnswering
    | AnswerDecoding
    | PixelReconstruction
    | MultipleChoice
    | Detection
)

WITHOUT_TEXT = (ClassificationConfig, DetectionConfig, MaskedAlignmentConfig, PixelReconstructionConfig)
"""Objectives that train a video tower alone."""


def needs_captions(config: RunConfig) -> bool:
    """Whether a run's captions say how its model starts: a vocabulary is learned from them, or the shared space turned."""
    is_nested = isinstance(config.objective, PostPretrainingConfig) and bool(config.objective.dims)
    return config.start.scratch is not None or config.start.text == "scratch" or is_nested


def start_model(
    config: RunConfig, captions: list[str]
) -> tuple[VideoTextModel, Tokenizer | None, VideoTextModel | None]:
    """The model that `config.start` names, its tokenizer (None without a text tower), and the image model it was made
    from (None if from none)."""
    start = config.start
    if isinstance(config.objective, MultimodalConfig):
        return *_second_stage(config, captions), None
    if start.scratch is not None:
        if isinstance(config.objective, WITHOUT_TEXT) and start.scratch.text is None:
            return _student(config, start.scratch), None, None
        return *_from_scratch(config, captions), None
    needs_words = not isinstance(config.objective, WITHOUT_TEXT)
    model, tokenizer, report = (load_pretrained if needs_words else load_any)(
        start.model, vocabulary=_vocabulary(config)
    )
    say(str(report))
    if model.config.video.num_frames > 1:
        model = with_frames(model, config.data.num_frames)
        if (
            model.fusion is None
            and isinstance(config.objective, PostPretrainingConfig)
            and config.objective.masked_words_weight > 0
        ):
            raise HarvestError(
                f"{start.model} is a video model without a fusion decoder, which masked words need: "
                "give --objective.masked-words-weight 0"
            )
        return _with_answers(config, model), tokenizer, None
    if isinstance(config.objective, ImageTextConfig):
        return model, tokenizer, None
    if isinstance(config.objective, PostPretrainingConfig) and config.objective.dims:
        assert tokenizer is not None  # it needs words
        turn_by_captions(model, tokenizer, captions)
    fills_words = isinstance(config.objective, (QuestionAnsweringConfig, AnswerDecodingConfig)) or (
        isinstance(config.objective, PostPretrainingConfig) and config.objective.masked_words_weight > 0
    )
    with _seeded(config):
        video_model, _ = as_video_model(
            model,
            num_frames=config.data.num_frames,
            tubelet_size=start.tubelet_size,
            time_positions=start.time_positions,
            fusion=start.fusion if fills_words else None,
        )
    return _with_answers(config, video_model), tokenizer, model


def _with_answers(config: RunConfig, model: VideoTextModel) -> VideoTextModel:
    """The model, with a decoder of answers where the run trains one."""
    if not isinstance(config.objective, AnswerDecodingConfig):
        return model
    with _seeded(config):
        model, new = with_answers(model)
    say(f"new in the decoder of answers ({len(new)}): {', '.join(new)}")
    return model


def build_objective(
    config: RunConfig,
    model: VideoTextModel,
    names: Sequence[str] = (),
    *,
    several: bool = False,
    tokenizer: Tokenizer | None = None,
    clips: Sequence[Example] = (),
) -> Objective:
    """The module that trains `model`, or of its towers what `config.adapt` says, with its teacher where it has one.

    `names` are what its head tells apart, where it has one, or the answers that it says, for which it needs the
    `tokenizer`; `several` says that more than one name may hold.
    `clips` are those of the training set, whose boxes detection learns from.
    """
    if isinstance(config.objective, AnswerDecodingConfig):
        assert tokenizer is not None  # its model has words
        ids = encode_answers(tokenizer, model.config.text_tower, names)
        made: Objective = AnswerDecoding(config.objective, model, ids, seed=config.loop.seed)
    else:
        made = _objective(config, model, names, several=several, clips=clips)
    with _seeded(config):
        adapt(model, config.adapt)
    return made


def _objective(
    config: RunConfig,
    model: VideoTextModel,
    names: Sequence[str],
    *,
    several: bool,
    clips: Sequence[Example],
) -> Objective:
    objective, seed = config.objective, config.loop.seed
    if isinstance(objective, ClassificationConfig):
        with _seeded(config):  # the head
            return Classification(objective, model, names, several=several, seed=seed)
    if isinstance(objective, DetectionConfig):
        with _seeded(config):  # the head
            return Detection(objective, model, names, clips, seed=seed)
    if isinstance(objective, QuestionAnsweringConfig):
        with _seeded(config):  # the head
            return QuestionAnswering(objective, model, names, seed=seed)
    if isinstance(objective, MultipleChoiceConfig):
        return MultipleChoice(objective, model, seed=seed)
    if isinstance(objective, PostPretrainingConfig):
        return PostPretraining(objective, model, seed=seed)
    if isinstance(objective, MultimodalConfig):
        teacher = _teacher(config, objective) if objective.needs_teacher else None
        with _seeded(config):
            made = Multimodal(objective, model, teacher, seed=seed)
        if made.teaching is not None:
            _take_heads(made.teaching.heads, find_model(config.start.model))
        return made
    if isinstance(objective, MaskedAlignmentConfig):
        teacher = _teacher(config, objective)
        with _seeded(config):  # the heads
            return MaskedAlignment(objective, model, teacher, seed=seed)
    if isinstance(objective, PixelReconstructionConfig):
        with _seeded(config):  # the decoder
            return PixelReconstruction(objective, model, seed=seed)
    assert isinstance(objective, ImageTextConfig)
    return ImageTextPretraining(objective, model, seed=seed)


def _vocabulary(config: RunConfig) -> Path | None:
    return Path(config.start.vocabulary) if config.start.vocabulary else None


# ---- UMT ---------------------------------------------------------------------------------------------------------


def _teacher(config: RunConfig, objective: MaskedAlignmentConfig) -> VideoEncoder:
    teacher, _, report = load_pretrained(
        objective.teacher, image_size=objective.teacher_image_size, vocabulary=_vocabulary(config)
    )
    if teacher.config.video.num_frames != 1:
        raise HarvestError(
            f"objective.teacher {objective.teacher} is a video model of {teacher.config.video.num_frames} frames: "
            "give an image model"
        )
    say(f"the teacher is {report}")
    dtype = torch.bfloat16 if computed_in(own_device(), config.loop.precision) == "bf16" else torch.float32
    return as_teacher(teacher, dtype=dtype, int8=objective.teacher_int8)


def _student(config: RunConfig, sizes: ModelConfig) -> VideoTextModel:
    """A video tower from scratch, without a text tower."""
    with _seeded(config):
        model = VideoTextModel(dataclasses.replace(sizes, text=None, fusion=None))
        init_xavier(model.video.blocks)
    return model


def _second_stage(config: RunConfig, captions: list[str]) -> tuple[VideoTextModel, Tokenizer]:
    """A tower of stage 1 joined to a text tower, or a model of stage 2 that goes on."""
    start = config.start
    if start.model == "scratch":
        raise HarvestError("give the run of stage 1 to start from: --start.model runs/umt-stage1-b16")
    source = find_model(start.model)
    model, tokenizer, report = load_any(
        source,
        vocabulary=_vocabulary(config),
        num_frames=config.data.num_frames if source.is_file() else None,
    )
    say(str(report))
    if tokenizer is not None:
        if start.text is not None and start.text != "scratch":
            say(f"{source} has a text tower: start.text {start.text} is not needed")
        assert isinstance(config.objective, MultimodalConfig)
        if config.objective.matching_weight > 0:
            with _seeded(config):
                model, fresh = with_matching(model)
            if fresh:
                say(f"new in the model: {', '.join(fresh)}")
        return with_frames(model, config.data.num_frames), tokenizer
    if start.text is None or start.fusion is None:
        raise HarvestError(
            f"{source} has no text tower: give one, --start.text FOLDER of a BERT, and start.fusion"
        )
    with _seeded(config):
        text_tower = _text_tower(config, start.text, start.fusion, captions)
        joined, new = join(model.video, text_tower, fusion=start.fusion, num_frames=config.data.num_frames)
    say(f"its text tower is {text_tower.report}\n  new in the joined model ({len(new)}): {', '.join(new)}")
    return joined, text_tower.tokenizer


def _text_tower(config: RunConfig, name: str, fusion: FusionConfig, captions: list[str]) -> TextTower:
    """The text tower that `start.text` names."""
    start = config.start
    if name == "scratch":
        if start.scratch_text is None:
            raise HarvestError("start.text scratch needs sizes: start.scratch_text")
        sizes = start.scratch_text
        tokenizer = train_tokenizer(
            captions, vocab_size=sizes.vocab_size, context_length=sizes.context_length
        )
        text = dataclasses.replace(
            sizes, vocab_size=tokenizer.core.get_vocab_size(), embed_dim=start.embed_dim
        )
        return TextTower(text, None, {}, tokenizer, ImportReport("new", used=0))
    folder = find_model(name)
    if read_json(folder / "config.json").get("model_type") == "bert":
        return load_bert(
            folder,
            fusion_depth=fusion.depth,
            embed_dim=start.embed_dim,
            context_length=start.max_text_tokens,
            vocabulary=_vocabulary(config),
        )
    model, text_tokenizer, report = load_pretrained(name, vocabulary=_vocabulary(config))
    tensors = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("text.")}
    report = dataclasses.replace(report, used=len(tensors), notes=(*report.notes, "its text tower alone"))
    return TextTower(model.config.text_tower, None, tensors, text_tokenizer, report)


def _take_heads(heads: AlignmentHeads, path: Path) -> None:
    """Go on with the alignment heads of stage 1 where they can be had: its run folder, or a released file."""
    found: dict[str, Tensor] = {}
    if path.is_file():
        found = read_heads(path)
    elif (path.parent / "checkpoints").is_dir():
        prefix = "teaching.heads."
        weights = newest_weights(path.parent)
        found = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
    own = heads.state_dict()
    if {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in own.items()}:
        heads.load_state_dict(found)
        say("the alignment heads go on from stage 1")
    else:
        say(
            "the alignment heads are new: those of stage 1 are not there, or are for other layers or another teacher"
        )


# ---- from scratch ------------------------------------------------------------------------------------------------


def _from_scratch(config: RunConfig, captions: list[str]) -> tuple[VideoTextModel, Tokenizer]:
    sizes = config.start.scratch
    assert sizes is not None
    tokenizer = train_tokenizer(
        captions, vocab_size=sizes.text_tower.vocab_size, context_length=sizes.text_tower.context_length
    )
    with _seeded(config):
        return VideoTextModel(sizes.with_vocabulary(tokenizer.core.get_vocab_size())), tokenizer


@contextmanager
def _seeded(config: RunConfig) -> Iterator[None]:
    """PyTorch draws new parameters from its global generator: seed it for them, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        yield
