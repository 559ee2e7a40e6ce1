"""Hiding words: CoTrain's rule, and BERT's 80/10/10."""

from __future__ import annotations

import pytest
import torch

from harvest.tokens import at_hidden, mask_text, most_hidden, words


def draw(ratio: float = 0.5, *, rows: int = 4000, random_words: int = 0) -> tuple[torch.Tensor, ...]:
    ids = torch.full((rows, 10), 7)
    maskable = torch.ones(rows, 10, dtype=torch.bool)
    maskable[:, 0] = False
    masked, hidden = mask_text(
        ids,
        maskable=maskable,
        ratio=ratio,
        mask_id=103,
        generator=torch.Generator().manual_seed(0),
        random_words=random_words,
    )
    return ids, masked, hidden


def test_all_hidden_words_become_the_mask() -> None:
    ids, masked, hidden = draw()
    assert (masked[hidden] == 103).all() and (masked[~hidden] == ids[~hidden]).all()
    assert not hidden[:, 0].any() and hidden.any(dim=1).all()
    assert abs(hidden[:, 1:].float().mean() - 0.5) < 0.01


def test_bert_s_eight_one_and_one_of_ten() -> None:
    ids, masked, hidden = draw(random_words=90)
    assert torch.equal(hidden, draw()[2])  # the rule does not change which words are asked for
    asked = masked[hidden]
    shares = [
        (asked == 103).float().mean(),
        ((asked != 103) & (asked != 7)).float().mean(),
        (asked == 7).float().mean(),
    ]
    # One random word in ninety is the word itself.
    for share, expected in zip(shares, (0.8, 0.1 * 89 / 90, 0.1 + 0.1 / 90), strict=True):
        assert abs(share - expected) < 0.01
    others = asked[(asked != 103) & (asked != 7)]
    assert others.max() < 90 and len(others.unique()) > 80
    assert (masked[~hidden] == ids[~hidden]).all()


def test_texts_without_a_maskable_word_keep_all() -> None:
    ids = torch.tensor([[101, 0, 0], [101, 9, 0]])
    maskable = torch.tensor([[False, False, False], [False, True, False]])
    masked, hidden = mask_text(
        ids, maskable=maskable, ratio=0.0, mask_id=103, generator=torch.Generator(), random_words=5
    )
    assert hidden.tolist() == [[False, False, False], [False, True, False]]
    assert masked[0].tolist() == [101, 0, 0]


def test_what_is_hidden_does_not_depend_on_padding() -> None:
    ids = torch.randint(5, 50, (6, 10))
    maskable = torch.zeros(6, 10, dtype=torch.bool)
    maskable[:, 1:5] = True

    def draw(length: int) -> tuple[torch.Tensor, ...]:
        return mask_text(
            ids[:, :length],
            maskable=maskable[:, :length],
            ratio=0.4,
            mask_id=103,
            generator=torch.Generator().manual_seed(3),
            random_words=50,
            length=10,
        )

    for whole, cut in zip(draw(10), draw(6), strict=True):
        assert torch.equal(whole[:, :6], cut)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize(("texts", "length"), [(1, 1), (4, 10), (128, 40)])
def test_the_number_of_hidden_words_has_a_bound(texts: int, length: int, ratio: float) -> None:
    """Of the exact distribution of max(1, Binomial) of every text, summed, less than 10^-9 lies above it."""
    words_of_one = torch.arange(length + 1, dtype=torch.float64)
    choices = torch.lgamma(torch.tensor(length + 1.0, dtype=torch.float64))
    choices = (choices - torch.lgamma(words_of_one + 1) - torch.lgamma(length - words_of_one + 1)).exp()
    one = choices * ratio**words_of_one * (1 - ratio) ** (length - words_of_one)
    one[1], one[0] = one[1] + one[0], 0.0
    total = torch.ones(1, dtype=torch.float64)
    for _ in range(texts):
        wide = torch.zeros(len(total) + length, dtype=torch.float64)
        for number, chance in enumerate(one):
            wide[number : number + len(total)] += chance * total
        total = wide
    bound = most_hidden(texts, length, ratio=ratio)
    assert bound <= texts * length and total[bound + 1 :].sum() < 1e-9
    mean = (total * torch.arange(len(total))).sum()
    spread = (total * (torch.arange(len(total)) - mean) ** 2).sum().sqrt()
    assert bound <= mean + 8 * spread + 8  # and it is no wasteful one


def test_a_fixed_number_of_places_asks_for_the_hidden_words_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, hidden = torch.randint(5, 50, (6, 10)), torch.rand(6, 10) < 0.3
    states = torch.randn(6, 10, 4)
    exact, targets = at_hidden(states, ids, hidden, most=40)
    assert torch.equal(exact, states[hidden]) and torch.equal(targets, ids[hidden])
    monkeypatch.setattr(words, "_num_asked", lambda hidden, most: most)  # as on a GPU
    fixed, more = at_hidden(states, ids, hidden, most=40)
    num = len(targets)
    assert len(more) == 40 and torch.equal(fixed[:num], exact) and torch.equal(more[:num], targets)
    assert (more[num:] == -100).all()
