"""What a run is: frozen dataclasses, each defined beside what it sets, merged here; and config <-> file.

A run is a Python function in `recipes.py`. The command line overrides its leaves, the merged config is written
into the run folder as config.json, and that file can be given back to `harvest train --config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harvest.data.dataset import DataConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.interfaces import HarvestError
from harvest.model.adaptation import AdaptConfig
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
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
from harvest.parallel import Parallel, Precision
from harvest.tokens import Selection, Selector
from harvest.training.optim import OptimConfig
from harvest.training.vary import VaryConfig, value_at

ObjectiveConfig = (
    PostPretrainingConfig
    | ImageTextConfig
    | MaskedAlignmentConfig
    | MultimodalConfig
    | ClassificationConfig
    | QuestionAnsweringConfig
    | AnswerDecodingConfig
    | PixelReconstructionConfig
    | MultipleChoiceConfig
    | DetectionConfig
)


@dataclass(frozen=True)
class StartConfig:
    """The model a run starts from."""

    model: str = "openai/clip-vit-base-patch16"
    """A hub name, a folder in the transformers, OpenCLIP or Harvest layout, a run folder, a state-dict file,
    `mini-image` (the mini-world's own, shipped with Harvest), or `scratch`."""
    vocabulary: str | None = None
    """CLIP's bpe_simple_vocab_16e6.txt.gz or BERT's vocab.txt, for weights that come without a tokenizer."""
    tubelet_size: int = 1
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
        sizes = {"start.tubelet_size": self.tubelet_size}
        if self.scratch is not None:
            sizes["start.scratch.video.tubelet_size"] = self.scratch.video.tubelet_size
        for name, size in sizes.items():
            if size < 1:
                raise HarvestError(f"{name} must be at least 1, got {size}")


@dataclass(frozen=True)
class LoopConfig:
    steps: int = 100_000
    """Steps of the main part; `tuning.steps` come on top."""
    global_batch: int = 1024
    """Clips a step over all ranks."""
    seed: int = 0
    precision: Precision = "bf16"
    parallel: Parallel = "ddp"
    """On several processes: ddp keeps the model whole on each, fsdp shares weights, gradients and moments (FSDP2)."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile): minutes of start-up, then faster steps."""
    checkpointing: bool = False
    """Recompute the video blocks' activations in the backward pass: less memory, a third more work."""
    average_decay: float | None = None
    """The model that a run ends with is an exponential moving average of its weights, which keeps this share of itself
    in every step, e.g. 0.9999; None is none."""
    threads: int | None = None
    """Threads PyTorch computes with; None leaves its default. Loader workers want cores too."""
    save_every: int = 1000
    keep_last: int = 2
    log_every: int = 20


@dataclass(frozen=True)
class TuningConfig:
    """A short last stage that sees more of each clip (ViCLIP's unmasked tuning)."""

    steps: int = 0
    drop_ratio: float = 0.0
    selector: Selector | None = None
    """Who picks what is seen in this stage; None: as before. At test time nobody picks, so chance comes nearest to it."""
    lr: float = 1e-7
    global_batch: int | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes, and how it is kept."""

    recipe: str
    objective: ObjectiveConfig
    start: StartConfig = field(default_factory=StartConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    vary: VaryConfig = field(default_factory=VaryConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    blend: float = 1.0
    """Share of the trained weights in the final model; the rest is the image model's (weight interpolation)."""
    world: MiniWorldConfig = field(default_factory=MiniWorldConfig)
    """The mini-world to generate where `data.train` is `mini-world`."""

    def __post_init__(self) -> None:
        if self.data.num_frames % self.start.tubelet_size:
            raise HarvestError(
                f"data.num_frames {self.data.num_frames} is not a multiple of start.tubelet_size {self.start.tubelet_size}"
            )
        sizes = self.start.scratch
        if sizes is not None and self.data.num_frames % sizes.video.tubelet_size:
            raise HarvestError(
                f"data.num_frames {self.data.num_frames} is not a multiple of start.scratch.video.tubelet_size "
                f"{sizes.video.tubelet_size}"
            )
        if self.loop.average_decay is not None and not 0 < self.loop.average_decay < 1:
            raise HarvestError(
                f"loop.average_decay: expected more than 0 and less than 1, got {self.loop.average_decay}"
            )
        if self.blend < 1 and self.adapt.how == "adapter":
            raise HarvestError(
                "blend mixes weights of one shape, and adapters widen the tower: adapt.how lora or full"
            )
        data = self.data
        is_fixed = data.times == "middle" and data.crop_scale == (1.0, 1.0) and not data.flip
        is_fixed = is_fixed and data.rand_augment == 0
        if getattr(self.objective, "teacher_cache", None) is not None and not is_fixed:
            raise HarvestError(
                "objective.teacher_cache holds for clips that look the same each time: give --data.times middle "
                "--data.crop-scale 1 1 --data.no-flip, and no RandAugment"
            )
        if not 0 <= self.blend <= 1:
            raise HarvestError(
                f"blend must be between 0 (image model) and 1 (trained model), got {self.blend}"
            )
        for name, value in (
            ("loop.steps", self.loop.steps),
            ("loop.global_batch", self.loop.global_batch),
            ("loop.save_every", self.loop.save_every),
            ("loop.log_every", self.loop.log_every),
            ("loop.keep_last", self.loop.keep_last),
            ("loop.threads", self.loop.threads),
        ):
            if value is not None and value < 1:
                raise HarvestError(f"{name} must be at least 1, got {value}")
        if self.vary.image_sizes and isinstance(self.objective, MaskedAlignmentConfig):
            raise HarvestError(
                "vary.image_sizes: a student and its teacher divide every frame alike; leave them out beside a teacher"
            )
        for num_frames in self.vary.num_frames:
            if num_frames > self.data.num_frames or num_frames % self._tubelet_size:
                raise HarvestError(
                    f"vary.num_frames: expected multiples of {self._tubelet_size}, the frames of a tubelet, up to "
                    f"data.num_frames {self.data.num_frames}, got {num_frames}"
                )
        if self.tuning.steps < 0 or not 0 <= self.tuning.drop_ratio < 1:
            raise HarvestError(
                f"tuning: expected steps of at least 0 and a drop_ratio of 0 or more and less than 1, "
                f"got {self.tuning.steps} and {self.tuning.drop_ratio}"
            )
        caches_texts = isinstance(self.objective, PostPretrainingConfig) and self.objective.cache_texts
        if caches_texts and self.data.images:
            raise HarvestError(
                "data.images brings captions that the cache of the clips' does not hold: set objective.cache_texts False"
                " (and objective.text_bank 0)"
            )
        rebuilds = isinstance(self.objective, PixelReconstructionConfig)
        if rebuilds and self.tuning.steps and self.tuning.drop_ratio == 0:
            raise HarvestError(
                "tuning.drop_ratio: the last stage, too, must hide something for it to be rebuilt: set it, or"
                " tuning.steps 0"
            )

    @property
    def _tubelet_size(self) -> int:
        return self.start.scratch.video.tubelet_size if self.start.scratch else self.start.tubelet_size

    @property
    def total_steps(self) -> int:
        return self.loop.steps + self.tuning.steps

    @property
    def global_batches(self) -> tuple[tuple[int, int], ...]:
        """(first step, clips a step) of each stage."""
        if self.tuning.steps and self.tuning.global_batch:
            return ((0, self.loop.global_batch), (self.loop.steps, self.tuning.global_batch))
        return ((0, self.loop.global_batch),)

    def selection_at(self, step: int) -> Selection:
        """What a step sees of each clip."""
        objective = self.objective
        selection = objective if isinstance(objective, Selection) else Selection(objective.drop_ratio)
        if step < self.loop.steps:
            budget = self._varied(self.vary.budgets, step, 0)
            return selection if budget is None else dataclasses.replace(selection, budget=budget)
        # With run_length, a last stage that sees all would still leave out repeats.
        selector = self.tuning.selector or (
            "random" if selection.selector == "run_length" else selection.selector
        )
        return dataclasses.replace(
            selection, drop_ratio=self.tuning.drop_ratio, budget=None, selector=selector
        )

    def num_frames_at(self, step: int) -> int | None:
        """Frames of each clip that a step sees; None for all that are read."""
        return self._varied(self.vary.num_frames, step, 1) if step < self.loop.steps else None

    def image_size_at(self, step: int) -> int | None:
        """The side of the frames that a step sees, in pixels; None for the model's own."""
        return self._varied(self.vary.image_sizes, step, 2) if step < self.loop.steps else None

    def _varied(self, values: tuple[int, ...], step: int, draw: int) -> int | None:
        return value_at(
            values, step, order=self.vary.order, steps=self.loop.steps, seed=self.loop.seed, draw=draw
        )


# How a run is kept may differ when it goes on; what it computes may not.
FREE_TO_CHANGE = (
    "data.workers",
    "data.max_broken_ratio",
    "data.video_limit_s",
    "loop.parallel",
    "loop.threads",
    "loop.save_every",
    "loop.keep_last",
    "loop.log_every",
)


def to_json(config: RunConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=1)


def read_config(path: Path) -> RunConfig:
    """A config.json back into a RunConfig; an unknown key is an error that names the nearest known one."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise HarvestError(f"{path}: no such config file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HarvestError(f"{path} is not valid JSON: {error}") from None
    return from_dict(RunConfig, values, where=str(path))  # type: ignore[no-any-return]


def from_dict(kind: Any, values: Any, *, where: str, path: str = "") -> Any:
    """Structure plain JSON values as `kind`: dataclasses, unions of them, tuples, mappings and leaves."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_from(kind, values, where=where, path=path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if values is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        if len(choices) > 1 and isinstance(values, Mapping):
            choices.sort(key=lambda choice: _fit(choice, values), reverse=True)
        return from_dict(choices[0], values, where=where, path=path)
    if origin is tuple:
        return _tuple_from(arguments, values, where=where, path=path)
    if origin is Mapping:
        if not isinstance(values, dict):
            raise HarvestError(f"{where}: {path} must be an object with settings, got {values!r}")
        return {k: from_dict(arguments[1], v, where=where, path=f"{path}.{k}") for k, v in values.items()}
    if kind is float and type(values) is int:
        return float(values)
    leaf = {float: float, int: int, str: str, bool: bool}.get(kind)
    if leaf is not None and type(values) is not leaf:
        raise HarvestError(f"{where}: {path} must be {leaf.__name__}, got {values!r}")
    if origin is Literal and values not in arguments:
        raise HarvestError(
            f"{where}: {path} must be one of {', '.join(map(repr, arguments))}, got {values!r}"
        )
    return values


def _fit(kind: Any, values: Mapping[str, Any]) -> tuple[int, int]:
    """How well a dataclass fits an object: it knows most of the keys, and of those that do it lacks the fewest."""
    known = {f.name for f in dataclasses.fields(kind)}
    return len(values.keys() & known), -len(known - values.keys())


def _tuple_from(kinds: tuple[Any, ...], values: Any, *, where: str, path: str) -> tuple[Any, ...]:
    if isinstance(values, list) and len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if not isinstance(values, list) or len(values) != len(kinds):
        raise HarvestError(f"{where}: {path} must be a list of {len(kinds)} values, got {values!r}")
    return tuple(
        from_dict(kind, value, where=where, path=path) for kind, value in zip(kinds, values, strict=True)
    )


def _dataclass_from(kind: Any, values: Any, *, where: str, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise HarvestError(f"{where}: {path or 'the file'} must be an object with settings, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise HarvestError(f"{where}: unknown setting {path + '.' if path else ''}{key}; {hint}")
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - values.keys()):
        raise HarvestError(f"{where}: {path or 'the file'} lacks {', '.join(missing)}")
    return kind(
        **{
            key: from_dict(hints[key], value, where=where, path=f"{path}.{key}" if path else key)
            for key, value in values.items()
        }
    )


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """Settings in which two runs compute different things, as `name: a here, b there`."""
    flat_a, flat_b = _flat(dataclasses.asdict(a)), _flat(dataclasses.asdict(b))
    return [
        f"{key}: {flat_a.get(key)!r} there, {flat_b.get(key)!r} asked for"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key) and key not in FREE_TO_CHANGE
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
