from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, coverage_error, top_k_accuracy_score
from torch import Tensor

from harvest.evaluation.metrics import (
    choice_credit,
    class_rankings,
    dual_softmax,
    interval_of,
    mean_average_precision,
    mean_class_accuracy,
    mean_rank,
    median_rank,
    ranks,
    recall_at,
    resampled_mean_ap,
    resampled_means,
)

BY_EYE = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3],  # the first is right: rank 1
        [0.5, 0.4, 0.3, 0.2],  # the second is right: rank 2
        [0.1, 0.9, 0.2, 0.8],  # the third is right: rank 3
        [0.4, 0.3, 0.2, 0.1],  # the fourth is right: rank 4
    ]
)


def test_a_matrix_to_check_by_eye() -> None:
    found = ranks(BY_EYE, torch.eye(4, dtype=torch.bool))
    assert found.expected().tolist() == [1, 2, 3, 4]
    assert [recall_at(found, k) for k in (1, 2, 3, 4, 10)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert median_rank(found) == 2.5
    assert mean_rank(found) == 2.5


def test_ties_are_shared() -> None:
    all_equal = ranks(torch.zeros(3, 4), torch.eye(4, dtype=torch.bool)[:3])
    assert recall_at(all_equal, 1) == pytest.approx(1 / 4)
    assert recall_at(all_equal, 2) == pytest.approx(1 / 2)
    assert recall_at(all_equal, 4) == 1.0
    assert median_rank(all_equal) == mean_rank(all_equal) == 2.5
    assert choice_credit(torch.zeros(5, 4), torch.arange(5) % 4).mean() == pytest.approx(0.25)

    below_one = ranks(torch.tensor([[0.9, 0.5, 0.5, 0.1]]), torch.tensor([[False, True, False, False]]))
    assert recall_at(below_one, 1) == 0.0
    assert recall_at(below_one, 2) == pytest.approx(0.5)
    assert recall_at(below_one, 3) == 1.0
    assert mean_rank(below_one) == 2.5


def test_the_best_of_several_right_items_counts() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.8, 0.2]])
    assert mean_rank(ranks(scores, torch.tensor([[True, True, False, False]]))) == 2.0
    # Two of three tied best ones are right: the first in a random order is right with 2/3.
    tied = ranks(torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[True, True, False]]))
    assert recall_at(tied, 1) == pytest.approx(2 / 3)
    assert mean_rank(tied) == pytest.approx(4 / 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
@settings(max_examples=60)
def test_ranks_are_means_over_all_orders_of_the_tied(row: list[tuple[int, bool]], k: int) -> None:
    if not any(is_right for _, is_right in row):
        row[0] = (row[0][0], True)
    firsts = []
    for order in permutations(row):
        ordered = sorted(order, key=lambda item: -item[0])  # stable: the tied keep the order drawn
        firsts.append(1 + next(place for place, (_, is_right) in enumerate(ordered) if is_right))
    found = ranks(torch.tensor([[float(s) for s, _ in row]]), torch.tensor([[r for _, r in row]]))
    assert float(found.expected()) == pytest.approx(np.mean(firsts))
    assert recall_at(found, k) == pytest.approx(np.mean([first <= k for first in firsts]))


score_rows = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(-4, 4), min_size=n, max_size=n), min_size=1, max_size=6)
)


@given(score_rows, st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=60)
def test_order_and_scale_do_not_matter(rows: list[list[int]], seed: int, k: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(scores.shape[1], (len(scores),), generator=generator)
    is_right = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, label[:, None], True)
    rows_order = torch.randperm(len(scores), generator=generator)
    items_order = torch.randperm(scores.shape[1], generator=generator)

    def all_metrics(scores: Tensor, is_right: Tensor) -> list[float]:
        found = ranks(scores, is_right)
        return [recall_at(found, k), median_rank(found), mean_rank(found)]

    expected = all_metrics(scores, is_right)
    shuffled = all_metrics(scores[rows_order][:, items_order], is_right[rows_order][:, items_order])
    rescaled = all_metrics((scores / 3).exp() * 5 - 2, is_right)
    assert shuffled == pytest.approx(expected)
    assert rescaled == pytest.approx(expected)
    assert float(choice_credit(scores, label, k=k).mean()) == pytest.approx(expected[0])
    assert recall_at(ranks(scores, is_right), k + 1) >= expected[0] - 1e-12
    # Giving every item one more try: the credits of all labels of a row sum to min(k, n).
    total = sum(choice_credit(scores, torch.full_like(label, c), k=k) for c in range(scores.shape[1]))
    assert total.tolist() == pytest.approx([min(k, scores.shape[1])] * len(scores))


def test_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(200, 7, generator=generator)
    label = torch.randint(7, (200,), generator=generator)
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(label.numpy(), scores.numpy(), k=k, labels=list(range(7)))
        assert float(choice_credit(scores, label, k=k).mean()) == pytest.approx(expected)
    expected = balanced_accuracy_score(label.numpy(), scores.argmax(dim=1).numpy())
    assert mean_class_accuracy(choice_credit(scores, label), label) == pytest.approx(expected)
    is_right = torch.nn.functional.one_hot(label, 7).bool()
    assert mean_rank(ranks(scores, is_right)) == pytest.approx(
        coverage_error(is_right.numpy(), scores.numpy())
    )


def test_questions_may_have_different_numbers_of_options() -> None:
    scores = torch.tensor([[0.2, 0.1, -math.inf], [0.1, 0.2, 0.3], [0.3, 0.3, -math.inf]])
    assert choice_credit(scores, torch.tensor([0, 1, 1])).tolist() == [1.0, 0.0, pytest.approx(0.5)]


def test_classes_count_alike() -> None:
    credit = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert mean_class_accuracy(credit, torch.tensor([3, 3, 3, 8])) == 0.5


def average_precisions(scores: Tensor, is_right: Tensor) -> Tensor:
    """Of each class, float64 `[A]`, all rows being of one video."""
    rankings = class_rankings(scores, is_right, torch.zeros(len(scores), dtype=torch.int64))
    return torch.cat([ranking.average_precision() for ranking in rankings])


def test_interval() -> None:
    values = (torch.arange(400) % 4 == 0).double()
    low, high = interval_of(resampled_means(values))
    deviation = math.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - 1.96 * deviation, abs=0.01)
    assert high == pytest.approx(0.25 + 1.96 * deviation, abs=0.01)
    assert interval_of(resampled_means(values)) == (low, high)
    assert interval_of(resampled_means(torch.ones(7))) == (1.0, 1.0)
    # Ten captions of each of 40 videos that all agree say no more than 40 captions.
    video = torch.arange(40).repeat_interleave(10)
    wide = interval_of(resampled_means((video % 4 == 0).double(), video))
    assert wide[1] - wide[0] > 2.5 * (high - low)


def test_draws_of_one_set_belong_together() -> None:
    """Two models' draws differ by as much as they differ on the clips drawn, not by what each draw happens to be."""
    values = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difference = resampled_means(values + 0.1) - resampled_means(values)
    assert difference.tolist() == pytest.approx([0.1] * len(difference))


def test_interval_of_mean_average_precision() -> None:
    """Every draw is the average precision of the rows drawn, each as often as it was."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 3, generator=generator).round(decimals=1)  # with ties
    is_right = torch.rand(40, 3, generator=generator) < 0.4
    group = torch.arange(40) // 2
    rankings = class_rankings(scores, is_right, group)
    drawn = torch.randint(20, (20,), generator=generator)
    weights = torch.bincount(drawn, minlength=20).double()[None]
    rows = torch.cat([(group == one).nonzero()[:, 0] for one in drawn.tolist()])
    expected = average_precisions(scores[rows], is_right[rows])
    assert mean_average_precision(rankings, weights).item() == pytest.approx(expected.nanmean().item())
    low, high = interval_of(resampled_mean_ap(rankings))
    assert low < average_precisions(scores, is_right).mean() < high
    assert high - low < 0.5


def test_the_interval_of_mean_average_precision_holds_the_figure() -> None:
    """A draw repeats rows, which is like having fewer: of rare classes at chance the precision then is higher."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 100, generator=generator)
    is_right = torch.rand(200, 100, generator=generator) < 0.02
    low, high = interval_of(resampled_mean_ap(class_rankings(scores, is_right, torch.arange(200))))
    assert low < average_precisions(scores, is_right).nanmean() < high


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ranks(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match="query 1 has no right item"):
        ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="labels go from 0 to 2, options are 2"):
        choice_credit(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="at least 1"):
        recall_at(ranks(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)), 0)


def test_average_precision_by_hand_and_against_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    right = torch.tensor([[1, 0], [0, 0], [1, 0]]).bool()
    found = average_precisions(scores, right)
    assert found[0] == pytest.approx((1 + 2 / 3) / 2) and found[1].isnan()
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 5, generator=generator)
    right = torch.rand(40, 5, generator=generator) < 0.3
    wanted = average_precision_score(right.numpy(), scores.numpy(), average=None)
    assert average_precisions(scores, right).tolist() == pytest.approx(wanted.tolist())


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=40)
def test_average_precision_is_the_mean_over_all_orders_of_the_tied(
    row: list[tuple[int, bool]], times: int
) -> None:
    """Also where every item is drawn several times, which makes as many tied copies of it."""
    times = times if len(row) * times <= 6 else 1
    expected = []
    for order in permutations(row * times):
        marks = [is_right for _, is_right in sorted(order, key=lambda item: -item[0])]
        precision = np.cumsum(marks) / np.arange(1, len(marks) + 1)
        expected.append(precision[marks].mean() if any(marks) else math.nan)
    scores, is_right = (torch.tensor(column)[:, None] for column in zip(*row, strict=True))
    (ranking,) = class_rankings(scores.float(), is_right, torch.arange(len(row)))
    weights = torch.full((1, len(row)), float(times), dtype=torch.float64)
    assert float(ranking.average_precision(weights)) == pytest.approx(np.mean(expected), nan_ok=True)


def test_dual_softmax_by_hand() -> None:
    """Both queries like item 0 best; it is the first query's more than the second's."""
    cosines = torch.tensor([[0.9, 0.1], [0.8, 0.7]])
    found = dual_softmax(cosines, scale=10.0)
    prior = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(6.0))]  # of the first query, of each item
    wanted = [[9 * prior[0], 1 * prior[1]], [8 * (1 - prior[0]), 7 * (1 - prior[1])]]
    assert found.tolist() == [pytest.approx(row) for row in wanted]
    assert cosines.argmax(dim=1).tolist() == [0, 0] and found.argmax(dim=1).tolist() == [0, 1]
