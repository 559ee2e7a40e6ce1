"""Videos and texts to vectors: what every embedding task and search start from.

A stretch of a video is decoded and encoded once, however many rows of a manifest name it, and a text is encoded once
however often it stands there: equal texts then have equal scores to the bit, and ties are ties.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.sampling import FrameOrder
from harvest.evaluation.clips import ReadSettings, Rows, collect, evaluating
from harvest.interfaces import Example, Fit, HarvestError, Kept, OnProgress, VideoFeatures
from harvest.model.matryoshka import shorten
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel, own_attention
from harvest.parallel import Precision, generator_for
from harvest.tokens import Selection, choose

Mode = Literal["video", "image"]

IMAGE_FRAMES = 8  # of the image baseline, where the model itself names only one


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of the distinct stretches of a list of examples."""

    pooled: Tensor  # fp32 [n, E], on the CPU
    row: Tensor  # int64 [len(examples)]: the row of `pooled` of each example, -1 where its video is broken
    first: Tensor  # int64 [n]: the first example of each row
    broken: dict[str, str]  # example id to reason
    tokens: Tensor | None = None  # [m, K, D] on the CPU, where the matching head is to read them
    token_rows: Tensor | None = None  # int64 [m]: the rows whose tokens this process holds; None: all


class TokenSpool:
    """Tokens in a temporary file, in place of memory: 1,000 clips of B/16 with 4 frames are 2.4 GB in fp32.

    The file is in the folder that TMPDIR names, and is deleted when the tensor that is read from it goes.
    """

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="harvest-tokens-")  # noqa: SIM115
        self._shape: torch.Size | None = None
        self._dtype, self._rows = torch.float32, 0

    def append(self, tokens: Tensor) -> None:
        """Add the tokens of some clips, `[b, K, D]`; all clips have equally many."""
        if self._shape not in (None, tokens.shape[1:]):
            raise ValueError(
                f"tokens of clips differ: {list(self._shape or ())} and {list(tokens.shape[1:])}"
            )
        self._shape, self._dtype, self._rows = tokens.shape[1:], tokens.dtype, self._rows + len(tokens)
        self._file.write(tokens.contiguous().view(torch.uint8).numpy().data)

    def tensor(self) -> Tensor | None:
        """All tokens `[n, K, D]`, read from the file where they are looked at; None where there are none."""
        with self._file as file:
            file.flush()
            if self._shape is None:
                return None
            size = self._rows * self._shape.numel()
            return torch.from_file(file.name, size=size, dtype=self._dtype).view(self._rows, *self._shape)


def mode_of(model: VideoTextModel) -> Mode:
    """An image model, of one frame, sees a video as the mean of its frames; a video model as a whole."""
    return "image" if model.config.video.num_frames == 1 else "video"


def default_frames(model: VideoTextModel, mode: Mode) -> int:
    """The frames a clip is shown with: the model's own number, at least `IMAGE_FRAMES` for an image baseline of one."""
    own = model.config.video.num_frames
    return IMAGE_FRAMES if mode == "image" and own == 1 else own


def encode_clips(
    model: VideoTextModel,
    video: Tensor,
    *,
    mode: Mode = "video",
    precision: Precision = "fp32",
    selection: Selection | None = None,
) -> VideoFeatures:
    """Encode uint8 clips `[B, T, 3, H, W]` on the model's device, of which `selection` says what is seen (None: all).

    "image" sees every frame alone, as a clip of one frame: the pooled feature is the mean of the frames' unit
    embeddings, made unit length, and the tokens are those of all frames, one after the other.
    """
    with evaluating(model, precision):
        return encode_shown(model, video.to(model.log_scale.device), mode=mode, selection=selection)


def encode_shown(
    model: VideoTextModel, video: Tensor, *, mode: Mode = "video", selection: Selection | None = None
) -> VideoFeatures:
    """As `encode_clips`, of clips on the model's device, with the model as it is: also in training, in any precision."""
    if mode == "video":
        return model.encode_video(video, None if selection is None else kept(model, video, selection))
    if selection is not None:
        raise HarvestError("choosing tokens goes with mode 'video': the image baseline sees whole frames")
    # A frame at a time, so that memory is that of a batch of images however many frames there are.
    frames = [model.encode_video(video[:, place : place + 1]) for place in range(video.shape[1])]
    tokens = torch.cat([frame.tokens for frame in frames], dim=1)  # [B, T * P, D]
    pooled = torch.stack([frame.pooled for frame in frames]).mean(dim=0)
    return VideoFeatures(tokens, F.normalize(pooled, dim=-1))


def kept(model: VideoTextModel, video: Tensor, selection: Selection) -> Kept:
    """The tubelets of clips that a selection sees; the same draws for every clip and batch, so that a
    clip's embedding depends on that clip alone."""
    return choose(
        selection,
        video,
        model.grid(video),
        generator=generator_for(0),
        attention_fn=lambda: own_attention(model, video),
        same_draws=True,
    )


def embed_videos(
    model: VideoTextModel,
    examples: Sequence[Example],
    *,
    mode: Mode = "video",
    num_frames: int | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
    workers: int = 0,
    selection: Selection | None = None,
    dim: int | None = None,
    with_tokens: bool = False,
    fit: Fit | None = None,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Embeddings:
    """Embed the videos of a manifest, each distinct stretch once.

    `mode` "image" is the image baseline (`encode_clips`). `num_frames` None is `default_frames`. `selection`
    says how many tubelets of each clip are seen and who picks them, None sees all. `fit` None is the model's own. `dim` keeps that many first
    entries (`shorten`). Videos that cannot be read are named in `broken`; if none can, or an embedding is not finite,
    HarvestError says so.

    `with_tokens` keeps all their tokens too, in the precision they were computed in, in a temporary file (`TokenSpool`).
    Of several processes each holds those of the clips that it encoded.
    """
    spool = TokenSpool() if with_tokens else None
    encoded_here: list[int] = []  # the first example of each clip

    def encode(rows: Rows, video: Tensor) -> tuple[Tensor]:
        features = encode_clips(model, video, mode=mode, precision=precision, selection=selection)
        if spool is not None:
            spool.append(features.tokens.cpu())
            encoded_here.extend(places[0] for places in rows)
        return (features.pooled.float(),)

    reading = ReadSettings(
        default_frames(model, mode) if num_frames is None else num_frames,
        batch_size=batch_size,
        precision=precision,
        workers=workers,
        frame_order=frame_order,
        fit=fit,
        progress=progress,
    )
    found = collect(model, examples, encode, reading)
    return Embeddings(
        shorten(found.parts[0], dim),
        found.row,
        found.first,
        found.broken,
        None if spool is None else spool.tensor(),
        None if spool is None else found.row[encoded_here],
    )


def embed_texts(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch_size: int = 256,
    precision: Precision = "fp32",
    dim: int | None = None,
) -> Tensor:
    """Unit vectors of texts, fp32 `[len(texts), E]` (or `dim`), on the CPU. Equal texts have equal vectors to the bit."""
    numbers: dict[str, int] = {}
    place = torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts], dtype=torch.int64)
    distinct = list(numbers)
    parts = [torch.empty(0, model.config.text_tower.embed_dim)]
    for start in range(0, len(distinct), batch_size):
        with evaluating(model, precision):
            text_ids = tokenizer(distinct[start : start + batch_size]).to(model.log_scale.device)
            parts.append(model.encode_text(text_ids).pooled.float().cpu())
    pooled = shorten(torch.cat(parts), dim)
    bad = int((~pooled.isfinite().all(dim=1)).sum())
    if bad:
        raise HarvestError(
            f"{bad} of {len(pooled)} text embeddings are not finite: the model's weights are broken"
        )
    return pooled[place]


def cosines(queries: Tensor, items: Tensor) -> Tensor:
    """Cosines of unit vectors, `[Q, E]` and `[n, E]` to fp32 `[Q, n]`.

    Multiplied in fp64: a matrix product in fp32 may give equal rows unequal sums, by their place in a block, and
    in bf16 it makes ties of what is not equal.
    """
    return (queries.double() @ items.double().T).float()
