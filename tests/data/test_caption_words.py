from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.data.words import SIDE_WORDS, drawn_sentence, first_sentences, names_a_side, sentences

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
