from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.data.words import (
    SIDE_WORDS,
    cut_padding,
    drawn_sentence,
    first_sentences,
    names_a_side,
    sentences,
)

ALL = tuple(SIDE_WORDS)


def says(text: str, languages: tuple[str, ...] = ALL) -> bool:
    return names_a_side([text], languages)


def test_captions_that_name_a_side() -> None:
    for text in (
        "A ball rolls to the LEFT.",
        "turn right",
        "er geht nach links",
        "小狗向左跑",
        "右へ",
        "공이 왼쪽으로",
    ):
        assert says(text)
    for text in ("a bright leftover", "the copyright", "a dog runs", "", "upright"):
        assert not says(text)
    assert not says("nach rechts", ("en",)) and says("nach rechts", ("de",))
    assert names_a_side(["what?", "right"]) and not names_a_side([])


def test_sentences() -> None:
    text = 'A dog runs. It stops! "Why?" It barks.'
    assert sentences(text) == ["A dog runs.", "It stops!", '"Why?', "It barks."]
    assert sentences("no end") == ["no end"] and sentences("一只狗。它跑。") == ["一只狗。", "它跑。"]
    assert first_sentences(text, 5) == "A dog runs. It stops!"
    assert first_sentences(text, 1) == "A dog runs."
    assert first_sentences(text, 50) == text


@given(
    st.lists(st.sampled_from(["A dog runs.", "It stops.", "So be it!"]), min_size=1, max_size=8),
    st.integers(1, 30),
)
def test_a_part_is_in_the_caption(parts: list[str], words: int) -> None:
    text = " ".join(parts)
    assert text.startswith(first_sentences(text, words))
    assert drawn_sentence(text, words, torch.Generator()) in (*parts, text)


def test_padding_is_cut_behind_the_longest_text() -> None:
    """At multiples of 8, with the end token that CLIP pads with."""
    ids = torch.full((2, 3, 40), 9)
    ids[0, 0, :5], ids[1, 2, :17] = 4, 4
    assert cut_padding(ids, 9).shape == (2, 3, 24) and (cut_padding(ids, 9)[1, 2, 17:] == 9).all()
    ids[1, 2, 17:] = 4
    assert torch.equal(cut_padding(ids, 9), ids)  # as long as the tower takes
    assert cut_padding(ids[:, :2], 9).shape == (2, 2, 8) and cut_padding(ids[:, 1:2], 9).shape == (2, 1, 8)
    assert torch.equal(cut_padding(ids, None), ids)
    assert cut_padding(ids[:, 0, :6], 9).shape == (2, 6)
