"""Every type that crosses from one room of the library into another.

Letters in shapes: B clips in a batch, C captions a clip, T frames, N tubelets of a clip, K kept ones,
L words, D width of a tower, E width of the shared space. Frame order is `[B, T, 3, H, W]` everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harvest.errors import HarvestError as HarvestError
from harvest.errors import RunStopped as RunStopped
from harvest.plain_types import Clip as Clip
from harvest.plain_types import Fit as Fit
from harvest.plain_types import Interpolation as Interpolation
from harvest.plain_types import OnProgress as OnProgress
from harvest.plain_types import Squares as Squares


@dataclass(frozen=True)
class Box:
    """A region of a picture, and what is done there."""

    sides: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture, 0 to 1."""
    labels: tuple[int, ...] = ()
    score: float = 1.0
    """How sure a detector is that somebody is there."""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.sides
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise HarvestError(
                f"the box {self.sides} is not inside the picture: expected shares from 0 to 1, left before right, top "
                "before bottom"
            )


@dataclass(frozen=True)
class Example:
    """One row of a manifest.

    `texts` are the captions of the stretch or, for a multiple-choice question, its options, with
    `label` the index of the right one. `question` and `answer` are set for open-ended questions, `labels`
    instead of `label` where several classes may hold at once. `boxes` say who does what in the picture in the middle
    of the stretch.
    """

    id: str
    video: str
    texts: tuple[str, ...] = ()
    label: int | None = None
    start_s: float = 0.0
    end_s: float | None = None
    question: str | None = None
    answer: str | None = None
    labels: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise HarvestError(f"example {self.id!r}: end_s {self.end_s} is not after start_s {self.start_s}")


_NO_HARD_TEXTS = torch.zeros(0, 0, 0, dtype=torch.int64)
_NOT_STORED = torch.zeros(0, 0, dtype=torch.uint8)


class Batch(NamedTuple):
    """What a loader yields and an objective takes. Integers are int64."""

    video: Tensor  # uint8 [B, T, 3, H, W], normalised by the encoder; an image is a clip with T = 1
    text_ids: Tensor  # [B, C, L]
    example: Tensor  # [B]; equal numbers = same video, so that all its captions are positives
    caption: Tensor  # [B, C]; the caption's number in its data set, -1 for none
    label: (
        Tensor  # [B]; -1 where there is none. Where a row may have several, 0 and 1 for every class, [B, A]
    )
    hard_ids: Tensor = _NO_HARD_TEXTS  # [B, M, L], sentences false of each clip; -1 where it has fewer
    stored: Tensor = _NOT_STORED  # uint8 [B, R] or [B, C, R], a row of a store for each clip or each caption

    def rows(self, chosen: Tensor | slice | list[int]) -> Batch:
        """Some clips of the batch."""
        return Batch(*(tensor[chosen] if len(tensor) else tensor for tensor in self))


class HardTextSource(NamedTuple):
    """Sentences that are false of a clip and near one of its captions."""

    of: Callable[[str], Sequence[str]]
    """The sentences of a caption, none where nothing is known. It has to survive the way into a worker process."""
    num: int
    """Of these, the number drawn for each clip and step."""


class Grid(NamedTuple):
    """How an encoder divides a clip into tubelets, numbered in the order (time, row, column)."""

    num_times: int
    num_patches: int  # in a frame
    tubelet_size: int  # frames
    patch_size: int  # pixels

    @property
    def num_tubelets(self) -> int:
        return self.num_times * self.num_patches


class Packed(NamedTuple):
    """Kept tubelets of clips that keep different numbers, one clip behind the other, without padding.

    Clips that keep equally many are neighbours: G groups of n clips with K tubelets each, whose sum of n * K is total.
    """

    keep: Tensor  # int64 [total], ascending within a clip
    runs: Tensor  # int64 [total]: the times in a row that each stands for, from its own on
    clips: Tensor  # int64 [B]: the order in which the clips stand
    groups: tuple[tuple[int, int], ...]  # (n, K) of each


class Merged(NamedTuple):
    """In place of kept tubelets: read all, and merge what is alike until `budget` tokens are left (inference)."""

    budget: int


Kept = Tensor | Packed | Merged | None
"""What an encoder sees of a batch: tubelets `[B, K]`, different numbers of each clip, all of them merged; or just all."""


class VideoFeatures(NamedTuple):
    tokens: Tensor  # [B, K, D] after the last norm, prefix tokens removed
    pooled: Tensor  # [B, E], unit length
    layers: tuple[Tensor, ...] = ()  # the asked-for intermediate layers, each [B, K, D] after the last norm
    attention: Tensor | None = None  # [B, K], from the prefix to the tubelets, fp32; only where asked for
    mask: Tensor | None = None  # bool [B, K], False on padding; only where clips keep different numbers

    def rows(self, chosen: Tensor | slice | list[int]) -> VideoFeatures:
        """Tokens and embeddings of some clips of the batch."""
        mask = self.mask[chosen] if self.mask is not None else None
        return VideoFeatures(self.tokens[chosen], self.pooled[chosen], mask=mask)


class TextFeatures(NamedTuple):
    tokens: Tensor  # [B, L, D]; padding behind the batch's longest text may be left out
    pooled: Tensor  # [B, E], unit length
    mask: Tensor  # bool [B, L], True where there is a word, False on padding


class Losses(NamedTuple):
    total: Tensor  # scalar, differentiated
    parts: dict[str, Tensor]  # detached scalars, only looked at
