"""A model in PyTorch, as a library uses it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch

from harvest.evaluation.clips import evaluating
from harvest.evaluation.embed import default_frames, embed_texts, encode_clips, mode_of
from harvest.interfaces import HarvestError, TextFeatures
from harvest.model.folder import Unfilled, read_notes, weights_digest
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.sources import find_local
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.plain_types import Pixels, Precision
from harvest.search.encoders.encoder import check_finite, named
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Floats
from harvest.tokens import budget_of


class TorchEncoder:
    """`Encoder` by `load_pretrained`, on this rank's GPU where there is one."""

    precision: Precision = "bf16"

    def __init__(self, source: str) -> None:
        self.source = named(source)
        self.model: VideoTextModel
        self.tokenizer: Tokenizer
        with Unfilled():
            self.model, self.tokenizer, _ = load_pretrained(source)
        if torch.cuda.is_available():
            self.model.cuda()  # under torchrun, this rank's own
        video = self.model.config.video
        self.mode = mode_of(self.model)
        self.squares, self.width = video.squares, video.embed_dim
        self.num_frames = default_frames(self.model, self.mode)
        self.is_frame_wise = self.mode == "image"
        self.context_length = self.tokenizer.config.context_length
        self.read = lru_cache(16)(self._read)

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        return tuple(read_notes(find_local(self.source)).get("budgets", ()))

    @cached_property
    def digest(self) -> str:
        return weights_digest(self.model)

    def settle(self, segmentation: Segmentation) -> Segmentation:
        return segmentation

    def check(self, segmentation: Segmentation, precision: Precision) -> None:
        if segmentation.selection is None:
            return
        if self.is_frame_wise:
            raise HarvestError("choosing tokens needs a video model: an image model sees whole frames")
        size = self.squares["image_size"]
        frames = segmentation.num_frames or self.num_frames
        clip = torch.empty(1, frames, 3, size, size, dtype=torch.uint8, device=self.model.log_scale.device)
        budget_of(segmentation.selection, self.model.grid(clip))

    def embed_clips(
        self, clips: Pixels, segmentation: Segmentation | None = None, precision: Precision = "fp32"
    ) -> Floats:
        selection = None if segmentation is None else segmentation.selection
        seen = encode_clips(
            self.model, torch.from_numpy(clips), mode=self.mode, precision=precision, selection=selection
        )
        return check_finite(seen.pooled.float().cpu().numpy(), self.source)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        if len(texts) == 1:
            return self.read(texts[0]).pooled.float().cpu().numpy()
        return embed_texts(self.model, self.tokenizer, texts).numpy()

    def num_pieces(self, text: str) -> int:
        return len(self.tokenizer.words(text))

    def is_cut(self, text: str) -> bool:
        return self.tokenizer.is_cut(text)

    def _read(self, text: str) -> TextFeatures:
        """A sentence as it is searched with (`pooled` `[1, E]`) and as the matching head reads it (`tokens`)."""
        with evaluating(self.model, "fp32"):
            found = self.model.encode_text(self.tokenizer([text]).to(self.model.log_scale.device))
        if not bool(found.pooled.isfinite().all()):
            raise HarvestError(f"{self.source} gives vectors that are not finite: its weights are broken")
        return found
