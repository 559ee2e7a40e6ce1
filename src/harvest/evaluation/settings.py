"""How a model is shown clips, in one place: the options that every task, `harvest evaluate` and `benchmark` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harvest.evaluation.embed import Mode
from harvest.interfaces import Fit, HarvestError
from harvest.parallel import Precision
from harvest.ranges import Range, check_ranges
from harvest.tokens import Selection, Selector, see


@dataclass(frozen=True)
class EvalSettings:
    """What a model sees of each clip, and how it is computed. Each task has settings of its own beside these."""

    image: bool = False
    """The image baseline: each frame encoded alone, embeddings averaged."""
    num_frames: Annotated[int | None, Range(least=1)] = None
    """Frames per clip; without it the model's own number."""
    budget: Annotated[int | None, Range(least=1)] = None
    """Tubelets seen of each clip; without it all."""
    selector: Selector = "motion"
    """Which tubelets are seen, with a budget; run_length sees what does not repeat, with or without one."""
    fit: Fit | None = None
    """How a picture becomes a square; without it as the model was trained (its folder says so)."""
    batch_size: Annotated[int, Range(least=1)] = 32
    """Clips, or views of classification, encoded at once."""
    precision: Precision = "fp32"
    """fp32, or bf16 autocast."""
    workers: Annotated[int, Range(least=0)] = 0
    """Processes that decode; with 0 this one does."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.image and self.selection is not None:
            raise HarvestError(
                "budget: choosing tubelets goes with videos; the image baseline sees whole frames"
            )

    @property
    def mode(self) -> Mode:
        return "image" if self.image else "video"

    @property
    def selection(self) -> Selection | None:
        """What is seen of each clip; None: all."""
        return see(self.budget, self.selector)
