"""What happens to a text before its words are looked up. Plain Python: exported models carry this file."""

from __future__ import annotations

import html
import re
import string
from collections.abc import Iterable
from typing import Literal

Clean = Literal["none", "clip", "siglip", "umt"]


def special_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches special tokens spelled out in a text; where there are none, nothing."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)", re.IGNORECASE)


def clean_text(text: str, how: Clean, special: re.Pattern[str]) -> str:
    """The text as the tokenizer of a family takes it, without special tokens and repeated spaces."""
    before = None
    while text != before:  # what mending or removing brings to light is removed too
        before = text
        if how == "clip":
            text = _mended(text)
        text = special.sub(" ", text)
    if how == "siglip":
        text = text.lower().translate(_NO_PUNCTUATION)
    elif how == "umt":
        text = umt_text(text)
    return " ".join(text.split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _mended(text: str) -> str:
    """Broken Unicode, full-width letters and HTML entities, however deep, as CLIP's tokenizer mends them."""
    import ftfy  # only CLIP's tokenizers need it

    text = ftfy.fix_text(text)
    while (plain := html.unescape(text)) != text:
        text = plain
    return text


def umt_text(text: str) -> str:
    """A caption or question as UMT's data sets give it to the tokenizer (its `pre_text`): lower case, no punctuation."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
