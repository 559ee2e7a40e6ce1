"""What the rest of the library asks of an objective: one record of its needs, and how its module is built.

The settings of an objective are a frozen dataclass with two members more: `needs` and `build`. Its module is an
`nn.Module` with `forward(batch, step) -> Losses`, the trained `model`, and `selection`, which the loop sets before
each step. No other file asks which objective it deals with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

from harvest.interfaces import Example, HardTextSource
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.seen import check_seen
from harvest.objectives.starting import Started, start_video_model
from harvest.tokens import Selection

if TYPE_CHECKING:
    from harvest.config import RunConfig
    from harvest.data.dataset import ClipDataset
    from harvest.parallel import World

    Rows = Sequence[Example]

WORDS = 32
"""Words that a caption or question is assumed to have, where work is counted by formula."""

ANSWER_WORDS = 4
"""Words that an answer is assumed to have, with its start and end."""


class Objective(Protocol):
    """The settings of an objective."""

    @property
    def drop_ratio(self) -> float:
        """Share of tubelets dropped in each clip."""

    @property
    def needs(self) -> Needs:
        """What a run has to bring, and what it does for this objective."""

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> nn.Module:
        """The module that trains `model`. PyTorch's global generator is seeded for new parameters."""


class Given(NamedTuple):
    """What a run has found for its objective before the module is built."""

    names: Sequence[str] = ()
    """What a head tells apart, or the answers that a decoder is taught."""
    several: bool = False
    """More than one name may hold for a clip."""
    tokenizer: Tokenizer | None = None
    clips: Sequence[Example] = ()
    """The rows of the training set, in the order of `Batch.example` where each row is a clip."""
    earlier: Callable[[], Mapping[str, Tensor]] = dict
    """The weights of the objective in the run that `start.model` is the model of; none where it is no run."""


class Ready(NamedTuple):
    """What an objective may use to fill its caches before the first step."""

    run: RunConfig
    dataset: ClipDataset
    tokenizer: Tokenizer | None
    here: World
    read_clips: Callable[[Sequence[Example]], Any]
    """Batches (numbers from 0 on, video) of some rows, as the run shows them when nothing is drawn."""
    folder: Path
    """The run's."""
    image_model: VideoTextModel | None = None
    """What the model was made from; None where it was made from none."""


@dataclass(frozen=True)
class Reading:
    """How often the words of a clip go through what, in one step: what `harvest plan` counts work by."""

    towers: float = 0.0
    """Passes of a text through its tower, the backward pass among them: 3 where it is trained, 1 where nothing is."""
    kept: float = 0.0
    """Passes through the tower whose activations wait for a backward pass."""
    fused: float = 0.0
    """Forward passes through the fusion."""
    hidden: float = 0.0
    """Words that the head fills in."""
    answers: bool = False
    """An answer is decoded word by word."""


def hidden_words(ratio: float) -> float:
    """Words of a caption of `WORDS` that are hidden at a ratio."""
    return max(1.0, ratio * (WORDS - 2))


def every_row(rows: Rows, listed: Path | None) -> tuple[Rows, list[str]]:
    """All rows, and no names."""
    return rows, []


def plain_texts(sizes: ModelConfig, tokenizer: Tokenizer) -> Callable[[list[str]], Tensor]:
    """Texts as the tokenizer encodes them."""
    return tokenizer


def _nothing(*_: object) -> None:
    """Where an objective has nothing to check or to prepare."""


def _no_text(sizes: ModelConfig, captions: int) -> Reading:
    return Reading()


def _as_it_is(run: RunConfig) -> RunConfig:
    return run


@dataclass(frozen=True)
class Needs:
    """What an objective needs. Defaults are those of one that trains a video model on captioned clips."""

    selection: Selection
    """What is seen of each clip in the main stage."""
    text: bool = True
    """A text tower; without it a video tower trains alone."""
    captions: bool = False
    """The model's start depends on the captions, as where its shared space is turned by them."""
    fusion: bool = False
    """A fusion decoder, which a model that is started from an image model gets."""
    matching: bool = False
    """The fusion needs a head that tells pairs from near misses."""
    answers: bool = False
    """A decoder of answers, which is added where the model has none."""
    stills: bool = False
    """One frame of each clip is seen, so that the model stays an image model."""
    second_stage: bool = False
    """A model without a text tower gets the one that `start.text` names."""
    from_shards: bool = True
    """Captions and labels are enough. Shards hold no boxes, questions or options."""
    rows: Callable[[Rows, Path | None], tuple[Rows, list[str]]] = every_row
    """Of the rows those that can be learned from, and the names of what a head tells apart. The file lists the
    names of a data set that brings them."""
    texts: Callable[[ModelConfig, Tokenizer], Callable[[list[str]], Tensor]] = plain_texts
    """How the loader encodes texts."""
    start: Callable[[RunConfig, list[str]], Started] = start_video_model
    """How the model is started."""
    hard_texts: HardTextSource | None = None
    """Sentences false of a clip that join its loss (`Batch.hard_ids`)."""
    check: Callable[[RunConfig], None] = _nothing
    """Raises HarvestError for settings of the run that do not go with the objective."""
    check_seen: Callable[[Selection, VideoTextModel, Tensor], object] = check_seen
    """Raises HarvestError where what is seen of such clips cannot be trained on."""
    prepare: Callable[[Any, Ready], None] = _nothing
    """What the module caches before the first step. All ranks call it, while all weights are whole."""
    tiny: Callable[[RunConfig], RunConfig] = _as_it_is
    """What the tiny twin of a recipe has otherwise than every twin."""
    mini_world: str | None = None
    """The part of the mini-world that a tiny twin learns from; None: the recipe's, or clips with captions."""
    reading: Callable[[ModelConfig, int], Reading] = field(default=_no_text)
    """What a step does with texts, by the sizes of the model and the number of texts a clip."""
