"""Captions of a frozen text tower, encoded once: a row of `data.stored_rows` each.

The last row is the empty text, for clips without a caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.folder import digest_of
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Ready
from harvest.objectives.stores import open_rows
from harvest.parallel import computed_in

TextType = Literal["fp32", "fp16"]
STORED = {"fp32": torch.float32, "fp16": torch.float16}
_AT_A_TIME = 4096  # captions, of which those of like length are encoded together


class Captions(NamedTuple):
    """The encoded captions of a data set, by their numbers in `Batch.caption`."""

    num: int
    pooled: Callable[[Tensor], Tensor]
    """Embeddings `[..., E]` of int64 `[...]`; -1 is the empty text."""
    clips: Callable[[Tensor], Tensor]
    """The numbers in `Batch.example` of the clips of captions."""
    folder: Path | None = None
    """Where they are stored."""


@torch.no_grad()
def encode_texts(model: VideoTextModel, text_ids: Tensor) -> Tensor:
    """Embeddings `[n, E]` in fp32 of tokens `[n, L]`.

    Texts of like length share a batch, so that padding common to a batch can be left out.
    """
    places = model.text.word_mask(text_ids).sum(dim=1).argsort()
    pooled = torch.empty(len(text_ids), model.config.text_tower.embed_dim, device=text_ids.device)
    for chosen in torch.split(places, 512):
        pooled[chosen] = model.encode_text(text_ids[chosen]).pooled.float()
    return pooled


def open_texts(model: VideoTextModel, ready: Ready, folder: Path, stored: TextType) -> Captions:
    """The captions of a run's data set, encoded by all ranks where they are not yet; its batches bring their rows.

    fp16 are computed in the run's precision, fp32 in fp32. Raises HarvestError where `folder` cannot be written.
    """
    data, here, tokenizer = ready.dataset, ready.here, ready.tokenizer
    if tokenizer is None:
        raise HarvestError("captions cannot be encoded: the model has no text tower")
    precision = computed_in(here.device, ready.run.loop.precision) if stored == "fp16" else "fp32"
    num = data.num_captions

    def compute(rows: range) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        for start in range(rows.start, rows.stop, _AT_A_TIME):
            some = range(start, min(start + _AT_A_TIME, rows.stop))
            texts = data.captions(range(start, min(some.stop, num))) if start < num else []
            ids = tokenizer([*texts, ""] if some.stop > num else texts).to(here.device)
            yield torch.arange(some.start, some.stop), {"pooled": encode_texts(model, ids)}

    made_of = {
        "tower": digest_of_tower(model, tokenizer),
        "texts": data.captions_digest(),
        "computed": precision,
    }
    fields = {"pooled": (STORED[stored], (model.config.text_tower.embed_dim,))}
    store = open_rows(folder, "texts", made_of, num + 1, fields, compute, here=here, precision=precision)
    data.stored = ("caption", store)
    return Captions(num, lambda numbers: store.read(numbers)["pooled"], data.clips_of_captions, store.folder)


def digest_of_tower(model: VideoTextModel, tokenizer: Tokenizer) -> str:
    """What a clean caption is encoded by: all but the vector of hidden words."""
    words = f"{tokenizer.core.to_str()} {tokenizer.config} {model.config.text}"
    tower = digest_of(model.text, without=("mask_embedding",))
    return hashlib.blake2b(f"{words} {tower}".encode(), digest_size=16).hexdigest()
