"""Multiple choice: which of a clip's options describes it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harvest.evaluation.embed import Embeddings, cosines
from harvest.evaluation.matching import need_matching, read_pairs, similarity_scale
from harvest.evaluation.metrics import choice_credit
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation
from harvest.interfaces import Example, HarvestError

MATCHING_WEIGHT = 0.7
"""Of the matching head in its mixture with the cosines (UMT's MSRVTT-MC)."""


@dataclass(frozen=True)
class MultipleChoiceTask:
    """Pick among `Example.texts` the one nearest to the clip; `Example.label` is the index of the right one.

    `chance` is the mean of one over the number of options. Groups of examples have accuracies of their own.
    """

    name: ClassVar[str] = "choice"
    scored_by: ClassVar[str] = "embeddings only"
    benchmarks: ClassVar[tuple[str, ...]] = ("choice",)
    names_in: ClassVar[str] = ""
    reads_head: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = True

    matching: bool = False
    """Add the accuracy by the matching head, and by its mixture with the cosines (0.7 to 0.3, UMT)."""
    dim: int | None = None
    """Compare the first entries of the embeddings, this many; for models trained with objective.dims."""

    def check(self, given: Evaluation) -> None:
        if self.matching:
            need_matching(given.model, given.settings.selection)
        check_options(given.examples)

    def score(self, given: Evaluation) -> Result:
        return self.of_embeddings(given, given.embed_videos(dim=self.dim, with_tokens=self.matching))

    def of_embeddings(self, given: Evaluation, videos: Embeddings) -> Result:
        """The result from videos that are embedded already; the matching head needs their tokens."""
        examples = given.examples
        asked = [place for place, row in enumerate(videos.row.tolist()) if row >= 0]
        rows = videos.row[asked]
        label = torch.tensor([examples[place].label for place in asked])
        num_options = torch.tensor([len(examples[place].texts) for place in asked])
        options = [text for place in asked for text in examples[place].texts]
        pooled = given.embed_texts(options, dim=videos.pooled.shape[1])
        scores = torch.full((len(asked), int(num_options.max())), -math.inf)
        start = 0
        for question, (row, count) in enumerate(zip(rows.tolist(), num_options.tolist(), strict=True)):
            scores[question, :count] = cosines(videos.pooled[row : row + 1], pooled[start : start + count])[0]
            start += count
        credit = choice_credit(scores, label)
        credits = {"accuracy": credit}
        protocol = (
            f"The option with the highest cosine of embeddings, of n best ones each with 1/n; {given.shown}."
        )
        if self.matching:
            matched, mixed = _matching_scores(given, options, rows, scores, videos)
            credits |= {
                "accuracy.matching": choice_credit(matched, label),
                "accuracy.mixture": choice_credit(mixed, label),
            }
            protocol += (
                f" matching: the option that the matching head finds likeliest. mixture: {MATCHING_WEIGHT:g} of its "
                f"probability and {1 - MATCHING_WEIGHT:g} of the softmax of the scaled cosines over the options."
            )
        counts = {
            "questions": len(asked),
            "questions_tied": int(((scores == scores.amax(dim=1, keepdim=True)).sum(dim=1) > 1).sum()),
            "videos": len(videos.pooled),
            "texts_cut": given.count_cut(options),
            "examples_missing": int((videos.row < 0).sum()),
        }
        found = {name: Credits(values, rows) for name, values in credits.items()}
        if given.groups is not None:
            names = [given.groups.get(examples[place].id, "other") for place in asked]
            for name in sorted(set(names)):
                members = torch.tensor([name == other for other in names])
                found[f"accuracy.{name}"] = Credits(credit[members], rows[members])
                counts[f"questions.{name}"] = int(members.sum())
        chance = float((1 / num_options.double()).mean())
        accuracies = {name: float(one.values.mean()) for name, one in found.items()}
        return Result(
            self.name,
            given.settings.mode,
            protocol,
            {"accuracy": accuracies["accuracy"], "chance": chance, **accuracies},
            counts,
            videos.broken,
            credits=found,
        )


def _matching_scores(
    given: Evaluation, options: Sequence[str], rows: Tensor, cosine: Tensor, videos: Embeddings
) -> tuple[Tensor, Tensor]:
    """The probability of a match of every option `[Q, n]` and its mixture with the cosines `[Q, n]`, -inf where none."""
    is_option = cosine > -math.inf
    owner = rows.repeat_interleave(is_option.sum(dim=1))
    is_asked = owner[:, None] == torch.arange(len(videos.pooled))
    read = read_pairs(given, options, videos, is_asked)
    matched = torch.full_like(cosine, -math.inf)
    matched[is_option] = read.logits.softmax(dim=1)[:, 1][read.texts.argsort()]
    by_cosine = (cosine * similarity_scale(given.model)).softmax(dim=1)
    mixed = torch.where(is_option, MATCHING_WEIGHT * matched + (1 - MATCHING_WEIGHT) * by_cosine, matched)
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
