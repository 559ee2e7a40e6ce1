"""Zero-shot recognition: class names put into prompt templates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.labels import check_labels, class_names_of
from harvest.evaluation.embed import Embeddings, cosines, embed_texts
from harvest.evaluation.metrics import choice_credit, mean_class_accuracy
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.retrieval import looked
from harvest.interfaces import Example, HarvestError
from harvest.model.matryoshka import shorten
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision

TEMPLATES = ("a video of {}",)


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
    check_labels(examples, len(names))
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
        credits={"top1": Credits(top1, rows), "top5": Credits(top5, rows)},
        missing=videos.broken,
    )
