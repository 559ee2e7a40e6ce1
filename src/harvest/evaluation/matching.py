"""Pairs of texts and videos read by the matching head: slower than cosines, and better at telling near misses apart.

Shapes: n videos, C texts, K video tokens, D width of the video tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.evaluation.embed import Embeddings, evaluating
from harvest.interfaces import HarvestError, TextFeatures, VideoFeatures
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision

_ROWS = 256  # texts read with one video at a time


class Read(NamedTuple):
    """Scores of some of all pairs of texts and videos."""

    texts: Tensor  # int64 [P]
    videos: Tensor  # int64 [P]
    logits: Tensor  # fp32 [P, 2], of no and yes


def need_matching(model: VideoTextModel) -> None:
    """Raise HarvestError for a model that cannot tell whether a pair belongs together."""
    if model.fusion is None or not model.fusion.config.matches:
        raise HarvestError(
            "this model has no matching head: it was not trained to tell whether text and video belong together. "
            "Train it with UMT's second stage (harvest recipes), or ask for embeddings alone."
        )


def read_pairs(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    videos: Embeddings,
    is_asked: Tensor,
    *,
    precision: Precision = "fp32",
) -> Read:
    """Read the pairs that `is_asked`, bool `[C, n]`, names: each pair once, each text and each video encoded once.

    The texts of a video share one fusion pass, in which its keys and values are computed once, so that what a pair
    costs is the words alone. `videos.tokens` is needed (`pool(..., with_tokens=True)`).
    """
    need_matching(model)
    if videos.tokens is None:
        raise ValueError("reading pairs needs the videos' tokens: pool(..., with_tokens=True)")
    encoded = _encode(model, tokenizer, texts, precision)
    of_text: list[Tensor] = []
    of_video: list[Tensor] = []
    logits: list[Tensor] = []
    device = model.log_scale.device
    for number in range(is_asked.shape[1]):
        asked = is_asked[:, number].nonzero()[:, 0]
        if not len(asked):
            continue
        shown = VideoFeatures(videos.tokens[number : number + 1].to(device), torch.empty(0))
        for some in torch.split(asked, _ROWS):
            with evaluating(model, precision):
                rows = TextFeatures(*(part[some.to(device)] for part in encoded))
                logits.append(model.match_pairs(shown, rows).float().cpu())
        of_text.append(asked)
        of_video.append(torch.full_like(asked, number))
    if not logits:
        empty = torch.empty(0, dtype=torch.int64)
        return Read(empty, empty, torch.empty(0, 2))
    return Read(torch.cat(of_text), torch.cat(of_video), torch.cat(logits))


def _encode(
    model: VideoTextModel, tokenizer: Tokenizer, texts: Sequence[str], precision: Precision
) -> TextFeatures:
    """All texts at one length, on the model's device."""
    parts: list[TextFeatures] = []
    for start in range(0, len(texts), _ROWS):
        with evaluating(model, precision):
            ids = tokenizer(list(texts[start : start + _ROWS])).to(model.log_scale.device)
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
