"""Videos and texts to vectors: what every embedding task and search start from.

A stretch of a video is decoded and encoded once, however many rows of a manifest name it, and a text is
encoded once however often it stands there: equal texts then have equal scores to the bit, and ties are ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.read_once import clip_numbers, eval_batches
from harvest.data.sampling import FrameOrder
from harvest.interfaces import Example, HarvestError, Kept, OnProgress, VideoFeatures
from harvest.model.matryoshka import shorten
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel, own_attention
from harvest.parallel import (
    Precision,
    all_gather_ordered,
    autocast,
    generator_for,
    merge_over_ranks,
    world_rank_size,
)
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
    num_frames: int
    mode: Mode
    tokens: Tensor | None = None  # [n, K, D] on the CPU, where the matching head is to read them


@dataclass
class Clips:
    """The features of the distinct stretches of a list of examples, a batch at a time, to be read through once."""

    batches: Iterator[tuple[list[list[int]], VideoFeatures]]
    """For every clip of a batch the examples it belongs to, and the features on the model's device."""
    broken: dict[str, str]  # filled while the batches are read
    num_frames: int
    mode: Mode


def default_frames(model: VideoTextModel, mode: Mode) -> int:
    """The frames a clip is shown with: the model's own number, at least `IMAGE_FRAMES` for an image baseline of one."""
    own = model.config.video.num_frames
    return IMAGE_FRAMES if mode == "image" and own == 1 else own


def read_clips(
    model: VideoTextModel,
    examples: Sequence[Example],
    *,
    mode: Mode = "video",
    num_frames: int | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
    workers: int = 0,
    selection: Selection | None = None,
    for_head: bool = False,
    with_tokens: bool = True,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Clips:
    """Decode and encode the videos of a manifest; see `embed_videos` for the settings.

    `for_head` gives what heads read, `VideoTextModel.video_features`, instead of embeddings; `frame_order` takes time
    from the clips (`sampling.FrameOrder`). On several processes the batches are shared out and every process gets all
    of them, in the order that one would have; without `with_tokens` tokens are left where they were computed.
    """
    if for_head and mode == "image":
        raise HarvestError(
            "heads of fine-tuned models look at clips as videos: there is no image baseline of them"
        )
    if not examples:
        raise HarvestError("there is nothing to evaluate: the list of examples is empty")
    frames = default_frames(model, mode) if num_frames is None else num_frames
    clip_of = clip_numbers(examples).tolist()
    users: list[list[int]] = [[] for _ in range(max(clip_of) + 1)]  # the examples of every clip
    for place, clip in enumerate(clip_of):
        users[clip].append(place)
    clip_of_example = dict(zip(examples, clip_of, strict=True))
    broken: dict[str, str] = {}

    def note(example: Example, reason: str) -> None:
        broken.update({examples[place].id: reason for place in users[clip_of_example[example]]})

    rank, size = world_rank_size()

    def encode(numbers: Tensor, video: Tensor) -> VideoFeatures:
        if for_head:
            with evaluating(model, precision):
                video = video.to(model.log_scale.device)
                keep = None if selection is None else kept(model, video, selection)
                features = model.video_features(video, keep)
        else:
            features = encode_clips(model, video, mode=mode, precision=precision, selection=selection)
        return features if with_tokens or size == 1 else features._replace(tokens=features.tokens[:, :0])

    def batches() -> Iterator[tuple[list[list[int]], VideoFeatures]]:
        is_any = False
        read = eval_batches(
            examples,
            num_frames=frames,
            image_size=model.config.video.image_size,
            batch_size=batch_size,
            workers=workers,
            frame_order=frame_order,
            rank=rank,
            world=size,
            on_broken=note,
        )
        for numbers, features in shared(read, encode, device=model.log_scale.device):
            is_any = True
            yield [users[number] for number in numbers.tolist()], features
            if progress is not None:
                progress(int(numbers[-1]) + 1, len(users))
        if progress is not None:
            progress(len(users), len(users))
        share_broken(broken, examples)
        if not is_any:
            name, reason = next(iter(broken.items()))
            raise HarvestError(
                f"none of the {len(users)} videos could be read; the first, {name!r}: {reason}"
            )

    return Clips(batches(), broken, frames, mode)


Encoded = TypeVar("Encoded", bound=tuple[Any, ...])


def shared(
    batches: Iterable[tuple[Tensor, Tensor]],
    encode: Callable[[Tensor, Tensor], Encoded],
    *,
    device: torch.device,
) -> Iterator[tuple[Tensor, Encoded]]:
    """Clip numbers and what `encode(numbers, video)` makes of each batch, in the order that one process would have.

    `batches` are this process's, as `eval_batches` gives them for its rank; every process gets those of all.
    """

    def own() -> Iterator[tuple[Tensor, Encoded | None]]:
        for numbers, video in batches:
            yield numbers, encode(numbers, video) if len(numbers) else None

    for numbers, encoded in all_gather_ordered(own(), device):
        if encoded is not None:
            yield numbers.cpu(), encoded


def share_broken(broken: dict[str, str], examples: Sequence[Example]) -> None:
    """Add what other processes could not read, all in the order of the manifest."""
    found = dict(merge_over_ranks(broken))
    broken.clear()
    broken.update({e.id: found[e.id] for e in examples if e.id in found})


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
        video = video.to(model.log_scale.device)
        if mode == "video":
            keep = None if selection is None else kept(model, video, selection)
            return model.encode_video(video, keep)
        if selection is not None:
            raise HarvestError("choosing tokens goes with mode 'video': the image baseline sees whole frames")
        T = video.shape[1]
        # A frame at a time, so that memory is that of a batch of images however many frames there are.
        frames = [model.encode_video(video[:, place : place + 1]) for place in range(T)]
        tokens = torch.cat([frame.tokens for frame in frames], dim=1)  # [B, T * P, D]
        pooled = torch.stack([frame.pooled for frame in frames]).mean(dim=0)
        return VideoFeatures(tokens, F.normalize(pooled, dim=-1))


def kept(model: VideoTextModel, video: Tensor, selection: Selection) -> Kept:
    """The tubelets of clips that a selection sees; the same draws for every clip and every batch, so that what is
    said of a clip is a function of it alone."""
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
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Embeddings:
    """Embed the videos of a manifest, each distinct stretch once.

    `mode` "image" is the image baseline (`encode_clips`). `num_frames` None is `default_frames`. `selection`
    says how many tubelets of each clip are seen and who picks them, None sees all. `dim` keeps the first so many
    entries (`shorten`). Videos that cannot be read are named in `broken`; if none can, or an
    embedding is not finite, HarvestError says so.
    """
    clips = read_clips(
        model,
        examples,
        mode=mode,
        num_frames=num_frames,
        batch_size=batch_size,
        precision=precision,
        workers=workers,
        selection=selection,
        with_tokens=False,
        frame_order=frame_order,
        progress=progress,
    )
    return pool(clips, num_examples=len(examples), dim=dim)


def pool(clips: Clips, *, num_examples: int, dim: int | None = None, with_tokens: bool = False) -> Embeddings:
    """Read clips through and keep their pooled features, the first `dim` entries of each.

    `with_tokens` keeps all their tokens too, in the precision they were computed in: 1,000 clips of B/16 with 4 frames
    are 2.4 GB in fp32, half of it in bf16.
    """
    parts: list[Tensor] = []
    tokens: list[Tensor] = []
    first: list[int] = []
    row = torch.full((num_examples,), -1)
    for users, features in clips.batches:
        for places in users:
            row[places] = len(first)
            first.append(places[0])
        parts.append(features.pooled.float().cpu())
        if with_tokens:
            tokens.append(features.tokens.cpu())
    pooled = shorten(torch.cat(parts), dim)
    _check_finite(pooled, "video")
    return Embeddings(
        pooled,
        row,
        torch.tensor(first),
        clips.broken,
        clips.num_frames,
        clips.mode,
        torch.cat(tokens) if tokens else None,
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
    _check_finite(pooled, "text")
    return pooled[place]


def cosines(queries: Tensor, items: Tensor) -> Tensor:
    """Cosines of unit vectors, `[Q, E]` and `[n, E]` to fp32 `[Q, n]`.

    Multiplied in fp64: a matrix product in fp32 may give equal rows unequal sums, by their place in a block, and
    in bf16 it makes ties of what is not equal.
    """
    return (queries.double() @ items.double().T).float()


@contextmanager
def evaluating(model: VideoTextModel, precision: Precision) -> Iterator[None]:
    """The model in eval mode, without gradients, in `precision`; as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(model.log_scale.device, precision):
            yield
    finally:
        model.train(was_training)


def _check_finite(pooled: Tensor, kind: str) -> None:
    bad = int((~pooled.isfinite().all(dim=1)).sum())
    if bad:
        raise HarvestError(
            f"{bad} of {len(pooled)} {kind} embeddings are not finite: the model's weights are broken"
        )
