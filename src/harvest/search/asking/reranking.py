"""The first answers again, sentence and moment read together.

An embedding says of a sentence and of a moment what each is about, alone. Where the model has a matching head, the
few moments nearest to a sentence are read beside it, which tells a blue square that goes left from a blue square
near a red one that does.

Shapes: n moments, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from harvest.data.video import read_clip
from harvest.evaluation.clips import evaluating
from harvest.evaluation.embed import encode_clips
from harvest.interfaces import Clip, HarvestError, TextFeatures, VideoFeatures
from harvest.search.encoders.encoder import Encoder
from harvest.search.encoders.torch_encoder import TorchEncoder
from harvest.search.library.segmentation import Segmentation
from harvest.search.library.store import Near

_REMEMBERED_BYTES = 256 * 2**20  # tokens of moments: who types on asks for the same ones again


def matching(opened: Encoder) -> TorchEncoder:
    """The model, which has a matching head, or HarvestError."""
    if not isinstance(opened, TorchEncoder):
        raise HarvestError(
            f"{opened.source} is an ONNX export, which has no matching head: search without rerank"
        )
    fusion = opened.model.fusion
    if fusion is None or fusion.head_match is None:
        raise HarvestError(
            f"{opened.source} has no matching head: search without rerank, or train one (recipe mini-ft-retrieval)"
        )
    return opened


class Reranker:
    """A model's matching head at work on the moments of a library. HarvestError where the model has none."""

    def __init__(
        self,
        opened: Encoder,
        segmentation: Segmentation,
        file_of: Callable[[str], Path],
        read_clip: Callable[..., Clip] = read_clip,
    ) -> None:
        self._opened = matching(opened)
        model = self._opened.model
        self._file_of, self._read_clip = file_of, read_clip
        self._frames = segmentation.num_frames or opened.num_frames
        # What the index has seen of a moment, if that is equally much of each: they are read side by side.
        self._selection = segmentation.selection if segmentation.selector != "run_length" else None
        video = model.config.video
        a_moment = 4 * video.num_patches * max(1, self._frames // video.tubelet_size) * video.width
        self._tokens = lru_cache(max(1, _REMEMBERED_BYTES // a_moment))(self._read)

    def agreements(self, text: str, near: Sequence[Near]) -> tuple[list[float | None], list[str]]:
        """How well each moment and a sentence go together, and what could not be told: the log-odds of
        the matching head and the scaled cosine, both of them logits, added. None where a file has gone since it was
        indexed."""
        model = self._opened.model
        found: list[float | None] = [None] * len(near)
        notes, tokens, places = [], [], []
        for place, moment in enumerate(near):
            try:
                file = self._file_of(moment.video)
                modified_ns = file.stat().st_mtime_ns
                tokens.append(self._tokens(file, modified_ns, moment.start_s, moment.end_s))
                places.append(place)
            except (HarvestError, OSError) as error:
                notes.append(f"not re-ranked: {error}")
        if places:
            n = len(places)
            with evaluating(model, "fp32"):
                words = TextFeatures(*(part.expand(n, *part.shape[1:]) for part in self._opened.read(text)))
                video = VideoFeatures(torch.stack(tokens), words.pooled)  # the fusion reads tokens alone
                logits = model.match(model.fuse(video, words), words)
                odds = (logits[:, 1] - logits[:, 0]).tolist()
                scale = float(model.log_scale.exp())
            for place, value in zip(places, odds, strict=True):
                found[place] = value + scale * near[place].score
        return found, notes

    def _read(self, file: Path, modified_ns: int, start_s: float, end_s: float) -> Tensor:
        squares = self._opened.model.config.video.squares
        clip = self._read_clip(file, num_frames=self._frames, **squares, start_s=start_s, end_s=end_s)
        return encode_clips(self._opened.model, clip.frames[None], selection=self._selection).tokens[0]
