"""What the words of a caption decide: whether a clip may be mirrored, and which part of a long caption is shown, and where
padding is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from harvest.interfaces import HarvestError

SIDE_WORDS = {
    "en": "left right leftmost rightmost leftward leftwards rightward rightwards lefthand righthand clockwise"
    " counterclockwise anticlockwise",
    "de": "links rechts linke linken linker linkes rechte rechten rechter rechtes",
    "fr": "gauche droite",
    "es": "izquierda derecha izquierdo derecho",
    "it": "sinistra destra sinistro destro",
    "pt": "esquerda direita esquerdo direito",
    "nl": "links rechts linker rechter linkse rechtse",
    "ru": "слева справа влево вправо налево направо левый правый левая правая левой правой",
    "zh": "左 右",
    "ja": "左 右",
    "ko": "왼쪽 오른쪽 왼 오른",
}
"""Words of each language that name a side or a sense of turning, which a mirrored clip would contradict."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])")


@lru_cache
def _sides(languages: tuple[str, ...]) -> re.Pattern[str]:
    unknown = sorted(set(languages) - SIDE_WORDS.keys())
    if unknown:
        raise HarvestError(
            f"data.side_languages: no words for {unknown[0]!r}; there are {', '.join(SIDE_WORDS)}"
        )
    words = [word for language in languages for word in SIDE_WORDS[language].split()]
    # where words are not parted by spaces a part of the text is enough
    spaced = [re.escape(word) for word in words if word < "\u0500"]
    others = [re.escape(word) for word in words if word >= "\u0500"]
    return re.compile("|".join([rf"\b(?:{'|'.join(spaced)})\b"] * bool(spaced) + others) or r"(?!)", re.I)


def names_a_side(texts: Iterable[str], languages: tuple[str, ...] = tuple(SIDE_WORDS)) -> bool:
    """Does one of these captions, questions, answers or class names say left or right?"""
    return any(_sides(languages).search(text) for text in texts)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without blank ones; a text without an end of a sentence is one."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()] or [text]


def first_sentences(text: str, max_words: int) -> str:
    """As many first sentences as have at most `max_words` words together, at least one."""
    if len(text.split()) <= max_words:
        return text
    chosen: list[str] = []
    for sentence in sentences(text):
        if chosen and sum(len(part.split()) for part in chosen) + len(sentence.split()) > max_words:
            break
        chosen.append(sentence)
    return " ".join(chosen)


def drawn_sentence(text: str, max_words: int, generator: torch.Generator) -> str:
    """A text of more than `max_words` words becomes one of its sentences, each as likely."""
    if len(text.split()) <= max_words:
        return text
    parts: Sequence[str] = sentences(text)
    return parts[int(torch.randint(len(parts), (), generator=generator))]


def cut_padding(ids: Tensor, pad_id: int | None) -> Tensor:
    """Tokens `[..., L]` cut behind the longest text, at a multiple of 8 columns; with `pad_id` None as they are.

    One column of padding stays: CLIP pads with its end token, and the first of them ends the text.
    """
    if pad_id is None or not ids.numel():
        return ids
    is_word = (ids != pad_id).flatten(0, -2).any(dim=0)
    longest = int(is_word.nonzero()[-1]) + 1 if is_word.any() else 0
    return ids[..., : 8 * (longest // 8 + 1)].contiguous()
