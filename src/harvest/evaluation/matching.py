"""Pairs of texts and videos read by the matching head: slower than cosines, and better at telling near misses apart.

Shapes: n videos, C texts, K video tokens, D width of the video tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.evaluation.clips import evaluating
from harvest.evaluation.embed import Embeddings
from harvest.evaluation.task import Evaluation
from harvest.interfaces import HarvestError, TextFeatures, VideoFeatures
from harvest.model.video_text import VideoTextModel
from harvest.parallel import all_gather_ordered
from harvest.tokens import Selection

_ROWS = 256  # texts read with one video at a time


class PairScores(NamedTuple):
    """Scores of some of all pairs of texts and videos, video by video."""

    texts: Tensor  # int64 [P]
    videos: Tensor  # int64 [P]
    logits: Tensor  # fp32 [P, 2], of no and yes


def need_matching(model: VideoTextModel, selection: Selection | None = None) -> None:
    """Raise HarvestError for a model that cannot tell whether a pair belongs together."""
    if model.fusion is None or not model.fusion.config.matches:
        raise HarvestError(
            "this model has no matching head: it was not trained to tell whether text and video belong together. "
            "Train it with UMT's second stage (harvest recipes), or ask for embeddings alone."
        )
    if selection is not None and selection.selector == "run_length":
        raise HarvestError(
            "selector: run_length keeps another number of tubelets of each clip, which the matching head cannot read;"
            " take another selector"
        )


def similarity_scale(model: VideoTextModel) -> float:
    """What the model multiplies cosines by."""
    with torch.no_grad():
        one = torch.ones(1, 1, device=model.log_scale.device)
        return float(model.scores(one, one) - model.scores(0 * one, one))


def read_pairs(given: Evaluation, texts: Sequence[str], videos: Embeddings, is_asked: Tensor) -> PairScores:
    """Read the pairs that `is_asked`, bool `[C, n]`, names: each pair once, each text and each video encoded once.

    The texts of a video share one fusion pass, in which its keys and values are computed once, so that what a pair
    costs is the words alone. The videos' tokens are needed; each process reads the pairs of those that it holds.
    """
    model = given.model
    need_matching(model)
    if videos.tokens is None and videos.token_rows is None:
        raise ValueError("reading pairs needs the videos' tokens: embed_videos(..., with_tokens=True)")
    encoded = _encode(given, texts)
    device = model.log_scale.device
    here = range(len(videos.pooled)) if videos.token_rows is None else videos.token_rows.tolist()

    def own() -> list[PairScores]:
        read = []
        for place, number in enumerate(here):
            asked = is_asked[:, number].nonzero()[:, 0]
            if not len(asked):
                continue
            assert videos.tokens is not None
            shown = VideoFeatures(videos.tokens[place : place + 1].to(device), torch.empty(0))
            logits = []
            for some in torch.split(asked, _ROWS):
                with evaluating(model, given.settings.precision):
                    rows = TextFeatures(*(part[some.to(device)] for part in encoded))
                    logits.append(model.match_pairs(shown, rows).float().cpu())
            read.append(PairScores(asked, torch.full_like(asked, number), torch.cat(logits)))
        return read

    empty = torch.empty(0, dtype=torch.int64)
    parts = [PairScores(empty, empty, torch.empty(0, 2))]
    parts += [one for rank in all_gather_ordered([own()]) for one in rank]
    parts.sort(key=lambda part: int(part.videos[0]) if len(part.videos) else -1)
    return PairScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _encode(given: Evaluation, texts: Sequence[str]) -> TextFeatures:
    """All texts at one length, on the model's device."""
    model = given.model
    parts: list[TextFeatures] = []
    for start in range(0, len(texts), _ROWS):
        with evaluating(model, given.settings.precision):
            ids = given.words(list(texts[start : start + _ROWS])).to(model.log_scale.device)
            parts.append(model.encode_text(ids))
    longest = max(part.mask.shape[1] for part in parts)

    def padded(part: Tensor) -> Tensor:
        more = part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:])
        return torch.cat([part, more], dim=1)

    return TextFeatures(
        torch.cat([padded(part.tokens) for part in parts]),
        torch.cat([part.pooled for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
    )


def best(scores: Tensor, k: int) -> Tensor:
    """Bool `[Q, n]`: the k best items of each row."""
    chosen = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)


def reranked(cosines: Tensor, matches: Tensor, is_chosen: Tensor) -> Tensor:
    """Scores `[Q, n]` in which the chosen items come first, by how well they match, the others after them by cosine."""
    lowest = matches[is_chosen].min() if is_chosen.any() else torch.tensor(0.0)
    return torch.where(is_chosen, matches - lowest + 2.0, cosines)  # no cosine reaches 2
