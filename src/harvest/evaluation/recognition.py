"""Zero-shot recognition: class names put into prompt templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.evaluation.embed import Embeddings, cosines, embed_texts, shorten
from harvest.evaluation.metrics import bootstrap_interval, choice_credit, mean_class_accuracy
from harvest.evaluation.result import Result
from harvest.evaluation.retrieval import looked
from harvest.interfaces import Example, HarvestError
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision

TEMPLATES = ("a video of {}",)


def read_class_names(path: str | Path) -> list[str]:
    """Class names in the order of their labels: a JSON list, or text with one name a line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HarvestError(f"cannot read class names from {path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except json.JSONDecodeError as error:
            raise HarvestError(f"{path} begins as a JSON list and is none: {error}") from error
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) for name in names):
        raise HarvestError(f"{path}: expected a list of class names, one a line or a JSON list of strings")
    return list(names)


def class_names_of(examples: Sequence[Example]) -> list[str]:
    """Class names from a manifest in which the text of every labelled example is its class's name."""
    names: dict[int, str] = {}
    for example in examples:
        if example.label is None or len(example.texts) != 1:
            raise HarvestError(
                f"example {example.id!r} has label {example.label} and {len(example.texts)} texts; without a list "
                "of class names every example needs a label and one text, the name of its class"
            )
        if names.setdefault(example.label, example.texts[0]) != example.texts[0]:
            raise HarvestError(
                f"label {example.label} is called both {names[example.label]!r} and {example.texts[0]!r}: "
                "give the class names as a list"
            )
    absent = sorted(set(range(max(names) + 1)) - names.keys())
    if absent:
        raise HarvestError(
            f"labels {absent[:8]} do not occur, so their names are unknown: give the class names as a list"
        )
    return [names[label] for label in range(len(names))]


def embed_classes(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    precision: Precision = "fp32",
) -> Tensor:
    """A unit vector a class, `[n, E]`: the mean of the unit embeddings of its prompts, made unit length (CLIP, 3.1.4)."""
    if not templates or any("{}" not in template for template in templates):
        raise HarvestError(f"templates need a {{}} where the class name goes: {list(templates)}")
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    pooled = embed_texts(model, tokenizer, prompts, precision=precision)
    return F.normalize(pooled.view(len(class_names), len(templates), -1).mean(dim=1), dim=-1)


def recognition(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    videos: Embeddings,
    *,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    precision: Precision = "fp32",
) -> Result:
    """Which class's prompt is nearest to the clip? `Example.label` is the index of its class in `class_names`.

    Without `class_names` they are read off the examples (`class_names_of`).
    """
    names = class_names_of(examples) if class_names is None else list(class_names)
    check_labels(examples, names)
    asked = [place for place, row in enumerate(videos.row.tolist()) if row >= 0]
    rows = videos.row[asked]
    label = torch.tensor([examples[place].label for place in asked])
    classes = embed_classes(model, tokenizer, names, templates=templates, precision=precision)
    classes = shorten(classes, videos.pooled.shape[1])
    scores = cosines(videos.pooled[rows], classes)
    top1, top5 = choice_credit(scores, label), choice_credit(scores, label, k=5)
    return Result(
        task="recognition",
        mode=videos.mode,
        protocol=(
            f"Zero-shot: the class with the highest cosine of embeddings among {len(names)}, {len(templates)} "
            f"prompt templates a class; {looked(videos)}."
        ),
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
            "examples_missing": int((videos.row < 0).sum()),
        },
        intervals={"top1": bootstrap_interval(top1, rows), "top5": bootstrap_interval(top5, rows)},
        missing=videos.broken,
    )


def check_labels(examples: Sequence[Example], class_names: Sequence[str]) -> None:
    """Raise HarvestError at the first example whose label is no class."""
    for example in examples:
        if example.label is None or not 0 <= example.label < len(class_names):
            raise HarvestError(
                f"example {example.id!r} has label {example.label}, the classes go from 0 to {len(class_names) - 1}"
            )
