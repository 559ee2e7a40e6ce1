"""Embeddings whose first entries are embeddings (Matryoshka): one model for every size of an index.

A frozen text tower's entries carry about equally much each, so the first 64 of 512 would say little, whatever the
video tower learns. Both towers are therefore turned, before training, to the axes in which captions differ most: a
rotation of the shared space, which changes no cosine and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import HarvestError
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel


def shorten(pooled: Tensor, dim: int | None) -> Tensor:
    """The first `dim` entries of unit vectors `[n, E]`, of unit length again; None leaves them as they are.

    Only a model trained with nested sizes (`objective.dims`) puts what matters most into its first entries.
    """
    if dim is None or dim == pooled.shape[-1]:
        return pooled
    if not 1 <= dim < pooled.shape[-1]:
        raise HarvestError(
            f"dim: expected 1 to {pooled.shape[-1]}, the size of the model's embeddings, got {dim}"
        )
    return F.normalize(pooled[..., :dim], dim=-1)


MOST_CAPTIONS = 4096  # that say where the axes lie, evenly spaced among all


@torch.no_grad()
def turn_by_captions(model: VideoTextModel, tokenizer: Tokenizer, captions: Sequence[str]) -> None:
    """Turn the shared space of an image-text model to the axes in which a data set's captions differ most."""
    distinct = sorted(set(captions))
    chosen = distinct[:: -(-len(distinct) // MOST_CAPTIONS)] if distinct else []
    if len(chosen) < 2:
        raise HarvestError("nested embedding sizes (objective.dims) need captions that differ")
    parts = [model.encode_text(tokenizer(chosen[i : i + 256])).pooled for i in range(0, len(chosen), 256)]
    turn_to_main_axes(model, torch.cat(parts))


@torch.no_grad()
def turn_to_main_axes(model: VideoTextModel, texts: Tensor) -> None:
    """Rotate the shared space so that the embeddings `[n, E]` of texts vary most in its first entry, then in the next.

    Cosines stay what they were, up to rounding. The axes are ordered by variance around the mean; of each, the entry
    of largest size is made positive, so that the same texts always give the same axes.
    """
    for tower in (model.video, model.text):
        if not isinstance(tower.projection, nn.Linear):
            raise HarvestError(
                "nested embedding sizes need a projection into the shared space, which this model has not"
            )
    centred = texts.double() - texts.double().mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # columns, variances ascending
    axes = axes.flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = axes * largest.sign()
    for tower in (model.video, model.text):
        for parameter in tower.projection.parameters():  # weight [E, D], bias [E]
            turned = axes.T.to(parameter.device) @ parameter.double()
            parameter.copy_(turned.to(parameter.dtype))
