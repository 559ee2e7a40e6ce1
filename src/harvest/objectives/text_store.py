"""Captions of a frozen text tower, encoded once: on disk, shared by all ranks and by later runs.

FOLDER/texts-0123456789abcdef/   blocks of `data.stored_rows`, and `cache.json`, which says what they are made of

The name is a digest of that: of the text tower's weights, the tokenizer, the texts and the type of the numbers. Ranks
share the blocks; a start that was stopped goes on with those that are missing. The last row is the empty text, for
clips without a caption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harvest.data.stored_rows import StoredRows, block_path, blocks_of, write_block
from harvest.files import WHOLE, begin_filling, check_made_of, finish_filling
from harvest.interfaces import HarvestError
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Ready
from harvest.parallel import autocast, barrier, computed_in, sync_errors
from harvest.progress import bar

TextType = Literal["fp32", "fp16"]
_TYPES = {"fp32": np.float32, "fp16": np.float16}
_WHAT = "store of encoded captions"


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
def encode_texts(
    model: VideoTextModel, text_ids: Tensor, progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Embeddings `[n, E]` in fp32 of tokens `[n, L]`.

    Texts of like length share a batch, so that padding common to a batch can be left out.
    """
    places = model.text.word_mask(text_ids).sum(dim=1).argsort()
    pooled = torch.empty(len(text_ids), model.config.text_tower.embed_dim, device=text_ids.device)
    for start, chosen in zip(range(0, len(places), 512), torch.split(places, 512), strict=True):
        pooled[chosen] = model.encode_text(text_ids[chosen]).pooled.float()
        progress(start + len(chosen))
    return pooled


def open_texts(model: VideoTextModel, ready: Ready, folder: Path, stored: TextType) -> Captions:
    """The captions of a run's data set, encoded by all ranks where they are not yet.

    fp16 are computed in the run's precision, fp32 in fp32. Raises HarvestError where `folder` cannot be written.
    """
    dataset, here, tokenizer = ready.dataset, ready.here, ready.tokenizer
    if tokenizer is None:
        raise HarvestError("captions cannot be encoded: the model has no text tower")
    precision = computed_in(here.device, ready.run.loop.precision) if stored == "fp16" else "fp32"
    num = dataset.num_captions
    made_of = {
        "tower": digest_of_tower(model, tokenizer),
        "texts": dataset.captions_digest(),
        "rows": num + 1,
        "stored": stored,
        "computed": precision,
    }
    folder = folder / f"texts-{hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()}"
    with sync_errors():
        if here.is_main:
            try:
                begin_filling(folder, made_of, _WHAT)
            except OSError as error:
                raise HarvestError(
                    f"captions cannot be encoded into {folder}: {error.strerror}; objective.text_store names another folder"
                ) from error
    barrier()
    blocks = list(enumerate(blocks_of(num + 1)))[here.rank :: here.size]
    mine = [(number, rows) for number, rows in blocks if not block_path(folder, number).exists()]
    with (
        bar("encoding captions", quiet=not here.is_main) as progress,
        autocast(here.device, precision),
        sync_errors(),
    ):
        done = sum(map(len, (rows for _, rows in blocks))) - sum(map(len, (rows for _, rows in mine)))
        for number, rows in mine:
            texts = dataset.captions(range(rows.start, min(rows.stop, num)))
            ids = tokenizer(texts).to(here.device) if texts else None
            parts = []
            if ids is not None:
                told = lambda n, before=done: progress(min((before + n) * here.size, num), num)  # noqa: E731
                parts.append(encode_texts(model, ids, told))
            if rows.stop == num + 1:
                parts.append(encode_texts(model, tokenizer([""]).to(here.device)))
            write_block(
                folder,
                number,
                (torch.cat(parts) if len(parts) > 1 else parts[0]).cpu().numpy().astype(_TYPES[stored]),
            )
            done += len(rows)
    barrier()
    if here.is_main and not (folder / WHOLE).exists():
        finish_filling(folder, made_of)
    barrier()
    check_made_of(folder, made_of, _WHAT)
    store = StoredRows(folder, num + 1)
    if store.width != model.config.text_tower.embed_dim:
        raise HarvestError(f"{folder} holds embeddings of {store.width} numbers: remove it")
    return Captions(num, _Pooled(store), dataset.clips_of_captions, folder)


class _Pooled:
    """Rows of a store by the numbers of captions; -1, no caption, is the last row."""

    def __init__(self, store: StoredRows) -> None:
        self.store = store

    def __call__(self, captions: Tensor) -> Tensor:
        return self.store(torch.where(captions < 0, len(self.store) - 1, captions))


def digest_of_tower(model: VideoTextModel, tokenizer: Tokenizer) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{tokenizer.core.to_str()} {tokenizer.config} {model.config.text}".encode())
    for name, tensor in sorted(model.text.state_dict().items()):
        if name == "mask_embedding":  # of hidden words, which no clean caption has
            continue
        digest.update(name.encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
