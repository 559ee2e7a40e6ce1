"""What `harvest check` and `harvest prepare` are asked to do. Needs no PyTorch, so that their help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class CheckConfig:
    min_s: float = 1.0
    """Clips that are shorter are named."""
    min_words: int = 2
    """Captions of fewer words are named."""
    min_similarity: float | None = None
    """Rows whose best caption is less similar to the clip, by an image model, are named."""
    video_limit_s: float = 30.0
    """A clip that takes longer to read counts as broken."""


@dataclass(frozen=True)
class PrepareConfig:
    short_side: Annotated[int, Range(least=2)] = 256
    """Pixels; smaller videos keep their size."""
    frames: Annotated[int | None, Range(least=1)] = None
    """So many frames of each clip as JPEGs, from the middle of equal segments, instead of a video."""
    key_every: Annotated[int, Range(least=1)] = 12
    """Largest distance of key frames: a random frame then costs six to decode on average."""
    crf: Annotated[int, Range(least=0, most=51)] = 23
    """x264's quality, 0 (lossless) to 51."""
    max_fps: Annotated[float | None, Range(above=0)] = 30.0
    """Frames a second kept; None keeps all."""
    clips_per_shard: Annotated[int, Range(least=1)] = 1000
    video_limit_s: Annotated[float, Range(above=0)] = 300.0
    """A clip that takes longer counts as broken."""

    def __post_init__(self) -> None:
        check_ranges(self, "prepare")
