"""Zero-shot recognition: class names put into prompt templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.labels import check_labels, class_names_of
from harvest.evaluation.embed import cosines, embed_texts
from harvest.evaluation.metrics import choice_credit, mean_class_accuracy
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation
from harvest.interfaces import HarvestError
from harvest.model.matryoshka import shorten
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision

TEMPLATES = ("a video of {}",)
Averaging = Literal["vectors", "cosines"]
"""Of a class's prompts: their vectors, and the mean made unit length (CLIP, 3.1.4); or a clip's cosines with each
(ViCLIP), where classes whose prompts lie far apart score lower."""


def embed_classes(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    average: Averaging = "vectors",
    dim: int | None = None,
    precision: Precision = "fp32",
) -> Tensor:
    """A vector a class, `[n, dim]`: the mean of the unit embeddings of its prompts, for `vectors` of unit length."""
    pooled = embed_texts(model, tokenizer, prompts_of(class_names, templates), precision=precision)
    pooled = pooled.view(len(class_names), len(templates), -1)
    if average == "cosines":
        return shorten(pooled, dim).mean(dim=1)
    return shorten(F.normalize(pooled.mean(dim=1), dim=-1), dim)


def prompts_of(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template with every name, class by class."""
    return [template.replace("{}", name) for name in class_names for template in templates]


@dataclass(frozen=True)
class RecognitionTask:
    """Which class's prompt is nearest to the clip? `Example.label` is the index of its class in the names.

    Without names they are read off the examples (`class_names_of`).
    """

    name: ClassVar[str] = "recognition"
    scored_by: ClassVar[str] = "embeddings of prompts"
    benchmarks: ClassVar[tuple[str, ...]] = ("recognition",)
    names_in: ClassVar[str] = "class_names"
    reads_head: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = False

    templates: tuple[str, ...] = TEMPLATES
    """Prompts with {} for the class; several are averaged."""
    average: Averaging = "vectors"
    """vectors: of a class's prompts (CLIP). cosines: of a clip with each of them (ViCLIP)."""
    dim: int | None = None
    """Compare the first entries of the embeddings, this many; for models trained with objective.dims."""

    def __post_init__(self) -> None:
        if not self.templates or any("{}" not in template for template in self.templates):
            raise HarvestError(f"templates need a {{}} where the class name goes: {list(self.templates)}")

    def check(self, given: Evaluation) -> None:
        check_labels(given.examples, len(self._names(given)))

    def _names(self, given: Evaluation) -> list[str]:
        return class_names_of(given.examples) if given.names is None else list(given.names)

    def score(self, given: Evaluation) -> Result:
        names = self._names(given)
        videos = given.embed_videos(dim=self.dim)
        asked = [place for place, row in enumerate(videos.row.tolist()) if row >= 0]
        rows = videos.row[asked]
        label = torch.tensor([given.examples[place].label for place in asked])
        classes = embed_classes(
            given.model,
            given.words,
            names,
            templates=self.templates,
            average=self.average,
            dim=self.dim,
            precision=given.settings.precision,
        )
        scores = cosines(videos.pooled[rows], classes)
        top1, top5 = choice_credit(scores, label), choice_credit(scores, label, k=5)
        return Result(
            self.name,
            given.settings.mode,
            f"Zero-shot: the class with the highest cosine of embeddings among {len(names)}, {len(self.templates)} "
            f"prompt templates a class, their {self.average} averaged; {given.shown}.",
            metrics={
                "top1": float(top1.mean()),
                "top5": float(top5.mean()),
                "mean_class": mean_class_accuracy(top1, label),
                "chance": 1 / len(names),
            },
            counts={
                "clips": len(asked),
                "classes": len(names),
                "classes_that_occur": len(torch.unique(label)),
                "texts_cut": given.count_cut(prompts_of(names, self.templates)),
                "examples_missing": int((videos.row < 0).sum()),
            },
            credits={"top1": Credits(top1, rows), "top5": Credits(top5, rows)},
            missing=videos.broken,
        )
