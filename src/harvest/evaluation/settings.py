"""How a model is scored, in one place: the options that `harvest evaluate` and `harvest benchmark` share."""

from __future__ import annotations

from dataclasses import dataclass

from harvest.evaluation.embed import Mode
from harvest.interfaces import HarvestError
from harvest.parallel import Precision
from harvest.tokens import Selection, Selector, see


def check_counts(**counts: int | None) -> None:
    """HarvestError that names the first of the settings that is less than 1; None is a setting that was not made."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise HarvestError(f"{name}: expected at least 1, got {value}")


@dataclass(frozen=True)
class EvalSettings:
    """What a model is shown of each clip, and which figures stand beside the plain ones."""

    image: bool = False
    """The image baseline: each frame encoded alone, embeddings averaged."""
    num_frames: int | None = None
    """Frames a clip; without it the model's own number."""
    budget: int | None = None
    """Tubelets seen of each clip; without it all."""
    selector: Selector = "motion"
    """Which tubelets are seen, with a budget; run_length sees what does not repeat, with or without one."""
    dim: int | None = None
    """Compare the first so many entries of the embeddings; for models trained with objective.dims."""
    num_clips: int = 1
    """Of classification: views in time, whose probabilities are averaged."""
    num_crops: int = 1
    """Of classification: views along the picture's longer side."""
    dual_softmax: bool = False
    """Of retrieval: beside the plain figures those after dual softmax, which needs all queries at once."""
    rerank_top_k: int = 0
    """Of retrieval: re-order the so many items nearest to each query by the matching head, as columns of their own."""
    matching: bool = False
    """Of choice: beside the cosines the matching head, and its mixture with them."""
    batch_size: int = 32
    """Clips, or views of classification, encoded at once."""
    precision: Precision = "fp32"
    """fp32, or bf16 autocast."""
    workers: int = 0
    """Processes that decode; with 0 this one does."""

    def __post_init__(self) -> None:
        check_counts(
            num_frames=self.num_frames,
            num_clips=self.num_clips,
            num_crops=self.num_crops,
            batch_size=self.batch_size,
        )
        for name in ("rerank_top_k", "workers"):
            if getattr(self, name) < 0:
                raise HarvestError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    @property
    def mode(self) -> Mode:
        return "image" if self.image else "video"

    @property
    def selection(self) -> Selection | None:
        """What is seen of each clip; None: all."""
        return see(self.budget, self.selector)

    def refuse(self, task: str, *names: str) -> None:
        """HarvestError where one of these settings is not what it is by itself, as `task` has no use for it."""
        given = [name for name in names if getattr(self, name) != getattr(DEFAULT, name)]
        if given:
            raise HarvestError(f"{', '.join(given)}: not a setting of {task}; leave it out")


DEFAULT = EvalSettings()
"""A plain score of the whole clip, embeddings alone."""
