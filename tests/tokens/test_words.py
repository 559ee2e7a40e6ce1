"""Hiding words: CoTrain's rule, and BERT's 80/10/10."""

from __future__ import annotations

import torch

from harvest.tokens import mask_text


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
