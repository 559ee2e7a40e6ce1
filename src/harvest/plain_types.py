"""Types that cross from one room into another and need no PyTorch: what reads videos and searches starts without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
"""RGB: a picture `[3, H, W]`, or those of a clip `[T, 3, H, W]`."""

OnProgress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

Fit = Literal["squash", "crop", "pad"]
"""How a picture becomes a square: scaled to it; its middle, after the shorter side; or whole, between black borders."""

Interpolation = Literal["bicubic", "bilinear"]
"""How it is scaled, always with antialiasing."""

Precision = Literal["bf16", "fp16", "fp32"]

Selector = Literal["random", "tube", "motion", "attention", "run_length", "merge"]
"""Who picks the tubelets that are seen (`tokens.selectors`)."""


class Squares(TypedDict):
    """What a model's pictures are: arguments of every reader, as `VideoEncoderConfig.squares` gives them."""

    image_size: int
    fit: Fit
    interpolation: Interpolation


@dataclass(frozen=True)
class Clip:
    """Decoded frames of one stretch of a video. Checks itself."""

    pixels: Pixels  # [T, 3, H, W]
    seconds: npt.NDArray[np.float64]  # [T], in the file's clock, never decreasing
    shown_as: tuple[int, int] | None = None  # height and width of the video, before it was scaled

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if len(shape) != 4 or shape[1] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels: expected uint8 [T, 3, H, W], got {self.pixels.dtype} {list(shape)}")
        if self.seconds.shape != shape[:1]:
            raise ValueError(f"seconds: expected [{shape[0]}], got {list(self.seconds.shape)}")
        if (np.diff(self.seconds) < 0).any():
            raise ValueError("seconds: must not decrease")

    @property
    def frames(self) -> Tensor:
        """`pixels` as a tensor in the same memory."""
        import torch

        return torch.from_numpy(self.pixels)

    @property
    def times_s(self) -> Tensor:
        """`seconds` as a tensor in the same memory."""
        import torch

        return torch.from_numpy(self.seconds)
