"""Text to ids and back. A tokenizer belongs to a text tower and travels in its model folder as tokenizer.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from harvest.model.text_cleaning import Clean, clean_text, special_pattern


@dataclass(frozen=True)
class TokenizerConfig:
    context_length: int = 77
    pad_id: int = 49407
    clean: Clean = "none"
    """What happens to a text first. clip: broken Unicode and HTML entities are mended. siglip: lower case, no
    punctuation. umt: the `pre_text` of UMT's data sets. Literal special tokens such as `<|endoftext|>` are removed
    everywhere: users could move the position at which the feature is read."""


class Tokenizer:
    """Texts to int64 ids of one length, by the `tokenizers` library. Counts the texts that it had to cut."""

    def __init__(self, core: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        self.core = core
        self.config = config
        self.truncated = 0
        core.no_padding()
        core.enable_truncation(config.context_length)
        special = [token.content for token in core.get_added_tokens_decoder().values() if token.special]
        self._special = special_pattern(special)

    @classmethod
    def load(cls, path: Path, config: TokenizerConfig) -> Tokenizer:
        return cls(tokenizers.Tokenizer.from_file(str(path)), config)

    @property
    def start_id(self) -> int | None:
        """The id that begins every text; None where texts begin with their first word."""
        return self._frame()[0]

    @property
    def end_id(self) -> int | None:
        """The id that ends every text; None where texts end without a mark."""
        return self._frame()[1]

    def _frame(self) -> tuple[int | None, int | None]:
        whole = self.core.encode("a").ids
        inner = self.core.encode("a", add_special_tokens=False).ids
        before = 1 if whole[1 : 1 + len(inner)] == inner and len(whole) > len(inner) else 0
        after = len(whole) - len(inner) - before
        return whole[0] if before else None, whole[-1] if after else None

    def save(self, path: Path) -> None:
        self.core.save(str(path))

    def __call__(self, texts: list[str]) -> Tensor:
        """Ids `[len(texts), context_length]`, padded at the right. Texts too long are cut and counted."""
        encodings = self.core.encode_batch([self._clean(text) for text in texts])
        ids = torch.full((len(texts), self.config.context_length), self.config.pad_id)
        for row, encoding in zip(ids, encodings, strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
            self.truncated += bool(encoding.overflowing)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The words of ids, without special tokens."""
        return self.core.decode(ids).strip()

    def words(self, text: str) -> list[int]:
        """The ids of a text alone, without start and end."""
        return self.core.encode(self._clean(text), add_special_tokens=False).ids

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than what is read of it."""
        return bool(self.core.encode(self._clean(text)).overflowing)

    def _clean(self, text: str) -> str:
        return clean_text(text, self.config.clean, self._special)


def train_tokenizer(texts: list[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """A byte-level BPE with CLIP's way of splitting, learned from `texts`; any other text still has ids.

    The same texts give the same ids on every machine and rank and after every restart, which the trainer of the
    `tokenizers` library does not promise: it breaks ties by the order of a hash table.
    """
    normalizer = tokenizers.normalizers.Lowercase()
    splitter = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            words[word] += count
    pieces = ["<start>", "<end>", "<pad>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    pieces += sorted({word[-1] + _WORD_END for word in words})
    merges = _learn_merges(words, vocab_size - len(pieces))
    ids: dict[str, int] = {}
    for piece in [*pieces, *(a + b for a, b in merges)]:
        ids.setdefault(piece, len(ids))
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=ids, merges=merges, end_of_word_suffix=_WORD_END, unk_token="<end>")
    )
    core.normalizer = normalizer
    core.pre_tokenizer = splitter
    core.decoder = tokenizers.decoders.BPEDecoder(suffix=_WORD_END)
    core.add_special_tokens(["<start>", "<end>", "<pad>"])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return Tokenizer(core, TokenizerConfig(context_length=context_length, pad_id=2))


_WORD_END = "</w>"
_Pair = tuple[str, str]


def _learn_merges(words: Mapping[str, int], most: int) -> list[_Pair]:
    """Byte-pair encoding: join the most frequent pair, of equally frequent ones the first by name, `most` times."""
    split = {word: [*word[:-1], word[-1] + _WORD_END] for word in words}
    counts: Counter[_Pair] = Counter()
    found_in: dict[_Pair, set[str]] = {}
    for word, parts in split.items():
        for pair in pairwise(parts):
            counts[pair] += words[word]
            found_in.setdefault(pair, set()).add(word)
    merges: list[_Pair] = []
    while counts and len(merges) < most:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in found_in.pop(best):
            before = split[word]
            for pair in pairwise(before):
                counts[pair] -= words[word]
            after: list[str] = []
            for part in before:  # from the left, as the merge will be applied
                if after and (after[-1], part) == best:
                    after[-1] += part
                else:
                    after.append(part)
            split[word] = after
            for pair in pairwise(after):
                counts[pair] += words[word]
                found_in.setdefault(pair, set()).add(word)
        counts = Counter({pair: count for pair, count in counts.items() if count > 0})
    return merges
