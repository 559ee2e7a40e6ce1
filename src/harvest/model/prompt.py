"""Sentences with hidden words, and questions put as such: what a fusion decoder fills in, and a head of answers reads."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer

PROMPT = "Question: {} Answer: [mask]"  # CoTrain's zero-shot prompt

_MASK = re.compile(r"\[mask\]", re.IGNORECASE)


def has_mask(sentence: str) -> bool:
    return _MASK.search(sentence) is not None


def prompt(question: str) -> str:
    """The sentence whose `[mask]` answers a question; one that has a `[mask]` is that sentence already."""
    masks = len(_MASK.findall(question))
    if masks > 1:
        raise HarvestError(f"a question has one [mask], this one has {masks}: {question!r}")
    return question if masks else PROMPT.format(question)


def masked_ids(
    words: TextEncoderConfig, tokenizer: Tokenizer, sentence: str, *, mask_id: int, num_hidden: int = 1
) -> Tensor:
    """Ids `[L]` of a sentence with `num_hidden` hidden words in place of every `[mask]`.

    A sentence too long loses words behind its last mask first, then its first words, never a mask.
    """
    first = [] if words.start_id is None else [words.start_id]
    last = [] if words.end_id is None else [words.end_id]
    room = words.context_length - len(first) - len(last)
    parts = [tokenizer.words(part) for part in _MASK.split(sentence)]
    num_masks = num_hidden * (len(parts) - 1)
    if num_masks > room:
        raise HarvestError(
            f"{num_masks} hidden words do not fit into the {room} words of the text tower: {sentence!r}"
        )
    middle: list[int] = []
    for part in parts[:-1]:
        middle += part + [mask_id] * num_hidden
    excess = len(middle) + len(parts[-1]) - room
    if excess > 0:
        tokenizer.truncated += 1
        tail = parts[-1][: max(0, len(parts[-1]) - excess)]
        excess -= len(parts[-1]) - len(tail)
        dropped = [place for place, word in enumerate(middle) if word != mask_id][:excess]
        middle = [word for place, word in enumerate(middle) if place not in set(dropped)]
    else:
        tail = parts[-1]
    given = [*first, *middle, *tail, *last]
    ids = torch.full((words.context_length,), words.pad_id)
    ids[: len(given)] = torch.tensor(given)
    return ids


class QuestionTokenizer:
    """Questions to ids `[n, L]` with one hidden word each, where the answer stands; counts those it had to cut."""

    def __init__(self, words: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        self.words, self.tokenizer = words, tokenizer
        self.mask_id = words.vocab_size if words.mask_id is None else words.mask_id

    @property
    def truncated(self) -> int:
        return self.tokenizer.truncated

    def __call__(self, questions: list[str]) -> Tensor:
        return torch.stack(
            [masked_ids(self.words, self.tokenizer, prompt(q), mask_id=self.mask_id) for q in questions]
        )
