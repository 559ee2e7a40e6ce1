"""A model that `harvest export --format onnx` wrote, as a library uses it: no PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from harvest.errors import HarvestError
from harvest.export.runner import OnnxVideoText
from harvest.plain_types import Pixels, Precision
from harvest.search.encoders.encoder import check_finite, named
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Floats


class OnnxEncoder:
    """`Encoder` by the runner of an export."""

    precision: Precision = "fp32"

    def __init__(self, folder: Path) -> None:
        self.source = named(str(folder))
        try:
            self.model = OnnxVideoText(folder)
        except (OSError, ValueError, KeyError) as error:
            raise HarvestError(f"{folder} is no whole export: {error}. Export the model again") from error
        settings = self.settings = self.model.settings
        if "is_frame_wise" not in settings:
            raise HarvestError(f"{folder} was exported by an older Harvest: export the model again")
        self.squares = settings["squares"]
        self.width = int(settings["embed_dim"])
        self.num_frames = self.model.num_frames
        self.is_frame_wise = bool(settings["is_frame_wise"])
        self.context_length = int(settings["tokenizer"]["context_length"])

    @property
    def budgets(self) -> tuple[int, ...]:
        return ()  # `settle` takes the one that it was exported with

    @cached_property
    def digest(self) -> str:
        """Of the model that was exported; what is computed in 8 bits gives other vectors."""
        weights = str(self.settings["weights_digest"])
        return (
            hashlib.blake2b(f"int8 {weights}".encode(), digest_size=16).hexdigest()
            if self.is_int8
            else weights
        )

    @property
    def is_int8(self) -> bool:
        return bool(self.settings["int8"])

    def settle(self, segmentation: Segmentation) -> Segmentation:
        settings = self.settings
        if segmentation.budget is not None or settings["budget"] is None:
            return segmentation
        return dataclasses.replace(
            segmentation, budget=int(settings["budget"]), selector=settings["selector"]
        )

    def check(self, segmentation: Segmentation, precision: Precision) -> None:
        settings, frames = self.settings, segmentation.num_frames or self.num_frames
        if precision != "fp32":
            raise HarvestError(
                f"precision {precision}: an ONNX export computes in the numbers it was exported with"
            )
        if settings["fixed_frames"] not in (None, frames) or frames > settings["most_frames"]:
            raise HarvestError(
                f"{self.source} was exported for {settings['fixed_frames'] or 'at most ' + str(settings['most_frames'])} "
                f"frames of a moment, and {frames} are asked for"
            )
        if segmentation.budget is None and segmentation.selector != "run_length":
            return
        if settings["selector"] != segmentation.selector:
            raise HarvestError(
                f"{self.source} {'picks tubelets by ' + settings['selector'] if settings['selector'] else 'sees all tubelets'}"
                f", and selector {segmentation.selector} is asked for: harvest export … --budget N --selector "
                f"{segmentation.selector}"
            )
        if (segmentation.budget or 0) > self._num_tubelets(frames):
            raise HarvestError(
                f"a budget of {segmentation.budget} tubelets is more than a clip has: lower it to at most "
                f"{self._num_tubelets(frames)}"
            )

    def embed_clips(
        self, clips: Pixels, segmentation: Segmentation | None = None, precision: Precision = "fp32"
    ) -> Floats:
        fixed = self.settings["fixed_frames"]
        if fixed and clips.shape[1] != fixed:
            raise HarvestError(
                f"{self.source} was exported for clips of {fixed} frames: it cannot be asked with a picture"
            )
        budget: int | None = None
        if self.settings["selector"] is not None:
            budget = segmentation.budget if segmentation is not None else None
            budget = budget or self._num_tubelets(clips.shape[1])
        return check_finite(self.model.embed_frames(clips, budget=budget), self.source)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        return check_finite(self.model.embed_texts(texts), self.source)

    def num_pieces(self, text: str) -> int:
        return len(self.model.encode(text, with_marks=False).ids)

    def is_cut(self, text: str) -> bool:
        return bool(self.model.encode(text).overflowing)

    def _num_tubelets(self, frames: int) -> int:
        size = int(self.settings["tubelet_size"])
        return -(-frames // size) * int(self.settings["num_patches"])
