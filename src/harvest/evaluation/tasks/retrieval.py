"""Text to video and video to text retrieval: by embeddings alone, and re-ranked by the matching head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from harvest.evaluation.embed import Embeddings, cosines
from harvest.evaluation.matching import best, need_matching, read_pairs, reranked, similarity_scale
from harvest.evaluation.metrics import Ranks, dual_softmax, mean_rank, median_rank, ranks, recall_at
from harvest.evaluation.result import Credits, Result
from harvest.evaluation.task import Evaluation
from harvest.interfaces import HarvestError
from harvest.ranges import Range, check_ranges

_BLOCK = 1024  # queries scored at a time


@dataclass(frozen=True)
class RetrievalTask:
    """Score every caption against every video.

    t2v: each caption is a query and its own video alone is right, also where another video has the same caption.
    v2t: each video is a query, the captions of all videos are the items, and its best ranked own caption counts.
    Rows of a manifest that name the same stretch are one video with all their captions. A caption that a video has
    twice is a query twice, as in the official counts (27,763 of MSVD's test set, of which 24,033 differ within their
    video) and in the published numbers. Captions of videos that could not be read are left out and counted.
    """

    name: ClassVar[str] = "retrieval"
    scored_by: ClassVar[str] = "embeddings only"
    benchmarks: ClassVar[tuple[str, ...]] = ("retrieval",)
    names_in: ClassVar[str] = ""
    reads_head: ClassVar[bool] = False
    reads_groups: ClassVar[bool] = False

    dual_softmax: bool = False
    """Add the same figures after a dual softmax, which looks at all queries at once: no single one could be answered so."""
    rerank_top_k: Annotated[int, Range(least=0)] = 0
    """Add the same figures with this many nearest items of each query re-ordered by the matching head (UMT: 128)."""
    shared_captions: bool = False
    """Ask each distinct caption once; every video that has it is right, and the best ranked of them counts
    (Something-Something's templates)."""
    dim: int | None = None
    """Compare the first entries of the embeddings, this many; for models trained with objective.dims."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def check(self, given: Evaluation) -> None:
        if self.rerank_top_k:
            need_matching(given.model, given.settings.selection)

    def score(self, given: Evaluation) -> Result:
        return self.of_embeddings(given, given.embed_videos(dim=self.dim, with_tokens=self.rerank_top_k > 0))

    def of_embeddings(self, given: Evaluation, videos: Embeddings) -> Result:
        """The result from videos that are embedded already; re-ranking needs their tokens."""
        rows = list(zip(given.examples, videos.row.tolist(), strict=True))
        pairs = [(text, row) for example, row in rows for text in example.texts if row >= 0]
        left_out = sum(len(example.texts) for example, row in rows if row < 0)
        if not pairs:
            raise HarvestError("retrieval needs captions: no readable example has one")
        texts = [text for text, _ in pairs]
        owner = torch.tensor([row for _, row in pairs])
        if self.shared_captions:
            texts = list(dict.fromkeys(texts))
            place = {text: number for number, text in enumerate(texts)}
            has = torch.zeros(len(texts), len(videos.pooled), dtype=torch.bool)
            has[[place[text] for text, _ in pairs], owner] = True
            owner = has
        text_pooled = given.embed_texts(texts, dim=videos.pooled.shape[1])
        t2v, v2t = retrieval_ranks(videos.pooled, text_pooled, owner)
        found = {"": (t2v, v2t)}
        protocol = f"Cosines of embeddings only: {len(texts)} captions against {len(videos.pooled)} videos, {given.shown}."
        if self.shared_captions:
            protocol += " Every video that has a caption is right for it, and of them the best ranked counts."
        if self.dual_softmax:
            scale = similarity_scale(given.model)
            found[".dual_softmax"] = dual_softmax_ranks(videos.pooled, text_pooled, owner, scale=scale)
            protocol += (
                f" dual_softmax: each score times its softmax over all queries, at the model's scale of {scale:.1f}; it needs"
                " all queries at once."
            )
        if self.rerank_top_k:
            found[".reranked"] = reranked_ranks(
                given, texts, videos, text_pooled, owner, top_k=self.rerank_top_k
            )
            protocol += f" reranked: the {self.rerank_top_k} nearest items of each query in the order of the matching head."
        metrics: dict[str, float] = {}
        credits: dict[str, Credits] = {}
        for variant, both in found.items():
            more, more_credits = _figures(*both, owner, variant=variant)
            metrics, credits = metrics | more, credits | more_credits
        times = Counter(text for text, _ in dict.fromkeys(pairs))
        return Result(
            self.name,
            given.settings.mode,
            protocol,
            metrics,
            counts={
                "videos": len(videos.pooled),
                "videos_with_captions": len(v2t.tied),
                "captions": len(texts),
                "captions_repeated": len(pairs) - len(set(pairs)),
                "captions_shared_by_videos": sum(count for count in times.values() if count > 1),
                "captions_left_out": left_out,
                "texts_cut": given.count_cut(texts),
                "examples_missing": int((videos.row < 0).sum()),
            },
            credits=credits,
            missing=videos.broken,
        )


def retrieval_ranks(video_pooled: Tensor, text_pooled: Tensor, owner: Tensor) -> tuple[Ranks, Ranks]:
    """Ranks for text to video, and for video to text of the videos that have a text.

    `video_pooled` `[n, E]`, `text_pooled` `[C, E]`, `owner` int64 `[C]`: the video of each text, or bool `[C, n]` where a
    text may be that of several.
    """
    t2v, v2t = [], []
    for start in range(0, len(text_pooled), _BLOCK):
        rows = slice(start, start + _BLOCK)
        t2v.append(ranks(cosines(text_pooled[rows], video_pooled), _has(owner[rows], len(video_pooled))))
    asked = _asked(owner)
    for start in range(0, len(asked), _BLOCK):
        numbers = asked[start : start + _BLOCK]
        v2t.append(ranks(cosines(video_pooled[numbers], text_pooled), _of(owner, numbers)))
    return _joined(t2v), _joined(v2t)


def _has(owner: Tensor, num_videos: int) -> Tensor:
    """Which videos a text is right for, bool `[C, n]`."""
    return owner if owner.ndim == 2 else owner[:, None] == torch.arange(num_videos)


def _of(owner: Tensor, numbers: Tensor) -> Tensor:
    """Which texts are right for some videos, bool `[len(numbers), C]`."""
    return owner.T[numbers] if owner.ndim == 2 else numbers[:, None] == owner


def _asked(owner: Tensor) -> Tensor:
    """The videos that have a text."""
    return owner.any(dim=0).nonzero()[:, 0] if owner.ndim == 2 else torch.unique(owner)


def dual_softmax_ranks(
    video_pooled: Tensor, text_pooled: Tensor, owner: Tensor, *, scale: float
) -> tuple[Ranks, Ranks]:
    """`retrieval_ranks` after `dual_softmax`; the prior of an item is taken over the queries of that way."""
    cosine = cosines(text_pooled, video_pooled)
    asked = _asked(owner)
    t2v = ranks(dual_softmax(cosine, scale=scale), _has(owner, len(video_pooled)))
    v2t = ranks(dual_softmax(cosine.T[asked], scale=scale), _of(owner, asked))
    return t2v, v2t


def reranked_ranks(
    given: Evaluation,
    texts: Sequence[str],
    videos: Embeddings,
    text_pooled: Tensor,
    owner: Tensor,
    *,
    top_k: int,
) -> tuple[Ranks, Ranks]:
    """`retrieval_ranks` with the `top_k` nearest items of each query re-ordered by the matching head (UMT).

    A pair that is near both ways is read once, and a text that stands there more than once is encoded once.
    """
    distinct = list(dict.fromkeys(texts))
    numbers = {text: number for number, text in enumerate(distinct)}
    place = torch.tensor([numbers[text] for text in texts])
    first = torch.zeros(len(distinct), dtype=torch.int64).scatter_(
        0, place.flip(0), torch.arange(len(texts)).flip(0)
    )
    cosine = cosines(text_pooled[first], videos.pooled)  # distinct texts by videos
    asked = _asked(owner)
    of_texts = best(cosine, top_k)
    of_videos = torch.zeros_like(of_texts)
    of_videos[:, asked] = best(cosine.T[asked], top_k).T
    read = read_pairs(given, distinct, videos, of_texts | of_videos)
    matches = torch.zeros_like(cosine)
    matches[read.texts, read.videos] = read.logits[:, 1]
    t2v = ranks(reranked(cosine, matches, of_texts)[place], _has(owner, len(videos.pooled)))
    v2t = ranks(reranked(cosine, matches, of_videos).T[asked][:, place], _of(owner, asked))
    return t2v, v2t


def _figures(
    t2v: Ranks, v2t: Ranks, owner: Tensor, *, variant: str
) -> tuple[dict[str, float], dict[str, Credits]]:
    """Metrics of both ways, and what they are means of; `variant` is put behind every name."""
    metrics: dict[str, float] = {}
    credits: dict[str, Credits] = {}
    of_texts = (
        owner if owner.ndim == 1 else torch.arange(len(owner))
    )  # of several videos: each caption for itself
    for way, found, group in (("t2v", t2v, of_texts), ("v2t", v2t, _asked(owner))):
        for k in (1, 5, 10):
            name = f"{way}_r{k}{variant}"
            metrics[name] = recall_at(found, k)
            credits[name] = Credits(found.hits_at(k), group)
        metrics[f"{way}_median_rank{variant}"] = median_rank(found)
        metrics[f"{way}_mean_rank{variant}"] = mean_rank(found)
    return metrics, credits


def _joined(parts: list[Ranks]) -> Ranks:
    return Ranks(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
