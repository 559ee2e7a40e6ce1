"""Multiple choice: which of a clip's options describes it?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harvest.evaluation.embed import Embeddings, cosines, embed_texts
from harvest.evaluation.matching import read_pairs
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.retrieval import looked
from harvest.interfaces import Example, HarvestError
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision

MATCHING_SHARE = 0.7
"""Of the matching head in its mixture with the cosines (UMT's MSRVTT-MC)."""


def choice(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    videos: Embeddings,
    *,
    groups: Mapping[str, str] | None = None,
    with_matching: bool = False,
    precision: Precision = "fp32",
) -> Result:
    """Pick among `Example.texts` the one nearest to the clip; `Example.label` is the index of the right one.

    `chance` is the mean of one over the number of options. `groups`, example id to a group's name, adds the
    accuracy of every group. `with_matching` adds the accuracy by the matching head, and by its mixture with the cosines
    (`MATCHING_SHARE`); it needs the videos' tokens.
    """
    check_options(examples)
    asked = [place for place, row in enumerate(videos.row.tolist()) if row >= 0]
    rows = videos.row[asked]
    num_options = torch.tensor([len(examples[place].texts) for place in asked])
    options = [text for place in asked for text in examples[place].texts]
    pooled = embed_texts(model, tokenizer, options, precision=precision, dim=videos.pooled.shape[1])
    scores = torch.full((len(asked), int(num_options.max())), -math.inf)
    start = 0
    for question, (row, count) in enumerate(zip(rows.tolist(), num_options.tolist(), strict=True)):
        scores[question, :count] = cosines(videos.pooled[row : row + 1], pooled[start : start + count])[0]
        start += count
    credit = choice_credit(scores, torch.tensor([examples[place].label for place in asked]))
    metrics = {"accuracy": float(credit.mean()), "chance": float((1 / num_options.double()).mean())}
    credits = {"accuracy": Credits(credit, rows)}
    protocol = (
        f"The option with the highest cosine of embeddings, of n best ones each with 1/n; {looked(videos)}."
    )
    if with_matching:
        label = torch.tensor([examples[place].label for place in asked])
        matched, mixed = _matching_scores(
            model, tokenizer, [examples[place].texts for place in asked], rows, scores, videos, precision
        )
        for name, other in (("matching", matched), ("mixture", mixed)):
            found = choice_credit(other, label)
            metrics[f"accuracy.{name}"] = float(found.mean())
            credits[f"accuracy.{name}"] = Credits(found, rows)
        protocol += (
            f" matching: the option that the matching head finds likeliest. mixture: {MATCHING_SHARE:g} of its "
            f"probability and {1 - MATCHING_SHARE:g} of the softmax of the scaled cosines over the options."
        )
    counts = {
        "questions": len(asked),
        "questions_tied": int(((scores == scores.amax(dim=1, keepdim=True)).sum(dim=1) > 1).sum()),
        "videos": len(videos.pooled),
        "examples_missing": int((videos.row < 0).sum()),
    }
    if groups is not None:
        names = [groups.get(examples[place].id, "other") for place in asked]
        for name in sorted(set(names)):
            members = torch.tensor([name == other for other in names])
            metrics[f"accuracy.{name}"] = float(credit[members].mean())
            credits[f"accuracy.{name}"] = Credits(credit[members], rows[members])
            counts[f"questions.{name}"] = int(members.sum())
    return Result(
        task="choice",
        mode=videos.mode,
        protocol=protocol,
        metrics=metrics,
        counts=counts,
        credits=credits,
        missing=videos.broken,
    )


def _matching_scores(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    options: Sequence[Sequence[str]],
    rows: Tensor,
    cosine: Tensor,
    videos: Embeddings,
    precision: Precision,
) -> tuple[Tensor, Tensor]:
    """The probability of a match of every option `[Q, n]` and its mixture with the cosines `[Q, n]`, -inf where none."""
    is_option = cosine > -math.inf
    texts = [text for some in options for text in some]
    owner = rows.repeat_interleave(is_option.sum(dim=1))
    is_asked = owner[:, None] == torch.arange(len(videos.pooled))
    read = read_pairs(model, tokenizer, texts, videos, is_asked, precision=precision)
    matched = torch.full_like(cosine, -math.inf)
    matched[is_option] = read.logits.softmax(dim=1)[:, 1][read.texts.argsort()]
    with torch.no_grad():
        one = torch.ones(1, 1, device=model.log_scale.device)
        scale = float(model.scores(one, one) - model.scores(0 * one, one))
    by_cosine = (cosine * scale).softmax(dim=1)
    mixed = torch.where(is_option, MATCHING_SHARE * matched + (1 - MATCHING_SHARE) * by_cosine, matched)
    return matched, mixed


def check_options(examples: Sequence[Example]) -> None:
    """Raise HarvestError at the first example that is not a multiple-choice question."""
    for example in examples:
        if len(example.texts) < 2 or example.label is None or not 0 <= example.label < len(example.texts):
            raise HarvestError(
                f"example {example.id!r} is not a multiple-choice question: it needs two or more texts, the "
                f"options, and a label from 0, the index of the right one; it has {len(example.texts)} texts "
                f"and label {example.label}"
            )
