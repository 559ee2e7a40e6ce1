"""What a task of evaluation is, and what it is given. The tasks themselves are in `tasks/`, a file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from harvest.data.sampling import FrameOrder
from harvest.evaluation.clips import Collected, Encode, ReadSettings, collect
from harvest.evaluation.embed import Embeddings, default_frames, embed_texts, embed_videos, encode_clips, kept
from harvest.evaluation.result import Result
from harvest.evaluation.settings import EvalSettings
from harvest.interfaces import Example, HarvestError, OnProgress, VideoFeatures
from harvest.model.heads import Head
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import NO_TEXT_TOWER, VideoTextModel
from harvest.parallel import computed_in


class Task(Protocol):
    """A frozen dataclass whose fields are the task's own settings: options of `harvest evaluate`, parts of a card."""

    name: ClassVar[str]
    scored_by: ClassVar[str]
    """What its figures rest on, in a few words for a card."""
    benchmarks: ClassVar[tuple[str, ...]]
    """Kinds of benchmarks (`BenchmarkData.task`) that it scores."""
    names_in: ClassVar[str]
    """The field of `BenchmarkData` with the classes or answers that it reads as `Evaluation.names`; "": it reads none."""
    reads_head: ClassVar[bool]
    """Whether it scores with the head of a fine-tuned model, where there is one."""
    reads_groups: ClassVar[bool]
    """Whether it gives figures of `Evaluation.groups`."""

    def check(self, given: Evaluation) -> None:
        """HarvestError where the model or a row does not fit, before any video is read."""

    def score(self, given: Evaluation) -> Result: ...


@dataclass(frozen=True)
class Evaluation:
    """A model and the rows that it is scored on."""

    model: VideoTextModel
    tokenizer: Tokenizer | None
    """None for a model without a text tower, which only classification and detection do without."""
    examples: Sequence[Example]
    settings: EvalSettings = field(default_factory=EvalSettings)
    names: Sequence[str] | None = None
    """Classes in the order of their labels, or the answers to choose from; None: as the examples have them."""
    groups: Mapping[str, str] | None = None
    """Example id to the name of a group, which then has figures of its own."""
    head: Head | None = None
    """Of a fine-tuned model."""
    frame_order: FrameOrder = "forward"
    """How time is taken from the clips (`motion_truth`)."""
    progress: OnProgress | None = None

    @property
    def words(self) -> Tokenizer:
        """The tokenizer; HarvestError for a model without a text tower."""
        if self.tokenizer is None:
            raise HarvestError(NO_TEXT_TOWER)
        return self.tokenizer

    @property
    def reading(self) -> ReadSettings:
        how = self.settings
        frames = default_frames(self.model, how.mode) if how.num_frames is None else how.num_frames
        return ReadSettings(
            frames,
            batch_size=how.batch_size,
            precision=how.precision,
            workers=how.workers,
            frame_order=self.frame_order,
            fit=how.fit,
            progress=self.progress,
        )

    @property
    def shown(self) -> str:
        """How the videos are shown, for a protocol sentence."""
        frames = self.reading.num_frames
        together = (
            "each encoded alone and averaged (image baseline)" if self.settings.image else "encoded together"
        )
        return f"{frames} frame{'s' if frames != 1 else ''} a video, {together}"

    def encode(self, video: Tensor) -> VideoFeatures:
        """Embeddings and tokens of clips `[B, T, 3, H, W]`, as the settings show them."""
        how = self.settings
        return encode_clips(
            self.model, video, mode=how.mode, precision=how.precision, selection=how.selection
        )

    def features(self, video: Tensor) -> VideoFeatures:
        """What heads read of clips `[B, T, 3, H, W]`: not projected into the shared space."""
        selection = self.settings.selection
        keep = None if selection is None else kept(self.model, video, selection)
        return self.model.video_features(video, keep)

    def collect(self, encode: Encode, reading: ReadSettings | None = None) -> Collected:
        return collect(self.model, self.examples, encode, reading or self.reading)

    def embed_videos(self, *, dim: int | None = None, with_tokens: bool = False) -> Embeddings:
        how = self.settings
        return embed_videos(
            self.model,
            self.examples,
            mode=how.mode,
            num_frames=how.num_frames,
            batch_size=how.batch_size,
            precision=how.precision,
            workers=how.workers,
            selection=how.selection,
            dim=dim,
            with_tokens=with_tokens,
            fit=how.fit,
            frame_order=self.frame_order,
            progress=self.progress,
        )

    def embed_texts(self, texts: Sequence[str], *, dim: int | None = None) -> Tensor:
        return embed_texts(self.model, self.words, texts, precision=self.settings.precision, dim=dim)

    def count_cut(self, texts: Iterable[str], encode: Callable[[list[str]], Tensor] | None = None) -> int:
        """How many distinct ones of these texts are too long for the text tower, which sees their beginning alone.

        `encode` turns texts into ids as the task does, and counts with the tokenizer; None: the tokenizer itself.
        """
        words = self.words
        before = words.truncated
        (encode or words)(list(dict.fromkeys(texts)))
        cut = words.truncated - before
        words.truncated = before
        return cut

    def refuse(self, task: Task, *names: str) -> None:
        """HarvestError where one of these settings was made, as the task has no use for it."""
        plain = EvalSettings()
        made = [name for name in names if getattr(self.settings, name) != getattr(plain, name)]
        if made:
            raise HarvestError(f"{', '.join(made)}: not a setting of {task.name}; leave it out")

    def conditions(self) -> dict[str, Any]:
        """What decides the figures beside model and data, as JSON values."""
        texts = {}
        if self.tokenizer is not None:
            config = self.tokenizer.config
            texts = {"context_length": config.context_length, "cleaning": config.clean}
        return {
            **texts,
            "num_frames": self.reading.num_frames,
            **self.model.config.video.squares,
            **({"fit": self.settings.fit} if self.settings.fit else {}),
            "precision": computed_in(self.model.log_scale.device, self.settings.precision),
            "frame_order": self.frame_order,
        }
