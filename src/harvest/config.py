"""What a run is: frozen dataclasses, each defined beside what it sets, merged here; and config <-> file.

A run is a Python function in `recipes/`. The command line overrides its leaves, the merged config is written
into the run folder as config.json, and that file can be given back to `harvest train --config`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Union

import torch

from harvest import settings
from harvest.data.dataset import DataConfig
from harvest.data.miniworld import MiniWorldConfig
from harvest.interfaces import HarvestError
from harvest.model.adaptation import AdaptConfig
from harvest.objectives import OBJECTIVES
from harvest.objectives.contract import Objective
from harvest.objectives.starting import StartConfig as StartConfig
from harvest.parallel import Parallel, Precision
from harvest.ranges import Range, check_ranges
from harvest.settings import from_dict as from_dict
from harvest.settings import to_json as to_json
from harvest.tokens import SELECTORS, DropRatio, Selection, Selector
from harvest.training.optim import OptimConfig, lr_at
from harvest.training.vary import VaryConfig, value_at

if TYPE_CHECKING:
    ObjectiveConfig = Objective
else:
    ObjectiveConfig = Union[OBJECTIVES]  # noqa: UP007  the tuple is not known before it is imported


@dataclass(frozen=True)
class LoopConfig:
    steps: Annotated[int, Range(least=1)] = 100_000
    """Steps of the main part; `tuning.steps` come on top."""
    global_batch: Annotated[int, Range(least=1)] = 1024
    """Clips a step over all ranks."""
    seed: int = 0
    precision: Precision = "bf16"
    """bf16 or fp16 autocast, or fp32. fp16 is for GPUs before Ampere: its losses are scaled, and a step whose gradients
    overflow changes nothing but the scale. Not with parallel fsdp."""
    parallel: Parallel = "ddp"
    """On several processes: ddp keeps the model whole on each, fsdp shares weights, gradients and moments (FSDP2)."""
    compile: bool | None = None
    """Compile the transformer blocks (torch.compile): minutes of start-up, then faster steps. None: on a GPU, where
    Triton is installed."""
    deterministic: bool = False
    """On a GPU, kernels that give the same result each time, and the draws that a CPU makes: a run that is repeated or
    resumed on the same GPUs is then the same to the bit, and slower. What has no such kernel is refused by PyTorch. On a CPU
    every run is so."""
    checkpointing: bool = False
    """Recompute the video blocks' activations in the backward pass: less memory, a third more work."""
    average_decay: Annotated[float | None, Range(above=0, below=1)] = None
    """The model that a run ends with is an exponential moving average of its weights, which keeps this share of itself
    in every step, e.g. 0.9999; None is none."""
    threads: Annotated[int | None, Range(least=1)] = None
    """Threads PyTorch computes with; None leaves its default. Loader workers want cores too."""
    save_every: Annotated[int, Range(least=1)] = 1000
    keep_last: Annotated[int, Range(least=1)] = 2
    log_every: Annotated[int, Range(least=1)] = 20

    def __post_init__(self) -> None:
        check_ranges(self, "loop")
        if self.precision == "fp16" and self.parallel == "fsdp":
            raise HarvestError(
                "loop.precision fp16 scales its losses, which FSDP does not go with here: bf16, or ddp"
            )

    def compiles_on(self, device: torch.device) -> bool:
        """Whether the transformer blocks are compiled for a device."""
        if self.compile is not None:
            return self.compile
        return device.type == "cuda" and find_spec("triton") is not None


@dataclass(frozen=True)
class TuningConfig:
    """A short last stage that sees more of each clip (ViCLIP's unmasked tuning)."""

    steps: Annotated[int, Range(least=0)] = 0
    drop_ratio: DropRatio = 0.0
    selector: Selector | None = None
    """Who picks what is seen in this stage; None: as before. At test time nobody picks, so chance comes nearest to it."""
    lr: Annotated[float, Range(least=0)] = 1e-7
    global_batch: Annotated[int | None, Range(least=1)] = None

    def __post_init__(self) -> None:
        check_ranges(self, "tuning")


@dataclass(frozen=True)
class EvalConfig:
    """Scores on clips held out, while a run trains: in metrics.jsonl and TensorBoard. The best model so far is RUN/best."""

    data: tuple[str, ...] = ()
    """Manifests or shards to score: rows with options and a label as multiple choice, others as retrieval. The first
    decides which model is the best, by its accuracy or its text-to-video R@1. mini-world/PART is a part of the mini-world."""
    videos: str | None = None
    """Folder that their paths are relative to; without it the manifest's own."""
    every: Annotated[int, Range(least=1)] = 1000
    """Steps from one evaluation to the next; the first is before step 1, the last at the end."""

    def __post_init__(self) -> None:
        check_ranges(self, "eval")


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
    eval: EvalConfig = field(default_factory=EvalConfig)
    blend: Annotated[float, Range(least=0, most=1)] = 1.0
    """Share of the trained weights in the final model; the rest is the image model's (weight interpolation)."""
    world: MiniWorldConfig = field(default_factory=MiniWorldConfig)
    """The mini-world to generate where `data.train` is `mini-world`."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (
        "data.workers",
        "data.changed_ok",
        "data.max_broken_ratio",
        "data.video_limit_s",
        "objective.text_store",
        "loop.parallel",
        "loop.compile",
        "loop.threads",
        "loop.save_every",
        "loop.keep_last",
        "loop.log_every",
        "eval.data",
        "eval.videos",
        "eval.every",
    )
    """How a run is kept may differ when it is resumed; what it computes may not."""

    def __post_init__(self) -> None:
        check_ranges(self)
        frames, sizes = self.data.num_frames, {"start.tubelet_size": self.start.tubelet_size}
        if self.start.scratch is not None:
            sizes["start.scratch.video.tubelet_size"] = self.start.scratch.video.tubelet_size
        for name, size in sizes.items():
            if frames % size:
                raise HarvestError(f"data.num_frames {frames} is not a multiple of {name} {size}")
        for num_frames in self.vary.num_frames:
            if num_frames > frames or num_frames % self._tubelet_size:
                raise HarvestError(
                    f"vary.num_frames: expected multiples of {self._tubelet_size}, the frames of a tubelet, up to "
                    f"data.num_frames {frames}, got {num_frames}"
                )
        if self.blend < 1 and self.adapt.how == "adapter":
            raise HarvestError(
                "blend mixes weights of one shape, and adapters widen the tower: adapt.how lora or full"
            )
        self.objective.needs.check(self)

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
        selection = self.objective.needs.selection
        if step < self.loop.steps:
            budget = self._varied(self.vary.budgets, step, 0)
            return selection if budget is None else dataclasses.replace(selection, budget=budget)
        # Where the content decides, a last stage that sees all would still leave out repeats.
        by_content = SELECTORS[selection.selector].by_content
        selector = self.tuning.selector or ("random" if by_content else selection.selector)
        return dataclasses.replace(
            selection, drop_ratio=self.tuning.drop_ratio, budget=None, selector=selector
        )

    def num_frames_at(self, step: int) -> int | None:
        """Frames of each clip that a step sees; None for all that are read."""
        return self._varied(self.vary.num_frames, step, 1) if step < self.loop.steps else None

    def image_size_at(self, step: int) -> int | None:
        """The side of the frames that a step sees, in pixels; None for the model's own."""
        return self._varied(self.vary.image_sizes, step, 2) if step < self.loop.steps else None

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, that of the last stage included."""
        return lr_at(
            step,
            config=self.optim,
            steps=self.total_steps,
            tuning_from=self.loop.steps if self.tuning.steps else None,
            tuning_lr=self.tuning.lr,
        )

    def _varied(self, values: tuple[int, ...], step: int, draw: int) -> int | None:
        return value_at(
            values, step, order=self.vary.order, steps=self.loop.steps, seed=self.loop.seed, draw=draw
        )


def read_config(path: Path) -> RunConfig:
    """A config.json back into a RunConfig; an unknown key is an error that names the nearest known one."""
    return settings.read_settings(RunConfig, path)  # type: ignore[no-any-return]


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """Settings in which two runs compute different things, as `name: a there, b asked for`."""
    return settings.differences(a, b, free=RunConfig.FREE_TO_CHANGE)
