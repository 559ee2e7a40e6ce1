"""Tokenizers of CLIP, SigLIP and BERT from the files that their models come with."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import tokenizers

from harvest.files import check_file
from harvest.interfaces import HarvestError
from harvest.model.text_cleaning import Clean
from harvest.model.tokenizer import Tokenizer, TokenizerConfig
from harvest.settings import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
MOST_MERGES = 64 << 20
"""Bytes of an unpacked list of merges; OpenAI's has 3 million."""


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json, or HarvestError with its path; none whose patterns could take for ever or fill the memory."""
    _check_harmless(read_json(path), path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise HarvestError(f"{path} is not a readable tokenizer.json: {error}") from error


_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]|\\[1-9]|\\k<")
"""A group that is repeated, or a reference back: what takes exponential time. No published tokenizer has one."""


def _check_harmless(settings: dict[str, Any], path: Path) -> None:
    if not isinstance(settings.get("model"), dict):
        raise HarvestError(f"{path} is not a readable tokenizer.json: it has no model")
    growing = 0
    todo: list[Any] = [settings.get("normalizer"), settings.get("pre_tokenizer"), settings.get("decoder")]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        elif isinstance(part, dict):
            todo += part.values()
            pattern = part.get("Regex")
            if isinstance(pattern, str) and (len(pattern) > 4096 or _REPEATED_GROUP.search(pattern)):
                raise HarvestError(
                    f"{path}: its pattern {pattern[:80]!r} could take for ever: it is not used"
                )
            content = part.get("content")
            growing += isinstance(content, str) and len(content) > 1
            if growing > 2 or (isinstance(content, str) and len(content) > 8):
                raise HarvestError(f"{path}: its replacements could make texts grow without bound")


def id_of(token: str, core: tokenizers.Tokenizer, where: Path | str) -> int:
    number = core.token_to_id(token)
    if number is None:
        raise HarvestError(f"{where}: the tokenizer has no {token!r}")
    return number


def clip_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's tokenizer from its vocabulary and merges."""
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
        )
    )
    normalizers, pre = tokenizers.normalizers, tokenizers.pre_tokenizers
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    core.pre_tokenizer = pre.Sequence(
        [
            pre.Split(tokenizers.Regex(words), "removed", invert=True),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.add_special_tokens([START, END])
    core.post_processor = tokenizers.processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]))
    return core


def read_bpe_vocabulary(path: Path) -> tokenizers.Tokenizer:
    """CLIP's tokenizer from OpenAI's `bpe_simple_vocab_16e6.txt.gz`: a list of merges, best first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [line.split() for line in lines.read(MOST_MERGES).split("\n")[1 : 49152 - 256 - 2 + 1]]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise HarvestError(f"{path} is not a readable vocabulary of merges: {error}") from error
    merges = [(row[0], row[1]) for row in rows if len(row) == 2]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return clip_bpe({piece: i for i, piece in enumerate(pieces)}, merges)


def clip_tokenizer(folder: Path, vocabulary: Path | None, context_length: int) -> Tokenizer:
    """CLIP's tokenizer from the file of a vocabulary, or from what lies in a folder."""
    names = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
    path = vocabulary or next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None or not path.is_file():
        raise HarvestError(
            f"{path or folder}: no vocabulary. CLIP's texts need tokenizer.json, vocab.json with merges.txt, or "
            "bpe_simple_vocab_16e6.txt.gz beside the weights, or given as `vocabulary`."
        )
    if path.name == "vocab.json":
        check_file(path.parent / "merges.txt", most=MOST_MERGES)
        lines = (path.parent / "merges.txt").read_text(encoding="utf-8").split("\n")
        rows = [line.split() for line in lines if not line.startswith("#version")]
        core = clip_bpe(read_json(path), [(row[0], row[1]) for row in rows if len(row) == 2])
    else:
        core = read_tokenizer(path) if path.suffix == ".json" else read_bpe_vocabulary(path)
    core.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Replace("</w>", " ")]
    )
    pad_id = id_of(END, core, path)
    return Tokenizer(core, TokenizerConfig(context_length=context_length, pad_id=pad_id, clean="clip"))


def hub_tokenizer(
    folder: Path, vocabulary: Path | None, context_length: int, *, clean: Clean = "clip"
) -> Tokenizer:
    """A tokenizer.json as it stands, with its own start and end, and the padding that its folder names."""
    path = vocabulary or folder / "tokenizer.json"
    if not path.is_file():
        raise HarvestError(
            f"{folder} has no tokenizer.json: save it there with transformers, or give one as `vocabulary`"
        )
    core = read_tokenizer(path)
    said = read_json(folder / "tokenizer_config.json").get("pad_token")
    pad = said.get("content") if isinstance(said, dict) else said
    names = [pad] if isinstance(pad, str) else ["<pad>", "[PAD]"]
    pad_id = next((found for name in names if (found := core.token_to_id(name)) is not None), None)
    if pad_id is None:
        raise HarvestError(f"{path}: the tokenizer has no {' or '.join(names)} to pad with")
    return Tokenizer(core, TokenizerConfig(context_length=context_length, pad_id=pad_id, clean=clean))


def siglip_tokenizer(
    folder: Path, vocabulary: Path | None, context_length: int
) -> tuple[Tokenizer, int, str]:
    """SigLIP's tokenizer, or SigLIP 2's (Gemma's with lower case), with the id that ends a text and a note."""
    path = vocabulary or folder / "tokenizer.json"
    if not path.is_file():
        raise HarvestError(
            f"{folder} has no tokenizer.json. Where there is a spiece.model, transformers and sentencepiece write one: "
            "T5Tokenizer.from_pretrained(folder, extra_ids=0, pad_token='</s>').save_pretrained(folder)"
        )
    core = read_tokenizer(path)
    settings: dict[str, Any] = {"context_length": context_length}
    if core.token_to_id("<eos>") is None:
        end_id = id_of("</s>", core, path)
        settings |= {"pad_id": end_id, "clean": "siglip"}
        note = "texts in lower case without punctuation (SigLIP)"
    else:  # the weights were trained on lower case, which not every tokenizer.json of theirs has
        end_id = id_of("<eos>", core, path)
        settings |= {"pad_id": id_of("<pad>", core, path)}
        note = "texts in lower case (SigLIP 2)"
        lower = tokenizers.normalizers.Lowercase()
        core.normalizer = tokenizers.normalizers.Sequence(
            [lower, core.normalizer] if core.normalizer else [lower]
        )
    end = core.id_to_token(end_id)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, end_id)]
    )
    return Tokenizer(core, TokenizerConfig(**settings)), end_id, note


def bert_tokenizer(
    vocabulary: Path, context_length: int, *, clean: Clean = "none", has_end: bool = False
) -> Tokenizer:
    """BERT's lower-cased word pieces from its vocab.txt; texts begin with [CLS] and end without [SEP], as in UMT, or
    with it."""
    check_file(vocabulary, most=MOST_MERGES)
    try:
        pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HarvestError(f"{vocabulary} is not a readable vocabulary of BERT: {error}") from error
    core = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    missing = [name for name in specials if core.token_to_id(name) is None]
    if missing:
        raise HarvestError(f"{vocabulary} is not a vocabulary of BERT: it lacks {', '.join(missing)}")
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    core.add_special_tokens(specials)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if has_end else "[CLS] $A",
        special_tokens=[(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    pad_id = core.token_to_id("[PAD]")
    assert pad_id is not None  # among the specials
    config = TokenizerConfig(context_length=context_length, pad_id=pad_id, clean=clean)
    return Tokenizer(core, config)


def find_vocabulary(folder: Path, vocabulary: Path | None) -> Path:
    path = vocabulary or folder / "vocab.txt"
    if not path.is_file():
        raise HarvestError(f"{path}: BERT's vocabulary is needed: a vocab.txt beside the weights, or given")
    return path


def bert_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a BERT tower's config says of its tokenizer."""
    ids = {name: tokenizer.core.token_to_id(f"[{name.upper()}]") for name in ("pad", "cls", "mask")}
    return {"pad_id": ids["pad"], "start_id": ids["cls"], "mask_id": ids["mask"], "end_id": None}
