"""How the model of a run is started: from an image model, a video model, from scratch, or from UMT's two towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch

from harvest.interfaces import HarvestError
from harvest.model.alignment import init_xavier
from harvest.model.fusion import FusionConfig
from harvest.model.importing.bert import TextTower, load_bert
from harvest.model.importing.pretrained import load_any, load_pretrained
from harvest.model.importing.sources import find_model
from harvest.model.importing.tables import ImportReport
from harvest.model.inflation import as_video_model
from harvest.model.joining import join, with_answers, with_frames, with_matching
from harvest.model.matryoshka import turn_by_captions
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.progress import say
from harvest.ranges import Range, check_ranges
from harvest.settings import read_json

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class StartConfig:
    """The model a run starts from."""

    model: str = "openai/clip-vit-base-patch16"
    """A hub name, a folder in the transformers, OpenCLIP or Harvest layout, a run folder, a state-dict file,
    `mini-image` (the mini-world's own, shipped with Harvest), or `scratch`."""
    vocabulary: str | None = None
    """CLIP's bpe_simple_vocab_16e6.txt.gz or BERT's vocab.txt, for weights that come without a tokenizer."""
    tubelet_size: Annotated[int, Range(least=1)] = 1
    time_positions: Literal["table", "gated"] = "table"
    fusion: FusionConfig | None = field(default_factory=FusionConfig)
    scratch: ModelConfig | None = None
    """Sizes where `model` is `scratch`, and None where it is not; its `vocab_size` bounds that of the tokenizer, learned
    from the captions. A student of stage 1 has no text tower."""
    text: str | None = None
    """UMT's second stage: where the text tower comes from. A BERT folder of transformers, whose last `fusion.depth`
    layers become the fusion; an image-text model, whose text tower is taken; or `scratch`. A model that has a text tower
    needs none."""
    scratch_text: TextEncoderConfig | None = None
    """Sizes for text `scratch`; the tokenizer is learned from the captions."""
    max_text_tokens: int = 32
    """Word pieces of a caption that a BERT gets, [CLS] included."""
    embed_dim: int = 512
    """Width of the shared space where a BERT or a text tower from scratch is joined to a video tower."""

    def __post_init__(self) -> None:
        if self.model != "scratch":
            # A recipe from scratch that is started from a model instead (--start.model RUN) takes its sizes from that.
            object.__setattr__(self, "scratch", None)
        elif self.scratch is None:
            raise HarvestError("start.model scratch needs sizes: start.scratch")
        check_ranges(self, "start")


class Started(NamedTuple):
    """What a run starts from."""

    model: VideoTextModel
    tokenizer: Tokenizer | None
    """None without a text tower."""
    image_model: VideoTextModel | None = None
    """What the model was made from; None if from none."""


@contextmanager
def seeded(config: RunConfig) -> Iterator[None]:
    """PyTorch draws new parameters from its global generator: seed it for them, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        yield


def start_video_model(config: RunConfig, captions: list[str]) -> Started:
    """The model that `config.start` names, as the objective needs it: from scratch, a video model, or an image model
    that is turned into one."""
    start, needs = config.start, config.objective.needs
    if start.scratch is not None:
        if not needs.text and start.scratch.text is None:
            return Started(_student(config, start.scratch), None)
        return _from_scratch(config, captions)
    load = load_pretrained if needs.text else load_any
    model, tokenizer, report = load(start.model, vocabulary=vocabulary_of(config))
    say(str(report))
    if model.config.video.num_frames > 1:
        model = with_frames(model, config.data.num_frames)
        return Started(_with_answers(config, model), tokenizer)
    if needs.stills:
        return Started(model, tokenizer)
    if needs.captions:
        assert tokenizer is not None  # it needs a text tower
        turn_by_captions(model, tokenizer, captions)
    with seeded(config):
        video_model, _ = as_video_model(
            model,
            num_frames=config.data.num_frames,
            tubelet_size=start.tubelet_size,
            time_positions=start.time_positions,
            fusion=start.fusion if needs.fusion else None,
        )
    return Started(_with_answers(config, video_model), tokenizer, model)


def start_second_stage(config: RunConfig, captions: list[str]) -> Started:
    """A tower of UMT's stage 1 joined to a text tower, or a model that has both and goes on."""
    start = config.start
    if start.model == "scratch":
        raise HarvestError("give the run of stage 1 to start from: --start.model runs/umt-stage1-b16")
    source = find_model(start.model)
    model, tokenizer, report = load_any(
        source,
        vocabulary=vocabulary_of(config),
        num_frames=config.data.num_frames if source.is_file() else None,
    )
    say(str(report))
    if tokenizer is not None:
        if start.text is not None and start.text != "scratch":
            say(f"{source} has a text tower: start.text {start.text} is not needed")
        if config.objective.needs.matching:
            with seeded(config):
                model, fresh = with_matching(model)
            if fresh:
                say(f"new in the model: {', '.join(fresh)}")
        return Started(with_frames(model, config.data.num_frames), tokenizer)
    if start.text is None or start.fusion is None:
        raise HarvestError(
            f"{source} has no text tower: give one, --start.text FOLDER of a BERT, and start.fusion"
        )
    with seeded(config):
        text_tower = _text_tower(config, start.text, start.fusion, captions)
        joined, new = join(model.video, text_tower, fusion=start.fusion, num_frames=config.data.num_frames)
    say(f"its text tower is {text_tower.report}\n  new in the joined model ({len(new)}): {', '.join(new)}")
    return Started(joined, text_tower.tokenizer)


def vocabulary_of(config: RunConfig) -> Path | None:
    return Path(config.start.vocabulary) if config.start.vocabulary else None


def _with_answers(config: RunConfig, model: VideoTextModel) -> VideoTextModel:
    """The model, with a decoder of answers where the run trains one."""
    if not config.objective.needs.answers:
        return model
    with seeded(config):
        model, new = with_answers(model)
    say(f"new in the decoder of answers ({len(new)}): {', '.join(new)}")
    return model


def _student(config: RunConfig, sizes: ModelConfig) -> VideoTextModel:
    """A video tower from scratch, without a text tower."""
    with seeded(config):
        model = VideoTextModel(dataclasses.replace(sizes, text=None, fusion=None))
        init_xavier(model.video.blocks)
    return model


def _from_scratch(config: RunConfig, captions: list[str]) -> Started:
    sizes = config.start.scratch
    assert sizes is not None
    tokenizer = train_tokenizer(
        captions, vocab_size=sizes.text_tower.vocab_size, context_length=sizes.text_tower.context_length
    )
    with seeded(config):
        return Started(VideoTextModel(sizes.with_vocabulary(tokenizer.core.get_vocab_size())), tokenizer)


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
            vocabulary=vocabulary_of(config),
        )
    model, text_tokenizer, report = load_pretrained(name, vocabulary=vocabulary_of(config))
    tensors = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("text.")}
    report = dataclasses.replace(report, used=len(tensors), notes=(*report.notes, "its text tower alone"))
    return TextTower(model.config.text_tower, None, tensors, text_tokenizer, report)
