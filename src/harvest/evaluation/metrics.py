"""Metrics: pure functions of scores. Higher scores are better, all results are fractions or ranks from 1.

A tie is not a hit. Where n items share a score their order is unknown, so every function here gives the value
expected over all orders: one right item among n tied best ones is a hit with 1/n. A model that gives all
items one score is then exactly at chance, however the code that sorts would have ordered them. One function does
otherwise, as the official rule that it follows has no such mean: in `frame_rankings` equal scores come together.

Shapes: Q queries, n items (or options, or classes).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.parallel import generator_for


class Ranks(NamedTuple):
    """Where the best right item of each query stands, ties kept apart. All are int64 `[Q]`."""

    better: Tensor  # items with a higher score than the best right one
    tied: Tensor  # items with its score, itself among them
    right: Tensor  # right items among the tied

    def expected(self) -> Tensor:
        """The expected rank of the first right item, float64 `[Q]`, from 1."""
        # The first of r marked places among g shuffled ones is at (g + 1) / (r + 1) on average.
        return self.better + (self.tied + 1).double() / (self.right + 1).double()

    def hits_at(self, k: int) -> Tensor:
        """The probability that a right item is among the first k, float64 `[Q]`."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        tied, right = self.tied.double(), self.right.double()
        left_out = (self.tied - (k - self.better).clamp(min=0)).clamp(min=0).double()
        # All r right ones are among the ones left out: C(left_out, r) / C(tied, r).
        log_miss = _log_choose(left_out.maximum(right), right) - _log_choose(tied, right)
        return torch.where(left_out < right, 1.0, 1.0 - log_miss.exp()).clamp(0.0, 1.0)


def ranks(scores: Tensor, is_right: Tensor) -> Ranks:
    """Ranks of the best right item of each row: `scores` `[Q, n]`, `is_right` bool `[Q, n]`."""
    if scores.ndim != 2 or scores.shape != is_right.shape:
        raise ValueError(
            f"expected scores and is_right [Q, n], got {list(scores.shape)} and {list(is_right.shape)}"
        )
    if scores.isnan().any():
        raise ValueError("scores hold NaN: there is no order among them")
    is_right = is_right.bool()
    if not is_right.any(dim=1).all():
        row = int((~is_right.any(dim=1)).nonzero()[0])
        raise ValueError(f"query {row} has no right item")
    best = scores.masked_fill(~is_right, -math.inf).amax(dim=1, keepdim=True)
    is_tied = scores == best
    return Ranks((scores > best).sum(dim=1), is_tied.sum(dim=1), (is_tied & is_right).sum(dim=1))


def recall_at(found: Ranks, k: int) -> float:
    """R@k: the share of queries with a right item among the first k."""
    return float(found.hits_at(k).mean())


def median_rank(found: Ranks) -> float:
    """The median of the expected ranks; the mean of the two middle ones for an even number of queries."""
    ordered = found.expected().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def mean_rank(found: Ranks) -> float:
    return float(found.expected().mean())


def dual_softmax(cosines: Tensor, *, scale: float) -> Tensor:
    """Scores `[Q, n]` that hold how much an item is this query's rather than another's (Cheng et al. 2021, CAMoE).

    `scale * cosine` times its softmax over the queries. An item that all queries like loses by it. What a query
    finds then depends on which others are asked, so figures with it stand apart from those without.
    """
    scaled = scale * cosines.double()
    return scaled * scaled.softmax(dim=0)


def choice_credit(scores: Tensor, label: Tensor, *, k: int = 1) -> Tensor:
    """For each row of `[Q, n]` the credit for `label` `[Q]` among the best k, float64 `[Q]`.

    Options that a question does not have are padded with -inf.
    """
    if label.shape != scores.shape[:1]:
        raise ValueError(f"expected one label a row of scores {list(scores.shape)}, got {list(label.shape)}")
    if len(label) and (int(label.min()) < 0 or int(label.max()) >= scores.shape[1]):
        raise ValueError(
            f"labels go from {int(label.min())} to {int(label.max())}, options are {scores.shape[1]}"
        )
    is_right = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    is_right.scatter_(1, label[:, None], True)
    return ranks(scores, is_right).hits_at(k)


def mean_class_accuracy(credit: Tensor, label: Tensor) -> float:
    """The mean over the classes that occur of the mean credit in the class (balanced accuracy)."""
    classes, place = torch.unique(label, return_inverse=True)
    zeros = torch.zeros(len(classes), dtype=torch.float64)
    sums = zeros.index_add(0, place, credit.double())
    return float((sums / zeros.index_add(0, place, torch.ones_like(credit, dtype=torch.float64))).mean())


class Ranking(NamedTuple):
    """One class's items, likeliest first, and what an average precision over them needs."""

    is_hit: Tensor  # bool [n]
    is_end: Tensor  # bool [n]: the last of its score, so that the order of equal scores does not matter
    group: Tensor  # int64 [n]: the video of each
    wanted: Tensor  # float64 [groups]: how many right items there are in each video
    envelope: bool  # the precision at a recall is the best one at that recall or a higher one

    def average_precision(self, weights: Tensor | None = None) -> Tensor:
        """Float64 `[R]` for `weights` `[R, groups]`, how often each video counts (None: once, R is 1); NaN where
        nothing is right."""
        weights = torch.ones(1, len(self.wanted), dtype=torch.float64) if weights is None else weights
        total = weights @ self.wanted
        of_item = weights[:, self.group]
        seen = of_item.cumsum(1)[:, self.is_end]
        hits = (of_item * self.is_hit).cumsum(1)[:, self.is_end]
        start = torch.zeros(len(weights), 1, dtype=torch.float64)
        more = hits.diff(dim=1, prepend=start)
        if self.envelope:
            precision = (hits / seen.clamp(min=1e-12)).flip(1).cummax(1).values.flip(1)
        else:
            precision = _tied_precision(hits - more, more, seen.diff(dim=1, prepend=start), seen)
        found = (precision * more).sum(dim=1) / total.clamp(min=1e-12)
        return found.masked_fill(total == 0, math.nan)


def _tied_precision(before: Tensor, right: Tensor, tied: Tensor, seen: Tensor) -> Tensor:
    """The mean precision at the right ones of items that share a score, over all their orders, `[R, ends]`.

    `right` of the `tied` items are right, `before` right ones come before them, and `seen` items end with them. Given a
    right item at place j of m tied ones, of the j - 1 in front of it (j - 1) (r - 1) / (m - 1) are right on average; the
    sum over places is one of 1 / j, which is a difference of digammas. 0 where none is right.
    """
    found = torch.zeros_like(seen)
    any_right = right > 0
    before, right, tied, seen = (part[any_right] for part in (before, right, tied, seen))
    first = seen - tied  # items in front of all tied ones
    slope = (right - 1) / (tied - 1).clamp(min=1)
    harmonic = torch.digamma(seen + 1) - torch.digamma(first + 1)
    found[any_right] = (slope * tied + (before + 1 - slope * (first + 1)) * harmonic) / tied
    return found


def class_rankings(scores: Tensor, is_right: Tensor, group: Tensor) -> list[Ranking]:
    """The ranking of each class by `scores` `[Q, A]`; `group` int64 `[Q]` is the video of each row."""
    if scores.shape != is_right.shape or scores.ndim != 2:
        raise ValueError(
            f"expected scores and is_right [Q, A], got {list(scores.shape)} and {list(is_right.shape)}"
        )
    if scores.isnan().any():
        raise ValueError("scores hold NaN: there is no order among them")
    num_groups = int(group.max()) + 1 if len(group) else 0
    found = []
    for column in range(scores.shape[1]):
        ordered, place = scores[:, column].sort(descending=True)
        right = is_right[:, column].bool()
        wanted = torch.bincount(group[right], minlength=num_groups).double()
        found.append(Ranking(right[place], _ends(ordered), group[place], wanted, envelope=False))
    return found


def _ends(ordered: Tensor) -> Tensor:
    """Where a run of equal scores ends: bool `[n]`."""
    ends = torch.ones(len(ordered), dtype=torch.bool)
    ends[:-1] = ordered[1:] != ordered[:-1]
    return ends


def mean_average_precision(rankings: Sequence[Ranking], weights: Tensor | None = None) -> Tensor:
    """The mean over the classes that occur, `[R]`; see `Ranking.average_precision`."""
    found = torch.stack([ranking.average_precision(weights) for ranking in rankings])
    return found.nanmean(dim=0)


def frame_rankings(
    frame: Tensor,
    boxes: Tensor,
    scores: Tensor,
    truth_frame: Tensor,
    truth_boxes: Tensor,
    truth_label: Tensor,
    *,
    group: Tensor,
    overlap: float = 0.5,
    most: int = 50,
) -> list[Ranking]:
    """The ranking of each action in pictures (ActivityNet's `ava`).

    `boxes` `[n, 4]` (left, top, right, bottom) of pictures `frame` `[n]` with `scores` `[n, A]`; the truth has a box a
    label; `group` int64 is the video of each picture, by the picture's number. A box is matched with the true one it
    overlaps most, of its picture and action. It is right if that is by `overlap` or more and no higher score has taken
    that box; else it is wrong, also where a second box were free. The precision at each recall is the best one at that
    recall or a higher one (PASCAL VOC 2010). Of a picture the `most` highest scores of any box and action count. Equal
    scores come together.
    """
    counts_at_all = _highest_of_each(frame, scores, most)
    num_groups = int(group.max()) + 1
    found = []
    for action in range(scores.shape[1]):
        mine = truth_label == action
        true_boxes, true_frame = truth_boxes[mine], truth_frame[mine]
        wanted = torch.bincount(group[true_frame], minlength=num_groups).double()
        counted = counts_at_all[:, action]
        given = scores[counted, action]
        best, partner = best_overlaps(frame[counted], boxes[counted], true_frame, true_boxes)
        # Higher scores choose first, of equal ones the greater overlap.
        order = best.argsort(descending=True, stable=True)
        order = order[given[order].argsort(descending=True, stable=True)]
        fits = best[order] >= overlap
        taken = torch.where(fits, partner[order], -1)
        is_first = torch.zeros(len(order), dtype=torch.bool)
        if fits.any():
            numbers, back = torch.unique(taken[fits], return_inverse=True)
            places = fits.nonzero()[:, 0]
            first = torch.full((len(numbers),), len(order)).scatter_reduce_(0, back, places, "amin")
            is_first[first] = True
        found.append(
            Ranking(is_first, _ends(given[order]), group[frame[counted]][order], wanted, envelope=True)
        )
    return found


def _highest_of_each(frame: Tensor, scores: Tensor, most: int) -> Tensor:
    """Which of `scores` `[n, A]` are among the `most` highest of their picture: bool `[n, A]`."""
    picture = frame[:, None].expand(scores.shape).flatten()
    order = scores.flatten().argsort(descending=True, stable=True)
    order = order[picture[order].argsort(stable=True)]  # by picture, then by score
    _, counts = torch.unique_consecutive(picture[order], return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    found = torch.zeros(scores.numel(), dtype=torch.bool)
    found[order] = torch.arange(len(order)) - first < most
    return found.view(scores.shape)


def best_overlaps(
    frame: Tensor, boxes: Tensor, true_frame: Tensor, true_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """For each box the largest intersection over union with a true box of its picture, and which: `[n]` and `[n]`.

    0 and -1 where its picture has none.
    """
    best, partner = torch.zeros(len(boxes), dtype=torch.float64), torch.full((len(boxes),), -1)
    order = true_frame.argsort(stable=True)
    pictures, counts = torch.unique_consecutive(true_frame[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    place = torch.searchsorted(pictures, frame).clamp(max=max(0, len(pictures) - 1))
    has_any = pictures[place] == frame if len(pictures) else torch.zeros(len(frame), dtype=torch.bool)
    for nth in range(int(counts.max()) if len(counts) else 0):  # the nth true box of every picture at once
        rows = (has_any & (counts[place] > nth)).nonzero()[:, 0]
        other = order[starts[place[rows]] + nth]
        value = intersection_over_union(boxes[rows].double(), true_boxes[other].double())
        better = value > best[rows]
        best[rows[better]], partner[rows[better]] = value[better], other[better]
    return best, partner


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Of boxes row by row, `[n, 4]` and `[n, 4]` to `[n]`."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


RESAMPLES = 1000


def resampled_means(values: Tensor, group: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """The mean of `values` `[Q]` each time that videos are drawn again, float64 `[RESAMPLES]`.

    What is drawn is a function of the number of videos, so that two models' means on one set are means over the same
    draws: their difference is a paired bootstrap.
    """
    if not len(values):
        raise ValueError("an interval of no values")
    place = torch.arange(len(values)) if group is None else torch.unique(group, return_inverse=True)[1]
    num_groups = int(place.max()) + 1
    zeros = torch.zeros(num_groups, dtype=torch.float64)
    sums = zeros.index_add(0, place, values.double())
    counts = zeros.index_add(0, place, torch.ones(len(values), dtype=torch.float64))
    blocks = _drawn(num_groups, RESAMPLES, seed, at_once=200_000 // num_groups)
    return torch.cat([sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1) for drawn in blocks])


def resampled_mean_ap(rankings: Sequence[Ranking], *, seed: int = 0) -> Tensor:
    """`mean_average_precision` each time that videos are drawn again, float64 `[R]`; pairs as `resampled_means` do.

    Average precision grows as a set gets smaller, and a set with repeats is a smaller one: so that the interval is not
    above the figure itself, the draws are moved to have it as their mean.

    R is `RESAMPLES`, and 200 for more than a million entries in all rankings, where a thousand would take minutes.
    """
    num_groups = len(rankings[0].wanted)
    resamples = RESAMPLES if sum(len(r.group) for r in rankings) <= 1_000_000 else 200
    longest = max(1, num_groups, *(len(r.group) for r in rankings))
    parts = []
    for drawn in _drawn(num_groups, resamples, seed, at_once=2_000_000 // longest):
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        parts.append(mean_average_precision(rankings, times))
    draws = torch.cat(parts)
    return draws - draws.mean() + mean_average_precision(rankings)


def _drawn(num_groups: int, resamples: int, seed: int, *, at_once: int) -> Iterator[Tensor]:
    """Groups drawn with replacement, int64 `[up to at_once, num_groups]` at a time; the same draws in blocks of any size."""
    generator = generator_for(seed, num_groups)
    for start in range(0, resamples, max(1, at_once)):
        size = (min(max(1, at_once), resamples - start), num_groups)
        yield torch.randint(num_groups, size, generator=generator)


def interval_of(resampled: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of what a figure was each time that videos were drawn again."""
    shares = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = resampled.double().quantile(shares).tolist()
    return low, high


def _log_choose(n: Tensor, r: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)
