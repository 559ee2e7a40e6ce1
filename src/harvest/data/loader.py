"""From examples to batches: which samples a step sees is a function of (seed, step), whoever loads them.

The order of samples is an endless sequence of permutations, one an epoch. Step s takes the positions from
`position_of(s)` on, rank r of W every W-th of them from the r-th on. What is random about a sample (times, crop,
caption) is drawn from a generator of (seed, epoch, sample). So a run resumes at any step exactly, on any number
of ranks and workers.

A video that cannot be read is never fatal and never silently replaced: its place is taken by the next sample of
the same epoch's order, and `TrainLoader.broken` names it with its reason. That holds for a video that hangs or
crashes the decoder too, where worker processes read: each has a guarded process of its own (`data.guard`).
"""

from __future__ import annotations

import copy
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import active_children
from multiprocessing.connection import wait
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from harvest.data import transforms
from harvest.data.guard import Guard, Lost
from harvest.data.rand_augment import rand_augment
from harvest.data.rows import video_of
from harvest.data.sampling import FrameOrder, frame_places
from harvest.data.shards import ShardSet
from harvest.data.video import Crop, Decoder, PackedVideo, VideoError, read_clip
from harvest.data.video.second_decoder import find_decoder
from harvest.interfaces import Batch, Example, HarvestError, OnProgress
from harvest.parallel import generator_for

EncodeText = Callable[[list[str]], Tensor]
Box = tuple[float, float, float, float]  # top, left, height, width in shares of a picture
Key = tuple[int, int]  # (epoch, place in that epoch's order)

_MIN_TRIED = 20  # no share of broken videos is judged on fewer
_MAX_TRIES = 100  # for one row; so many broken ones in a row mean a wrong folder


@dataclass(frozen=True)
class DataConfig:
    """What a run trains on and how it is read."""

    train: str = ""
    """Manifest of the training set (.jsonl, .csv, .tsv, .parquet or WebVid's csv), or tar shards: a folder,
    `shards-{000..999}.tar`, or an address like `s3://bucket/shards-{000..999}.tar`."""
    more: tuple[str, ...] = ()
    """Further manifests, added to the first; their paths are relative to their own folders."""
    images: str = ""
    """Manifest of pictures with captions, mixed into the run: each step shows clips or pictures."""
    image_ratio: float | None = None
    """Share of the steps that show pictures; None: in proportion to the numbers of clips and pictures."""
    videos: str | None = None
    """Folder that the manifest's paths are relative to; without it the manifest's own."""
    num_frames: int = 8
    """Frames a clip."""
    times: Literal["random", "middle"] = "random"
    """Where in each of its segments of a clip a frame is taken."""
    captions_per_clip: int = 1
    """Captions of a clip in one step, drawn anew each epoch; a clip with fewer repeats them. 0 takes all in their
    order, of which every row must have equally many: the options of questions."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest share of the picture's area in a random crop; 1 1 takes the middle square."""
    crop: Literal["center", "squash"] = "center"
    """Without random crops: the middle square, or the whole picture squashed to a square, as boxes need it."""
    flip: bool = False
    """Mirror every other clip. Not for captions that say left and right."""
    crop_on: Literal["worker", "device"] = "worker"
    """device: workers hand over whole pictures, squashed to a square, and random crops and mirroring are done for the
    batch in one pass where the model computes. Saves workers a scaling, and costs more bytes a clip."""
    rand_augment: int = 0
    """Operations of RandAugment on a clip, the same for all its frames; 0 is none, UMT fine-tunes with 4."""
    rand_augment_magnitude: float = 7.0
    """Their strength, 0 to 10."""
    views_per_clip: int = 1
    """Repeated augmentation: a clip is decoded once and stands in its step so many times, each augmented anew."""
    workers: int = 2
    """Processes that decode, for each rank; 0 decodes in the training process."""
    cache: Literal["none", "memory"] = "none"
    """memory: decode every clip once, keep its frames in memory and draw its times once."""
    max_broken_ratio: float = 0.5
    """Stop when more than this share of the videos tried cannot be read."""
    video_limit_s: float = 30.0
    """A video that takes longer to read counts as broken. Only where workers read."""
    decoder: Decoder = "pyav"
    """torchcodec, where it is installed with FFmpeg's libraries, gives the same frames at the same times, and
    torchcodec_cuda on an NVIDIA GPU. Pixels differ by a few levels; what it cannot read, AVI and rotated videos, PyAV
    reads. auto: torchcodec_cuda where that can be had, else pyav."""

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.captions_per_clip < 0 or self.workers < 0:
            raise HarvestError(
                f"data: num_frames {self.num_frames} must be at least 1, captions_per_clip"
                f" {self.captions_per_clip} and workers {self.workers} at least 0"
            )
        if self.views_per_clip < 1 or self.rand_augment < 0 or not 0 <= self.rand_augment_magnitude <= 10:
            raise HarvestError(
                f"data: views_per_clip {self.views_per_clip} must be at least 1, rand_augment {self.rand_augment} at"
                f" least 0, rand_augment_magnitude {self.rand_augment_magnitude} from 0 to 10"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise HarvestError(
                f"data.crop_scale: expected 0 < smallest <= largest <= 1, got {self.crop_scale}"
            )
        if self.crop_on == "device" and (
            self.rand_augment or self.views_per_clip > 1 or self.cache == "memory"
        ):
            raise HarvestError(
                "data.crop_on device does not go with data.rand_augment, data.views_per_clip or data.cache memory"
            )
        if self.crop_on == "device" and self.crop_scale == (1.0, 1.0):
            raise HarvestError("data.crop_on device is for random crops: set data.crop_scale, e.g. 0.5 1")
        if self.crop == "squash" and self.crop_scale != (1.0, 1.0):
            raise HarvestError("data.crop squash shows whole pictures: it does not go with data.crop_scale")
        if not 0 <= self.max_broken_ratio <= 1:
            raise HarvestError(f"data.max_broken_ratio: expected 0 to 1, got {self.max_broken_ratio}")
        if self.video_limit_s <= 0:
            raise HarvestError(f"data.video_limit_s: expected more than 0 s, got {self.video_limit_s}")


def clip_numbers(examples: Sequence[Example]) -> Tensor:
    """For each row the number of its clip, counted in order of appearance: int64 `[n]`.

    Rows with the same video, start and end are captions of one clip.
    """
    seen: dict[tuple[str, float, float | None], int] = {}
    return torch.tensor(
        [seen.setdefault((e.video, e.start_s, e.end_s), len(seen)) for e in examples], dtype=torch.int64
    )


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The permutation of n samples in an epoch, int64 `[n]`: a function of its arguments alone."""
    return torch.randperm(n, generator=generator_for(seed, epoch))


_recent_order = lru_cache(maxsize=2)(order)  # a batch may lie in two epochs


class Refused(NamedTuple):
    """Why a sample is left out, and from which position of the run's order on."""

    reason: str
    position: int = 0


class Packed(NamedTuple):
    """What a worker sends: the rows of a batch that could be filled, and what happened on the way."""

    batch: Batch | None  # None where a row found no video to fill it
    tried: list[int]  # samples looked at
    broken: list[tuple[int, Refused]]  # those that could not be read
    truncated: int  # captions that were too long for the text tower
    boxes: Tensor | None = None  # [B, 4] of `transforms.crop_batch`, where the device is to crop


# ---------------------------------------------------------------------------------------------------------------
# The data set


class ClipDataset(Dataset):
    """A training set; with `encode_text` None, one of videos alone. `dataset[keys]` with keys (epoch, place in that epoch's order) gives a `Packed` batch.

    `encode_text` maps captions to int64 `[n, L]`; it has to survive the way into a worker process.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: DataConfig,
        *,
        image_size: int,
        encode_text: EncodeText | None,
        seed: int,
    ) -> None:
        if not examples:
            raise HarvestError("the training set is empty: its manifest has no rows")
        self.decoder: Decoder = find_decoder(config.decoder)
        if isinstance(examples, ShardSet):  # nothing of ten million samples is read before it is needed
            self.examples: list[Example] | ShardSet = examples
            self.num_texts, self.labels = examples.num_texts, examples.labels
            self.clip_of = torch.arange(len(examples))
        else:
            self.examples = list(examples)
            self.num_texts = torch.tensor([len(e.texts) for e in examples], dtype=torch.int64)
            self.labels = _labels(self.examples)
            self.clip_of = clip_numbers(examples)
        # where some have captions and some only labels, a caption would be missing in the batch
        silent, unlabelled = (
            self.num_texts == 0,
            (self.labels < 0 if self.labels.ndim == 1 else self.labels.sum(1) == 0),
        )
        if silent.any() and unlabelled.any() and encode_text is not None:
            first = self.examples[int(silent.nonzero()[0])].id
            raise HarvestError(
                f"{int(silent.sum())} of {len(examples)} training examples have neither caption nor label (first:"
                f" {first!r}): remove these rows or give them captions"
            )
        self.config, self.image_size, self.seed = config, image_size, seed
        self.encode_text = encode_text if encode_text is not None else _no_words
        self.num_clips = int(self.clip_of.max()) + 1
        self._first_caption = F.pad(self.num_texts.cumsum(0), (1, 0))
        self._cache: _Cache | None = None
        self._refused: dict[int, Refused] = {}  # by sample, so that no broken video is tried twice
        self._guard: Guard | None = None  # in worker processes

    def __len__(self) -> int:
        return len(self.examples)

    def captions(self) -> list[str]:
        """All captions in the order of `Batch.caption`, for a cache of encoded texts."""
        return [text for example in self.examples for text in example.texts]

    def caption_clips(self) -> Tensor:
        """The clip of each of `captions()`, in the numbers of `Batch.example`: int64 `[captions]`."""
        return self.clip_of.repeat_interleave(self.num_texts)

    def id_of(self, sample: int) -> str:
        """A name for reports."""
        examples = self.examples
        return examples.id_of(sample) if isinstance(examples, ShardSet) else examples[sample].id

    def samples_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The samples behind names of `id_of`, as far as they are known."""
        if isinstance(self.examples, ShardSet):
            return self.examples.samples_of(ids)
        wanted = set(ids)
        return {e.id: row for row, e in enumerate(self.examples) if e.id in wanted}

    @property
    def is_cached(self) -> bool:
        return self._cache is not None

    def reseeded(self, seed: int) -> ClipDataset:
        """The same clips in another order, with other draws; what is in memory is shared."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def fill_cache(self, progress: OnProgress | None = None) -> dict[int, str]:
        """Decode every clip once, tokenise every caption once. Returns the broken samples with their reasons.

        With `config.cache == "memory"` the loader calls it before its first step. It takes
        `num_clips * num_frames * 3 * image_size ** 2` bytes. Times are drawn once per clip; a random crop is
        then cut out of the cached middle square.
        """
        config = self.config
        if isinstance(self.examples, ShardSet):
            raise HarvestError("data.cache memory is for manifests: use data.cache none with shards")
        size = self.num_clips * config.num_frames * 3 * self.image_size**2
        try:
            frames = torch.empty(
                self.num_clips, config.num_frames, 3, self.image_size, self.image_size, dtype=torch.uint8
            )
        except RuntimeError as error:
            raise HarvestError(
                f"data.cache memory needs {size / 1e9:.1f} GB for {self.num_clips:,} clips of {config.num_frames}"
                f" frames at {self.image_size}: use data.cache none"
            ) from error
        is_good = torch.zeros(self.num_clips, dtype=torch.bool)
        broken: dict[int, str] = {}
        first_row = _first_rows(self.clip_of, self.num_clips)
        clips = _Clips(
            [self.examples[row] for row in first_row], config.num_frames, self.image_size, config.crop
        )
        clips.limit_s, clips.decoder = config.video_limit_s, self.decoder
        if config.times == "random":
            clips.seed = self.seed
        done = 0
        for numbers, video, refused in clips.batches(batch_size=32, workers=config.workers):
            frames[numbers] = video
            is_good[numbers] = True
            broken.update(refused)
            done += len(numbers) + len(refused)
            if progress is not None:
                progress(done, self.num_clips)
        self._refused = {
            row: Refused(broken[clip]) for row, clip in enumerate(self.clip_of.tolist()) if not is_good[clip]
        }
        self._cache = _Cache(
            frames, text_ids=self.encode_text(self.captions() or [""]), empty_ids=self.encode_text([""])[0]
        )
        return {row: refused.reason for row, refused in self._refused.items()}

    def refuse(self, refused: Mapping[int, Refused]) -> None:
        """Leave these samples out from the given positions on, as the run did that found them broken."""
        self._refused |= refused

    def start_guard(self) -> None:
        """From now on read in a process of its own. For worker processes, before they have threads."""
        self._guard = Guard(self._pixels, limit_s=self.config.video_limit_s)
        self._guard.start()

    def __getitem__(self, keys: Sequence[Key]) -> Packed:
        tried: list[int] = []
        broken: list[tuple[int, Refused]] = []
        rows: list[_Row] = []
        if isinstance(self.examples, ShardSet):
            self.examples.read_ahead(int(self._places(epoch)[place]) for epoch, place in keys)
        for epoch, place in keys:
            row = self._row(epoch, place, tried, broken)
            if row is None:
                return Packed(None, tried, broken, 0)
            rows += _each_view(row)
        samples = torch.tensor([row.sample for row in rows], dtype=torch.int64)
        caption = torch.tensor([row.draw.captions for row in rows], dtype=torch.int64)
        truncated = getattr(self.encode_text, "truncated", 0)  # a tokenizer counts the texts that it cuts
        batch = Batch(
            video=self._video(rows, samples),
            text_ids=self._text_ids(caption),
            example=self.clip_of[samples],
            caption=caption,
            label=self.labels[samples],
        )
        cut = getattr(self.encode_text, "truncated", 0) - truncated
        boxes = torch.tensor([row.box for row in rows]) if self._crops_later else None
        return Packed(batch, tried, broken, cut, boxes)

    def _places(self, epoch: int) -> Tensor:
        return _recent_order(self.seed, epoch, len(self))

    def _row(
        self, epoch: int, place: int, tried: list[int], broken: list[tuple[int, Refused]]
    ) -> _Row | None:
        """The sample of this place or, where it cannot be read, the next one of the order that can."""
        places, position = self._places(epoch), epoch * len(self) + place
        for step in range(min(len(self), _MAX_TRIES)):
            sample = int(places[(place + step) % len(self)])
            tried.append(sample)
            if sample not in self._refused or position < self._refused[sample].position:
                try:
                    source = None if self.is_cached else self._source(sample)
                    draw = self._draw(epoch, sample)
                    if source is None:
                        return _Row(sample, draw, None)
                    return _Row(sample, draw, *self._video_of(epoch, sample, draw, source))
                except VideoError as error:
                    self._refused[sample] = Refused(error.reason, position)
                except Lost as error:
                    self._refused[sample] = Refused(str(error), position)
            broken.append((sample, self._refused[sample]))
        return None

    def _source(self, sample: int) -> _Source:
        """What is to be decoded. The bytes of a packed sample are read here: a slow bucket is no broken video."""
        if isinstance(self.examples, ShardSet):
            return _Source(self.examples.fetch(sample)[1], 0.0, None)
        example = self.examples[sample]
        return _Source(example.video, example.start_s, example.end_s)

    def _video_of(self, epoch: int, sample: int, draw: _Draw, source: _Source) -> tuple[Tensor, Box | None]:
        if self._guard is None:
            return self._read(draw, source)
        frames, box = self._guard(epoch, sample, source)
        return torch.from_numpy(frames), box

    def _pixels(self, epoch: int, sample: int, source: _Source) -> tuple[np.ndarray, Box | None]:
        """What the guarded process answers: it makes the same draws again."""
        frames, box = self._read(self._draw(epoch, sample), source)
        return frames.numpy(), box

    def _draw(self, epoch: int, sample: int, *view: int) -> _Draw:
        """What is random about a sample, always drawn in this order: captions, flip, times, crop, other changes.

        The further views of a clip are drawn apart, except for its times, which are those of the first.
        """
        generator = generator_for(self.seed, epoch, sample, *view)
        count, wanted = int(self.num_texts[sample]), self.config.captions_per_clip
        if wanted == 0:
            captions = list(range(int(self._first_caption[sample]), int(self._first_caption[sample + 1])))
        elif count == 0:
            captions = [-1] * wanted
        else:
            chosen = torch.randperm(count, generator=generator).tolist() if count > 1 else [0]
            first = int(self._first_caption[sample])
            captions = [first + chosen[i % count] for i in range(wanted)]
        is_flipped = self.config.flip and bool(torch.rand((), generator=generator) < 0.5)
        others = range(1, 1 if view else self.config.views_per_clip)
        return _Draw(captions, is_flipped, generator, tuple(self._draw(epoch, sample, v) for v in others))

    @property
    def _crops(self) -> bool:
        return self.config.crop_scale != (1.0, 1.0)

    @property
    def _crops_later(self) -> bool:
        return self.config.crop_on == "device"

    def _read(self, draw: _Draw, source: _Source) -> tuple[Tensor, Box | None]:
        config = self.config
        # A crop of the smallest share still has as many pixels as the model wants, up to twice its side.
        size = min(2 * self.image_size, math.ceil(self.image_size / math.sqrt(config.crop_scale[0])))
        clip = read_clip(
            source.video,
            num_frames=config.num_frames,
            image_size=size if self._crops else self.image_size,
            start_s=source.start_s,
            end_s=source.end_s,
            generator=draw.generator if config.times == "random" else None,
            crop="squash" if self._crops_later else "none" if self._crops else config.crop,
            decoder=self.decoder,
        )
        if self._crops_later:
            assert clip.shown_as is not None
            return clip.frames, _box(*clip.shown_as, draw, config.crop_scale)
        if not draw.others:
            return self._augmented(clip.frames, draw), None
        return torch.stack([self._augmented(clip.frames, view) for view in (draw, *draw.others)]), None

    def _augmented(self, frames: Tensor, draw: _Draw) -> Tensor:
        if self._crops:
            scale = self.config.crop_scale
            frames = transforms.random_resized_crop(
                frames, self.image_size, scale=scale, generator=draw.generator
            )
        if draw.is_flipped:
            frames = transforms.flip(frames)
        if self.config.rand_augment:  # after the crop: at the model's size it costs a quarter
            frames = rand_augment(
                frames,
                num_ops=self.config.rand_augment,
                magnitude=self.config.rand_augment_magnitude,
                generator=draw.generator,
            )
        return frames

    def _video(self, rows: list[_Row], samples: Tensor) -> Tensor:
        if self._cache is None:
            return torch.stack([row.video for row in rows if row.video is not None])
        video = self._cache.frames[self.clip_of[samples]]
        if self.config.flip or self._crops or self.config.rand_augment:
            for place, row in enumerate(rows):
                video[place] = self._augmented(video[place], row.draw)
        return video

    def _text_ids(self, caption: Tensor) -> Tensor:
        """`[B, C]` caption numbers to `[B, C, L]` tokens; no caption (-1) is the empty text."""
        if self._cache is not None:
            ids = self._cache.text_ids[caption.clamp(min=0)]
            return torch.where((caption >= 0)[..., None], ids, self._cache.empty_ids)
        ids = self.encode_text([self._text(number) for number in caption.flatten().tolist()])
        return ids.reshape(*caption.shape, -1)

    def _text(self, caption: int) -> str:
        if caption < 0:
            return ""
        sample = int(torch.searchsorted(self._first_caption, caption, right=True)) - 1
        return self.examples[sample].texts[caption - int(self._first_caption[sample])]


class _Source(NamedTuple):
    video: str | PackedVideo
    start_s: float
    end_s: float | None


def _no_words(texts: list[str]) -> Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int64)


class _Draw(NamedTuple):
    captions: list[int]  # C numbers
    is_flipped: bool
    generator: torch.Generator  # for what is drawn next
    others: tuple[_Draw, ...] = ()  # of the clip's further views


def _box(height: int, width: int, draw: _Draw, scale: tuple[float, float]) -> Box:
    """The part of a picture to be shown, in shares of its sides; mirrored where the width is negative."""
    found = transforms.random_box(height, width, scale=scale, generator=draw.generator)
    side = min(height, width)
    top, left, crop_h, crop_w = found or ((height - side) // 2, (width - side) // 2, side, side)
    across = crop_w / width
    return top / height, left / width, crop_h / height, -across if draw.is_flipped else across


class _Row(NamedTuple):
    sample: int
    draw: _Draw
    video: Tensor | None  # None where it is in the cache; of a clip of several views [views, T, 3, S, S]
    box: Box | None = None  # where the device is to crop


def _each_view(row: _Row) -> list[_Row]:
    """One row a view of a clip, each with its own draws and frames."""
    if not row.draw.others:
        return [row]
    draws = (row.draw, *row.draw.others)
    videos = [None] * len(draws) if row.video is None else list(row.video)
    return [_Row(row.sample, draw, video) for draw, video in zip(draws, videos, strict=True)]


@dataclass(frozen=True)
class _Cache:
    frames: Tensor  # uint8 [clips, T, 3, S, S]
    text_ids: Tensor  # [captions, L]
    empty_ids: Tensor  # [L]


def _labels(examples: Sequence[Example]) -> Tensor:
    """`[n]`, -1 where there is none; where a row has several, uint8 `[n, A]` with a 1 for each."""
    if not any(e.labels for e in examples):
        return torch.tensor([-1 if e.label is None else e.label for e in examples], dtype=torch.int64)
    classes = 1 + max(max(e.labels, default=0) for e in examples)
    several = torch.zeros(len(examples), classes, dtype=torch.uint8)
    for row, example in zip(several, examples, strict=True):
        row[list(example.labels)] = 1
    return several


def _first_rows(clip_of: Tensor, num_clips: int) -> list[int]:
    rows = torch.full((num_clips,), -1, dtype=torch.int64)
    backwards = torch.arange(len(clip_of) - 1, -1, -1)
    rows[clip_of[backwards]] = backwards
    return rows.tolist()


# ---------------------------------------------------------------------------------------------------------------
# The loader


@dataclass
class TrainLoader:
    """Batches for steps first_step, first_step + 1, … without end; what they hold depends on (seed, step) only.

    `global_batch` is the number of clips a step over all ranks or, where it changes within a run, pairs
    (first step, clips a step) beginning with step 0.
    """

    dataset: ClipDataset
    global_batch: int | Sequence[tuple[int, int]]
    rank: int = 0
    world: int = 1
    first_step: int = 0
    progress: OnProgress | None = None  # of filling a memory cache
    refused: Mapping[str, Refused] = field(default_factory=dict)  # by id, what this run left out before
    broken: dict[str, Refused] = field(default_factory=dict)  # by id, of the samples seen by this rank
    truncated: int = 0  # captions cut, of the samples seen by this rank
    device: torch.device | str = "cpu"  # that crops, with data.crop_on device

    def __post_init__(self) -> None:
        batch = self.global_batch
        self._batches = [(0, batch)] if isinstance(batch, int) else [(int(s), int(b)) for s, b in batch]
        starts = [start for start, _ in self._batches]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise HarvestError(
                f"global_batch: expected (first step, clips) from step 0 on, rising, got {batch}"
            )
        views = self.dataset.config.views_per_clip
        for _, clips in self._batches:
            if clips < 1 or clips % (self.world * views):
                raise HarvestError(
                    f"a batch of {clips} clips cannot be shared equally by {self.world} ranks"
                    + (f", {views} views of a clip together" if views > 1 else "")
                    + f": take a multiple of {self.world * views}"
                )
        self._tried: set[int] = set()  # samples
        self._refused: set[int] = set()
        if self.refused:
            samples = self.dataset.samples_of(self.refused)
            self.dataset.refuse({sample: self.refused[id] for id, sample in samples.items()})

    @property
    def broken_ratio(self) -> float:
        """Of the samples tried so far by this rank."""
        return len(self._refused) / max(1, len(self._tried))

    def batch_at(self, step: int) -> int:
        """Clips over all ranks in this step."""
        return next(clips for start, clips in reversed(self._batches) if start <= step)

    def position_of(self, step: int) -> int:
        """How many samples the steps before this one saw, over all ranks."""
        position = 0
        for (start, clips), (end, _) in zip(self._batches, [*self._batches[1:], (step, 0)], strict=True):
            position += max(0, min(end, step) - start) * clips
        return position

    def keys(self, step: int) -> list[Key]:
        """(epoch, place) of this rank's clips of a step; each gives `views_per_clip` rows."""
        n, views = len(self.dataset), self.dataset.config.views_per_clip
        first, end = self.position_of(step) // views, self.position_of(step + 1) // views
        return [divmod(position, n) for position in range(first + self.rank, end, self.world)]

    def __iter__(self) -> Iterator[Batch]:
        config = self.dataset.config
        if config.cache == "memory":
            if not self.dataset.is_cached:
                before = getattr(self.dataset.encode_text, "truncated", 0)
                broken = self.dataset.fill_cache(self.progress)
                self._note(range(len(self.dataset)), [(row, Refused(why)) for row, why in broken.items()])
                self.truncated += getattr(self.dataset.encode_text, "truncated", 0) - before
            step = self.first_step
            while True:
                yield self._checked(self.dataset[self.keys(step)])
                step += 1
        loader = DataLoader(
            self.dataset,
            sampler=_Steps(self),  # type: ignore[arg-type]  # its "indices" are whole batches of keys
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_start_worker if config.workers else None,
            multiprocessing_context=_start_method(self.dataset.decoder, config.workers),
            pin_memory=torch.cuda.is_available(),
        )
        for packed in _from_workers(loader):
            yield self._checked(packed)

    def _checked(self, packed: Packed) -> Batch:
        self._note(packed.tried, packed.broken)
        self.truncated += packed.truncated
        if packed.batch is None:
            raise self._too_many_broken()
        if packed.boxes is not None:
            video = packed.batch.video.to(self.device, non_blocking=True)
            video = transforms.crop_batch(video, packed.boxes, self.dataset.image_size)
            return packed.batch._replace(video=video)
        return packed.batch

    def _note(self, tried: Iterable[int], broken: Iterable[tuple[int, Refused]]) -> None:
        self._tried.update(tried)
        for sample, refused in broken:
            self._refused.add(sample)
            self.broken.setdefault(self.dataset.id_of(sample), refused)
        is_telling = len(self._tried) >= min(_MIN_TRIED, len(self.dataset))
        if is_telling and self.broken_ratio > self.dataset.config.max_broken_ratio:
            raise self._too_many_broken()

    def _too_many_broken(self) -> HarvestError:
        first = "; ".join(f"{id}: {why.reason}" for id, why in list(self.broken.items())[:3])
        return HarvestError(
            f"{len(self._refused)} of {len(self._tried)} videos tried cannot be read ({self.broken_ratio:.0%};"
            f" data.max_broken_ratio allows {self.dataset.config.max_broken_ratio:.0%}). First: {first}."
            " Is data.videos the right folder?"
        )


@dataclass(frozen=True)
class _Steps:
    """Sampler of a DataLoader: the keys of one step after the other."""

    loader: TrainLoader

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.loader.first_step
        while True:
            yield self.loader.keys(step)
            step += 1


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Ctrl-C is for the training process, which saves and then ends its workers. Reading is guarded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "fork"):
        info = get_worker_info()
        assert info is not None and isinstance(info.dataset, ClipDataset | _Clips)
        info.dataset.start_guard()


def _start_method(decoder: Decoder, workers: int) -> str | None:
    """How worker processes begin; None as PyTorch does.

    On Linux they are forked, whatever Python's own way is (3.14's is another), so that ten million examples are not
    copied to each. Python from 3.12 on warns of that where a process has threads, which a training process has. What
    they could hold, workers do not ask for: they compute with one thread, and write nothing to a terminal.

    What is forked from a process that uses a GPU cannot use it: workers that decode on one begin anew, and fork their
    guarded process before anything in them touches the GPU.
    """
    if not workers:
        return None
    if decoder == "torchcodec_cuda":
        return "spawn"
    return "fork" if sys.platform == "linux" else None


def _from_workers(loader: DataLoader) -> Iterator[Any]:
    """What a loader yields. A worker process that the system ended is told in words."""
    batches, end = iter(loader), object()
    while True:
        try:
            with lost_workers():
                item = next(batches, end)
        except (EOFError, ConnectionError) as error:  # while it was handing over a batch
            with suppress(RuntimeError):  # PyTorch's own word for it, that comes with the end of the process
                wait([worker.sentinel for worker in active_children()], timeout=5)
            raise _ended_by_the_system(error) from error
        if item is end:
            return
        yield item


@contextmanager
def lost_workers() -> Iterator[None]:
    """A worker process that the system ended is told in words: PyTorch says it wherever the main process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # what a worker itself raised says "Caught … in"
            raise
        raise _ended_by_the_system(error) from error


def _ended_by_the_system(error: Exception) -> HarvestError:
    says = str(error).splitlines()[0] if str(error) else "it left no word"
    return HarvestError(
        f"a process that reads videos was ended by the system ({says}), mostly for want of memory: take fewer --data.workers."
        " The same command goes on from the last checkpoint."
    )


# ---------------------------------------------------------------------------------------------------------------
# Every clip once, in order: evaluation, search and the memory cache


class _Clips(Dataset):
    """Reads clip i of a list: (frames, None), or (None, reason) where it cannot be read."""

    def __init__(
        self,
        examples: Sequence[Example],
        num_frames: int,
        image_size: int,
        crop: Crop = "center",
        frame_order: FrameOrder = "forward",
    ) -> None:
        self.examples, self.num_frames, self.image_size, self.crop = examples, num_frames, image_size, crop
        self.frame_order = frame_order
        self.seed: int | None = None  # of random times, drawn once per clip; None takes the middle ones
        self.limit_s, self.decoder = DataConfig.video_limit_s, DataConfig.decoder
        self._guard: Guard | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def start_guard(self) -> None:
        self._guard = Guard(self._pixels, limit_s=self.limit_s)
        self._guard.start()

    def _pixels(self, number: int, video: str | PackedVideo) -> np.ndarray:
        example = self.examples[number]
        clip = read_clip(
            video,
            num_frames=self.num_frames,
            image_size=self.image_size,
            start_s=example.start_s,
            end_s=example.end_s,
            generator=None if self.seed is None else generator_for(self.seed, 0, number),
            crop=self.crop,
            decoder=self.decoder,
        )
        return clip.frames.numpy()

    def __getitem__(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None, list[tuple[int, str]]]:
        read, refused, frames = [], [], []
        for number in numbers:
            try:
                video = video_of(self.examples[number].video)  # here: a slow bucket is no broken video
                pixels = (self._guard or self._pixels)(number, video)
                frames.append(self._shown(number, torch.from_numpy(pixels)))
                read.append(number)
            except VideoError as error:
                refused.append((number, error.reason))
            except Lost as error:
                refused.append((number, str(error)))
        return torch.tensor(read, dtype=torch.int64), torch.stack(frames) if frames else None, refused

    def _shown(self, number: int, frames: Tensor) -> Tensor:
        """Frames `[..., T, 3, S, S]` in the order asked for; what is shuffled is a function of the clip's number."""
        if self.frame_order == "forward":
            return frames
        places = frame_places(self.frame_order, self.num_frames, generator=generator_for(0, number))
        return frames.index_select(frames.ndim - 4, places)

    def batches(
        self, *, batch_size: int, workers: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, str]]]]:
        """(clip numbers, uint8 [b, T, 3, S, S], [(clip number, reason)]) in the order of the clips.

        Of several processes each reads every so many-th batch.
        """
        lists = [
            list(range(start, min(start + batch_size, len(self))))
            for start in range(0, len(self), batch_size)
        ][rank::world]
        workers = min(workers, len(lists))
        loader = DataLoader(
            self,
            sampler=lists,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context=_start_method(self.decoder, workers),
        )
        for numbers, video, refused in _from_workers(loader):
            if video is None:
                video = torch.empty(
                    0, self.num_frames, 3, self.image_size, self.image_size, dtype=torch.uint8
                )
            yield numbers, video, refused


def eval_batches(
    examples: Sequence[Example],
    *,
    num_frames: int,
    image_size: int,
    batch_size: int,
    workers: int = 2,
    crop: Literal["center", "squash"] = "center",
    frame_order: FrameOrder = "forward",
    rank: int = 0,
    world: int = 1,
    on_broken: Callable[[Example, str], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(clip numbers int64 `[b]`, video uint8 `[b, T, 3, S, S]`) for every clip once, in the manifest's order.

    Clip numbers are those of `clip_numbers(examples)`, so that a clip with several captions is decoded once.
    Times are the middles of the segments, shown in `frame_order`. A clip that cannot be read is left out and handed to `on_broken`
    with its reason; batches hold at most `batch_size` clips and are never empty.

    Of `world` processes the one of this `rank` reads every `world`-th batch, also one of which nothing could be read,
    so that batch n of all is batch n // world of rank n % world.
    """
    clip_of = clip_numbers(examples)
    if not len(clip_of):
        return
    chosen = [examples[row] for row in _first_rows(clip_of, int(clip_of.max()) + 1)]
    clips = _Clips(chosen, num_frames, image_size, crop, frame_order)
    batches = clips.batches(batch_size=batch_size, workers=workers, rank=rank, world=world)
    for numbers, video, refused in batches:
        for number, reason in refused:
            if on_broken is not None:
                on_broken(chosen[number], reason)
        if len(numbers) or world > 1:
            yield numbers, video
