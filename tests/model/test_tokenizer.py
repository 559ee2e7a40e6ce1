"""A tokenizer learned from captions is a function of the captions."""

from __future__ import annotations

import random

from harvest.model.tokenizer import Tokenizer, train_tokenizer

CAPTIONS = [
    f"a {size} {colour} {shape} moves {way}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "star", "triangle")
    for way in ("left", "right", "up", "down")
]


def learn(captions: list[str], vocab_size: int = 400) -> Tokenizer:
    return train_tokenizer(captions, vocab_size=vocab_size, context_length=16)


def test_the_same_captions_give_the_same_ids_in_any_order() -> None:
    """A run from scratch learns it again when it goes on, and on every rank."""
    first = learn(CAPTIONS)
    for seed in range(5):
        again = learn(random.Random(seed).sample(CAPTIONS, len(CAPTIONS)))
        assert again.core.to_str() == first.core.to_str()


def test_merges_by_hand() -> None:
    """aab: 3, ab: 1. The pair (a, b</w>) occurs 4 times, then (a, ab</w>) 3 times."""
    tokenizer = learn(["aab aab aab ab"])
    ids = tokenizer.core.get_vocab()
    assert [ids["<start>"], ids["<end>"], ids["<pad>"]] == [0, 1, 2]
    base = 3 + 256
    assert [ids["b</w>"], ids["ab</w>"], ids["aab</w>"]] == [base, base + 1, base + 2] and len(
        ids
    ) == base + 3
    assert tokenizer(["Aab ab"])[0, :5].tolist() == [0, base + 2, base + 1, 1, 2]


def test_the_vocabulary_is_bounded_and_frequent_words_are_whole() -> None:
    small, large = learn(CAPTIONS, 300), learn(CAPTIONS, 1000)
    assert small.core.get_vocab_size() == 300
    assert len(large.words("a large yellow triangle moves right")) == 6
    assert len(small.words("a large yellow triangle moves right")) > 6
    for tokenizer in (small, large):
        for caption in CAPTIONS[:20]:
            assert tokenizer.decode(tokenizer([caption])[0].tolist()) == caption


def test_repeated_letters_are_merged_from_the_left() -> None:
    tokenizer = learn(["aaaaa"] * 3)
    assert tokenizer.decode(tokenizer(["aaaaa aaa"])[0].tolist()) == "aaaaa aaa"
