"""Dense moments: a score for every second of one long video, and the stretches in which a sentence is best met.

A window slides along the video by one hop, a second, so that most of what two windows show is the same. A tower that
looks at frames alone sees each hop once, and a window's vector is the mean over its hops: exactly its own. A tower
that looks at all frames together encodes every window; with `fast` it too sees each hop once, as a short clip, which
is window_s / hop_s times less work and loses the order of what is longer than a hop. The best stretches are encoded
again either way, each on its own, for the scores they are ranked by.

Shapes: H hops, F frames a hop, E shared width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.video import probe, read_clip, stream_frames
from harvest.evaluation.embed import default_frames, embed_texts, encode_clips, mode_of
from harvest.interfaces import HarvestError, OnProgress, Squares
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import Precision
from harvest.search.library.store import Floats
from harvest.search.results import Curve, Interval

FALL = 0.5  # of the way from the median down to which a stretch reaches around its peak


@dataclass(frozen=True)
class Dense:
    """How to slide along a video."""

    window_s: float = 4.0
    hop_s: float = 1.0
    fast: bool = False
    """Encode every hop once, in place of every window; with an image model that is the same and always done."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.hop_s <= self.window_s <= 600:
            raise HarvestError(
                f"expected 0.05 <= hop_s <= window_s <= 600 seconds, got {self.hop_s} and {self.window_s}"
            )

    @property
    def hops(self) -> int:
        """Of a window."""
        return max(1, round(self.window_s / self.hop_s))


class DenseVideo:
    """A video encoded once, to be asked as often as one likes."""

    def __init__(
        self, model: VideoTextModel, tokenizer: Tokenizer, path: Path, dense: Dense, vectors: Tensor
    ) -> None:
        self.model, self.tokenizer, self.path, self.dense = model, tokenizer, path, dense
        self.vectors = vectors
        """Of the windows, fp32 `[H, E]`; window h is centred on hop h, and shorter at the ends of the video."""

    @classmethod
    def read(
        cls,
        model: VideoTextModel,
        tokenizer: Tokenizer,
        path: str | Path,
        dense: Dense | None = None,
        *,
        precision: Precision = "fp32",
        batch_size: int = 16,
        progress: OnProgress | None = None,
    ) -> DenseVideo:
        """Decode a video once, in order, and encode it. VideoError where it cannot be read."""
        dense = dense or Dense()
        path = Path(path)
        by_hops = dense.fast or mode_of(model) == "image"
        frames = default_frames(model, mode_of(model))
        least = model.config.video.tubelet_size if mode_of(model) == "video" else 1
        per_hop = max(least, round(frames / dense.hops))
        total = max(1, round(probe(path).duration_s / dense.hop_s))
        hops: list[Tensor] = []  # [F, 3, H, W] of those that are not encoded yet, or may be shown again
        found: list[Tensor] = []
        clips: list[Tensor] = []

        def encode() -> None:
            if clips:
                video = torch.stack(clips)
                if (
                    mode_of(model) == "image"
                ):  # the plain mean of its pictures, so that means of hops are windows'
                    pooled = encode_clips(model, video.flatten(0, 1)[:, None], precision=precision).pooled
                    pooled = pooled.view(*video.shape[:2], -1).mean(dim=1)
                else:
                    pooled = encode_clips(model, video, precision=precision).pooled
                found.append(pooled.float().cpu())
                clips.clear()
                if progress is not None:
                    progress(min(total, sum(map(len, found))), total)

        def take(clip: Tensor) -> None:
            if clips and clips[0].shape != clip.shape:
                encode()  # windows at the ends are shorter
            clips.append(clip)
            if len(clips) == batch_size:
                encode()

        before, behind = dense.hops // 2, (dense.hops - 1) // 2
        start = 0  # the number of hops[0]
        for pictures in _hops(path, dense.hop_s, per_hop, model.config.video.squares):
            if by_hops:
                take(pictures)
                continue
            hops.append(pictures)
            centre = start + len(hops) - 1 - behind
            if centre >= 0:
                first = max(0, centre - before - start)
                take(torch.cat(hops[first:]))
                while centre + 1 - before > start:
                    hops.pop(0)
                    start += 1
        if not by_hops:
            end = start + len(hops)
            for centre in range(max(0, end - behind), end):
                take(torch.cat(hops[max(0, centre - before - start) :]))
        encode()
        vectors = torch.cat(found)
        if by_hops:
            vectors = _slide(vectors, before, behind)
        return cls(model, tokenizer, path, dense, vectors)

    def scores(self, text: str) -> Floats:
        """The cosine of a sentence with every window, fp32 `[H]`."""
        if not text.strip():
            raise HarvestError("the query is empty: describe what to look for")
        scores: Floats = (self.vectors @ embed_texts(self.model, self.tokenizer, [text])[0]).numpy()
        return scores

    def curve(self, text: str, *, k: int = 5) -> Curve:
        """The scores along the video and the `k` best stretches, each encoded on its own."""
        scores = self.scores(text)
        hop_s = self.dense.hop_s
        query = embed_texts(self.model, self.tokenizer, [text])[0]
        intervals = []
        for first, last in stretches(scores, k=k):
            start_s, end_s = first * hop_s, (last + 1) * hop_s
            clip = read_clip(
                self.path,
                num_frames=default_frames(self.model, mode_of(self.model)),
                **self.model.config.video.squares,
                start_s=start_s,
                end_s=end_s,
            )
            own = encode_clips(self.model, clip.frames[None], mode=mode_of(self.model)).pooled[0]
            intervals.append(Interval(start_s, end_s, float(own.float().cpu() @ query)))
        return Curve(
            text=text,
            times_s=tuple((hop + 0.5) * hop_s for hop in range(len(scores))),
            scores=tuple(float(score) for score in scores),
            intervals=tuple(sorted(intervals, key=lambda interval: -interval.score)),
        )


def stretches(scores: Floats, *, k: int) -> list[tuple[int, int]]:
    """The first and last place of up to `k` stretches around the highest peaks, apart from each other."""
    level = float(np.median(scores))
    free = np.ones(len(scores), bool)
    found: list[tuple[int, int]] = []
    while len(found) < k and free.any():
        peak = int(np.argmax(np.where(free, scores, -np.inf)))
        least = scores[peak] - FALL * max(scores[peak] - level, 0.0)
        if found and scores[peak] <= level:
            break
        first = last = peak
        while first > 0 and free[first - 1] and scores[first - 1] > least:
            first -= 1
        while last + 1 < len(scores) and free[last + 1] and scores[last + 1] > least:
            last += 1
        found.append((first, last))
        free[max(0, first - 1) : last + 2] = False
    return found


def _hops(path: Path, hop_s: float, per_hop: int, squares: Squares) -> Iterator[Tensor]:
    """The pictures of each hop, uint8 `[F, 3, H, W]`: the middles of F equal parts. What is over half a hop counts."""
    pictures: list[Tensor] = []
    any_hop = False
    for number, (_, picture) in enumerate(stream_frames(path, every_s=hop_s / (2 * per_hop), **squares)):
        if number % 2:
            pictures.append(torch.from_numpy(picture))
        elif number == 0:
            first = torch.from_numpy(picture)
        if len(pictures) == per_hop:
            yield torch.stack(pictures)
            any_hop = True
            pictures = []
    if not any_hop or 2 * len(pictures) >= per_hop:
        pictures = pictures or [first]
        yield torch.stack(pictures + pictures[-1:] * (per_hop - len(pictures)))


def _slide(hops_HE: Tensor, before: int, behind: int) -> Tensor:
    """Each hop's mean with its neighbours, of unit length `[H, E]`."""
    sums = F.pad(hops_HE.double().cumsum(dim=0), (0, 0, 1, 0))
    places = torch.arange(len(hops_HE))
    first = (places - before).clamp(min=0)
    last = (places + behind + 1).clamp(max=len(hops_HE))
    return F.normalize(sums[last] - sums[first], dim=-1).float()
