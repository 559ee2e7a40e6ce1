"""What searching needs of a model, whichever library computes it: PyTorch, or ONNX Runtime on a machine without it.

Shapes: B clips, T frames, S side of a frame, E shared width. Vectors are of unit length, fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from harvest.errors import HarvestError
from harvest.model.importing.sources import find_local
from harvest.plain_types import Pixels, Precision, Squares
from harvest.search.library.store import Floats

if TYPE_CHECKING:
    from harvest.search.library.segmentation import Segmentation

_EVERYDAY_WORDS = [
    "astronaut",
    "ironing",
    "shirts",
    "empty",
    "swimming",
    "pool",
    "kangaroo",
    "conducting",
    "orchestra",
    "volcano",
    "beekeeper",
    "folding",
    "paper",
    "train",
    "children",
    "kitchen",
    "mountain",
    "football",
    "telescope",
    "library",
    "waterfall",
    "dancing",
    "bicycle",
    "piano",
    "garden",
    "street",
]
_MOST_PIECES = 2.0  # of a word, on average, in a vocabulary that has it


class Encoder(Protocol):
    """A model as a library uses it."""

    source: str
    """What it was opened from; a folder as its absolute path."""
    squares: Squares
    """What its pictures are."""
    width: int
    """E."""
    num_frames: int
    """The frames that a moment is shown with, where nobody says another number."""
    precision: Precision
    """The fastest that gives the vectors of fp32 nearly (`docs/results.md`), on a machine that computes in it."""
    is_frame_wise: bool
    """It sees frames one by one; the vector of a clip is the mean of its frames'."""
    context_length: int
    """The longest text that it reads, in word pieces with the marks around them."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of tubelets that it was trained to see of a clip; none where nothing is known."""

    @property
    def digest(self) -> str:
        """Of the weights: the same for a folder that was moved or copied, and for an export of the model in fp32."""

    def settle(self, segmentation: Segmentation) -> Segmentation:
        """How a new library's moments are seen, where that says nothing of a budget that the model is fixed to."""

    def check(self, segmentation: Segmentation, precision: Precision) -> None:
        """HarvestError where it cannot see moments so."""

    def embed_clips(
        self, clips: Pixels, segmentation: Segmentation | None = None, precision: Precision = "fp32"
    ) -> Floats:
        """Clips `[B, T, 3, S, S]` to vectors `[B, E]`, seen as `segmentation` says; None: all of them."""

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Sentences to vectors `[len(texts), E]`."""

    def num_pieces(self, text: str) -> int:
        """How many pieces the vocabulary makes of a text."""

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than what is read of it."""


def knows_everyday_words(encoder: Encoder) -> bool:
    """Whether the vocabulary has the words of everyday sentences. CLIP's has 1.07 pieces a word of those tried, the
    mini-world's 2.9."""
    pieces = sum(encoder.num_pieces(word) for word in _EVERYDAY_WORDS)
    return pieces < _MOST_PIECES * len(_EVERYDAY_WORDS)


def named(source: str) -> str:
    """A model's source so that it means the same from another folder."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def signature(source: str) -> str:
    """Size and time of a local model's weights; empty where that says nothing."""
    folder = find_local(source)
    for weights in (folder / "model.safetensors", folder / "video.onnx"):
        if weights.is_file():
            about = weights.stat()
            return f"{about.st_size}:{about.st_mtime_ns}"
    return ""


def check_finite(vectors: Floats, source: str) -> Floats:
    """The vectors; HarvestError where one is not finite."""
    if not np.isfinite(vectors).all():
        raise HarvestError(f"{source} gives vectors that are not finite: its weights are broken")
    return vectors
