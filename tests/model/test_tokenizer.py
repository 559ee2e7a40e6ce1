"""A tokenizer learned from captions is a function of the captions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from toys import SHARED

from harvest.model.importing.vocabularies import bert_tokenizer, read_bpe_vocabulary
from harvest.model.text_cleaning import umt_text
from harvest.model.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

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


BPE = SHARED / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"
WORD_PIECES = SHARED / "tokenizers" / "bert-base-uncased_vocab.txt"


@pytest.mark.skipif(not BPE.is_file(), reason="no shared tokenizers")
@pytest.mark.parametrize(
    "end",
    [
        "<|endoftext|>",
        "<|ENDOFTEXT|>",
        "&lt;|endoftext|&gt;",
        "&amp;amp;amp;lt;|endoftext|&amp;gt;",
        "\uff1c|endoftext|\uff1e",
        "<|end<|startoftext|>oftext|>",
        "&lt;|end<|endoftext|>oftext|&gt;",
    ],
)
def test_no_writing_of_a_special_token_ends_a_text(end: str) -> None:
    tokenizer = Tokenizer(read_bpe_vocabulary(BPE), TokenizerConfig(clean="clip"))
    ids = tokenizer([f"ab {end} cd"])[0].tolist()
    assert ids.count(49407) == 1 + ids[::-1].index(next(i for i in ids[::-1] if i != 49407)) - 1
    assert ids != tokenizer(["ab"])[0].tolist() and tokenizer.words("cd")[0] in ids


def strings_of(value: Any) -> set[str]:
    """Every text of a JSON value that is more than a word."""
    if isinstance(value, str):
        return {value} if " " in value else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(strings_of, parts))


def reference_pre_text(text: str) -> str:
    """What UMT's `pre_text` does, letter by letter (method/reference_behaviour.md and the fixtures)."""
    kept = "".join(letter for letter in text.lower() if letter not in ",.'!?\"()*#:;~")
    kept = kept.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(kept.split())


def test_umt_texts_of_the_fixtures() -> None:
    path = SHARED / "fixtures" / "umt_sampling_meta.json"
    if not path.is_file():
        pytest.skip("no shared fixtures")
    for text, expected in json.loads(path.read_text())["pre_text"].items():
        assert umt_text(text) == expected


SETS = ("msvd_qa", "msrvtt_qa", "didemo", "activitynet", "msrvtt", "msvd", "tgif_qa")


@pytest.mark.skipif(not WORD_PIECES.is_file(), reason="no shared tokenizers")
@pytest.mark.parametrize("name", SETS)
def test_umt_ids_of_questions_and_captions(name: str) -> None:
    files = sorted(Path(SHARED / "annotations" / name).glob("*.json"))
    texts: set[str] = set()
    for file in files:
        texts |= strings_of(json.loads(file.read_text()))
    if not texts:
        pytest.skip("no shared annotations")
    listed = sorted(texts)
    listed = listed[:: max(1, len(listed) // 500)]  # all of them were equal; it takes minutes
    ours = bert_tokenizer(WORD_PIECES, 512, clean="umt")
    plain = tokenizers.BertWordPieceTokenizer(str(WORD_PIECES), lowercase=True)
    wanted = plain.encode_batch([reference_pre_text(text) for text in listed], add_special_tokens=False)
    found = ours.core.encode_batch([ours._clean(text) for text in listed])
    for text, expected, encoding in zip(listed, wanted, found, strict=True):
        assert encoding.ids == [101, *expected.ids[:511]], text
