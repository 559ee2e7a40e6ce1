"""A training set whose samples are functions of (seed, epoch, sample): times, crop, mirroring and caption.

A video that cannot be read is never fatal and never silently replaced: its place is taken by the next sample of the
same epoch's order, and the batch names it with its reason.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from harvest.data import transforms
from harvest.data.columns import Columns, columns_of_rows
from harvest.data.guard import Guard, Lost
from harvest.data.rand_augment import rand_augment
from harvest.data.read_once import VIDEO_LIMIT_S, ClipReader, first_rows
from harvest.data.rows import video_of
from harvest.data.sampler import Key, Keys, epoch_order
from harvest.data.shards import ShardSet
from harvest.data.video import Decoder, PackedVideo, VideoError, read_clip
from harvest.data.video.second_decoder import find_decoder
from harvest.data.words import SIDE_WORDS, cut_padding, drawn_sentence, first_sentences, names_a_side
from harvest.interfaces import Batch, Example, Fit, HardTextSource, HarvestError, Interpolation, OnProgress
from harvest.parallel import generator_for
from harvest.ranges import Range, check_ranges

EncodeText = Callable[[list[str]], Tensor]
CropBox = tuple[float, float, float, float]  # top, left, height, width as ratios of a picture's sides

_HARD = 7  # tells the draws of hard texts from all others
_AHEAD = 8  # samples that a worker is told for each place
_MAX_TRIES = 100  # for one place of a batch; that many broken in a row mean a wrong folder

_recent_order = lru_cache(maxsize=4)(epoch_order)  # a batch may lie in two epochs, of clips and of pictures


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
    form: str = ""
    """Name of the published training set that `train` is (harvest dataset), where it is not to be recognised; table:
    a table read by the names of its columns."""
    columns: tuple[str, ...] = ()
    """What a column of `train` is, where its name does not say: caption=long_text video=file start=t0 ignore=t1."""
    videos: str | None = None
    """Folder that the manifest's paths are relative to; without it the manifest's own."""
    num_frames: Annotated[int, Range(least=1)] = 8
    """Frames a clip."""
    times: Literal["random", "middle"] = "random"
    """Where in each of its segments of a clip a frame is taken."""
    captions_per_clip: Annotated[int, Range(least=0)] = 1
    """Captions of a clip in one step, drawn anew each epoch; a clip with fewer repeats them. 0 takes all in their
    order, of which every row must have equally many: the options of questions."""
    crop_scale: Annotated[tuple[float, float], Range(above=0, most=1)] = (1.0, 1.0)
    """Smallest and largest share of the picture's area in a random crop; 1 1 takes the middle square."""
    fit: Fit | None = None
    """Without random crops, how a picture becomes a square; None: as the model was trained. Boxes need squash."""
    flip: bool = False
    """Mirror every other clip, but none whose caption, question, answer or class names a side."""
    flip_sides: bool = False
    """Mirror clips whose captions say left or right too, as the papers do."""
    side_languages: tuple[str, ...] = tuple(SIDE_WORDS)
    """Languages whose words for sides are looked for in captions (`data.words`)."""
    long_captions: Literal["whole", "first", "sentence"] = "whole"
    """Captions of more than caption_words: whole, cut where the text tower ends; their first sentences up to that many
    words; or one sentence, drawn anew each time."""
    caption_words: Annotated[int, Range(least=1)] = 50
    """Words from which on a caption is long: 77 tokens of CLIP hold about 50."""
    crop_on: Literal["worker", "device"] = "worker"
    """device: workers hand over whole pictures, squashed to a square, and random crops and mirroring are done for the
    batch in one pass where the model computes. Saves workers a scaling, and costs more bytes a clip."""
    rand_augment: Annotated[int, Range(least=0)] = 0
    """Operations of RandAugment on a clip, the same for all its frames; 0 is none, UMT fine-tunes with 4."""
    rand_augment_magnitude: Annotated[float, Range(least=0, most=10)] = 7.0
    """Their strength, 0 to 10."""
    views_per_clip: Annotated[int, Range(least=1)] = 1
    """Repeated augmentation: times that a clip, decoded once, stands in its step, each time augmented anew."""
    workers: Annotated[int, Range(least=0)] = 2
    """Processes that decode, for each rank; 0 decodes in the training process."""
    cache: Literal["none", "memory"] = "none"
    """memory: decode every clip once, keep its frames in memory and draw its times once."""
    max_broken_ratio: Annotated[float, Range(least=0, most=1)] = 0.5
    """Stop when more than this share of the videos tried cannot be read."""
    video_limit_s: Annotated[float, Range(above=0)] = VIDEO_LIMIT_S
    """A video that takes longer to read counts as broken. Only where workers read."""
    changed_ok: bool = False
    """Go on with a run although its training set is no longer the one that it began with."""
    decoder: Decoder = "pyav"
    """torchcodec, where it is installed with FFmpeg's libraries, gives the same frames at the same times, and
    torchcodec_cuda on an NVIDIA GPU. Pixels differ by a few levels; what it cannot read, AVI and rotated videos, PyAV
    reads. auto: torchcodec_cuda where that can be had, else pyav."""

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise HarvestError(f"data.crop_scale: expected smallest <= largest, got {self.crop_scale}")
        is_random = self.crop_scale != (1.0, 1.0)
        if self.crop_on == "device" and (
            self.rand_augment or self.views_per_clip > 1 or self.cache == "memory"
        ):
            raise HarvestError(
                "data.crop_on device does not go with data.rand_augment, data.views_per_clip or data.cache memory"
            )
        if self.crop_on == "device" and not is_random:
            raise HarvestError("data.crop_on device is for random crops: set data.crop_scale, e.g. 0.5 1")
        if self.fit == "squash" and is_random:
            raise HarvestError("data.fit squash shows whole pictures: it does not go with data.crop_scale")
        if self.long_captions == "sentence" and self.cache == "memory":
            raise HarvestError(
                "data.long_captions sentence draws anew each step: it does not go with data.cache memory"
            )


class Refused(NamedTuple):
    """Why a sample is left out, and from which position of the run's order on."""

    reason: str
    position: int = 0


class WorkerBatch(NamedTuple):
    """What a worker sends: the rows of a batch that could be filled, and what happened on the way."""

    batch: Batch | None  # None where a row found no video to fill it
    tried: list[int]  # samples looked at
    broken: list[tuple[int, Refused]]  # those that could not be read
    truncated: int  # captions that were too long for the text tower
    shortened: int = 0  # long captions of which a part was taken
    crops: Tensor | None = None  # [B, 4] of `transforms.crop_batch`, where the device is to crop


class ClipDataset(Dataset):
    """A training set; with `encode_text` None, one of videos alone. `dataset[keys]` with keys (epoch, place in that epoch's order) gives a `WorkerBatch`.

    `encode_text` maps captions to int64 `[n, L]`; it has to survive the way into a worker process. Of a batch's texts
    the padding, `pad_id`, behind the longest one is cut; None leaves it.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: DataConfig,
        *,
        image_size: int,
        encode_text: EncodeText | None,
        seed: int,
        hard_texts: HardTextSource | None = None,
        pad_id: int | None = None,
        class_names: Sequence[str] = (),
        fit: Fit = "crop",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        if not examples:
            raise HarvestError("the training set is empty: its manifest has no rows")
        self.decoder: Decoder = find_decoder(config.decoder)
        self.fit: Fit = config.fit or fit
        self.interpolation: Interpolation = interpolation
        if isinstance(examples, ShardSet):  # nothing of ten million samples is read before it is needed
            self.examples: Columns | ShardSet = examples
            self.labels, self.clip_of = examples.labels, torch.arange(len(examples))
        else:
            self.examples = examples if isinstance(examples, Columns) else columns_of_rows(examples)
            self.labels, self.clip_of = self.examples.labels, self.examples.clip_of
        self.num_texts = self.examples.num_texts
        # where some have captions and some only labels, a caption would be missing in the batch
        silent = self.num_texts == 0
        unlabelled = self.labels < 0 if self.labels.ndim == 1 else self.labels.sum(1) == 0
        if silent.any() and unlabelled.any() and encode_text is not None:
            first = self.examples[int(silent.nonzero()[0])].id
            raise HarvestError(
                f"{int(silent.sum())} of {len(examples)} training examples have neither caption nor label (first:"
                f" {first!r}): remove these rows or give them captions"
            )
        self.config, self.image_size, self.seed = config, image_size, seed
        self.hard_texts, self.pad_id = hard_texts, pad_id
        self.class_names = class_names
        """Of `labels`, where they are numbers of classes."""
        self.encode_text = encode_text if encode_text is not None else _no_text
        self.num_clips = int(self.clip_of.max()) + 1
        self.stored: tuple[Literal["example", "caption"], Callable[[Tensor], Tensor]] | None = None
        """How `Batch.stored` is found by the numbers of clips or captions: a `StoredRows`."""
        self._first_caption = F.pad(self.num_texts.cumsum(0), (1, 0))
        self._cache: _Cache | None = None
        self._refused: dict[int, Refused] = {}  # by sample, so that no broken video is tried twice
        self._guard: Guard | None = None  # in worker processes
        self._shortened = 0  # captions since the last batch

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_captions(self) -> int:
        return int(self._first_caption[-1])

    def captions(self, numbers: range | None = None) -> list[str]:
        """Captions by the numbers of `Batch.caption`, all of them or some in a row, as they are shown."""
        if self.config.long_captions == "sentence":
            raise HarvestError(
                "data.long_captions sentence draws anew each step, so that texts cannot be encoded once: take first, or"
                " do without the cache of texts"
            )
        return [self._part(self._text(number)) for number in numbers or range(self.num_captions)]

    def captions_digest(self) -> str:
        """What `captions` gives, as a digest: of shards, whose captions are not read for it, as their indexes say."""
        digest = hashlib.blake2b(
            f"{self.config.long_captions} {self.config.caption_words}".encode(), digest_size=16
        )
        if isinstance(self.examples, ShardSet):
            digest.update(self.examples.digest().encode())
        else:
            digest.update(self.examples.texts_digest().encode())
        return digest.hexdigest()

    def clips_of_captions(self, numbers: Tensor) -> Tensor:
        """The clips of captions, in the numbers of `Batch.example`: int64 `[...]`."""
        return self.clip_of[torch.searchsorted(self._first_caption, numbers, right=True) - 1]

    def id_of(self, sample: int) -> str:
        """A name for reports."""
        return self.examples.id_of(sample)

    def samples_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The samples behind names of `id_of`, as far as they are known."""
        return self.examples.samples_of(ids)

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
        clips = ClipReader(
            [self.examples[row] for row in first_rows(self.clip_of)],
            config.num_frames,
            self.image_size,
            self.fit,
            interpolation=self.interpolation,
            seed=self.seed if config.times == "random" else None,
            limit_s=config.video_limit_s,
            decoder=self.decoder,
        )
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

    def with_samples(self, keys: Sequence[Key]) -> Keys:
        """Keys with the samples that are there, and those behind them for where these cannot be read: a worker that is
        told them needs no order of the epoch of its own."""
        n = len(self)
        places = np.array([place for _, place in keys])[:, None] + np.arange(_AHEAD)
        orders = [self._places(epoch).numpy() for epoch, _ in keys]
        return Keys(keys, np.stack([order[row % n] for order, row in zip(orders, places, strict=True)]))

    def __getitem__(self, keys: Sequence[Key]) -> WorkerBatch:
        tried: list[int] = []
        broken: list[tuple[int, Refused]] = []
        rows: list[_Drawn] = []
        keys = keys if isinstance(keys, Keys) else self.with_samples(keys)
        if isinstance(self.examples, ShardSet):
            self.examples.read_ahead(keys.samples[:, 0].tolist())
        for (epoch, place), samples in zip(keys, keys.samples, strict=True):
            row = self._row(epoch, place, samples, tried, broken)
            if row is None:
                return WorkerBatch(None, tried, broken, 0)
            rows += _each_view(row)
        shown = torch.tensor([row.sample for row in rows], dtype=torch.int64)
        caption = torch.tensor([row.draw.captions for row in rows], dtype=torch.int64)
        truncated = getattr(self.encode_text, "truncated", 0)  # a tokenizer counts the texts that it cuts
        batch = Batch(
            video=self._video(rows, shown),
            text_ids=cut_padding(self._text_ids(rows, caption), self.pad_id),
            example=self.clip_of[shown],
            caption=caption,
            label=self.labels[shown],
        )
        cut = getattr(self.encode_text, "truncated", 0) - truncated
        if self.stored is not None:
            key, store = self.stored
            batch = batch._replace(stored=store(getattr(batch, key)))
        if self.hard_texts is not None:
            batch = batch._replace(hard_ids=self._hard_ids(self.hard_texts, rows))
        crops = torch.tensor([row.box for row in rows]) if self._crops_later else None
        return WorkerBatch(batch, tried, broken, cut, self._count_shortened(), crops)

    def _places(self, epoch: int) -> Tensor:
        return _recent_order(self.seed, epoch, len(self))

    def _row(
        self,
        epoch: int,
        place: int,
        samples: np.ndarray,
        tried: list[int],
        broken: list[tuple[int, Refused]],
    ) -> _Drawn | None:
        """The sample of this place or, where it cannot be read, the next one of the order that can. `samples` are the
        first of them."""
        position = epoch * len(self) + place
        for step in range(min(len(self), _MAX_TRIES)):
            is_told = step < len(samples)
            sample = int(samples[step] if is_told else self._places(epoch)[(place + step) % len(self)])
            tried.append(sample)
            if sample not in self._refused or position < self._refused[sample].position:
                try:
                    source = None if self.is_cached else self._source(sample)
                    draw = self._draw(epoch, sample, self._may_mirror(sample))
                    if source is None:
                        return _Drawn(sample, epoch, draw, None)
                    return _Drawn(sample, epoch, draw, *self._video_of(epoch, sample, draw, source))
                except VideoError as error:
                    self._refused[sample] = Refused(error.reason, position)
                except Lost as error:
                    self._refused[sample] = Refused(str(error), position)
            broken.append((sample, self._refused[sample]))
        return None

    def _source(self, sample: int) -> _Source:
        """What is to be decoded. The bytes of a packed sample are read here: a slow bucket is no broken video."""
        if isinstance(self.examples, ShardSet):
            packed = self.examples.fetch(sample)[1]
            return _Source(packed, 0.0, None, self._may_mirror(sample))
        example = self.examples[sample]
        video = video_of(example.video)
        return _Source(video, example.start_s, example.end_s, self._may_mirror(sample))

    def _may_mirror(self, sample: int) -> bool:
        config = self.config
        if not config.flip or config.flip_sides:
            return config.flip
        example = self.examples[sample]
        texts = (*example.texts, example.question or "", example.answer or "", *self._classes_of(sample))
        return not names_a_side(texts, config.side_languages)

    def _classes_of(self, sample: int) -> list[str]:
        if not self.class_names:
            return []
        labels = self.labels[sample]
        numbers = labels.nonzero().flatten().tolist() if labels.ndim else [int(labels)]
        return [self.class_names[number] for number in numbers if number >= 0]

    def _video_of(
        self, epoch: int, sample: int, draw: _Draw, source: _Source
    ) -> tuple[Tensor, CropBox | None]:
        if self._guard is None:
            return self._read(draw, source)
        frames, box = self._guard(epoch, sample, source)
        return torch.from_numpy(frames), box

    def _pixels(self, epoch: int, sample: int, source: _Source) -> tuple[np.ndarray, CropBox | None]:
        """What the guarded process answers: it makes the same draws again."""
        frames, box = self._read(self._draw(epoch, sample, source.may_mirror), source)
        return frames.numpy(), box

    def _draw(self, epoch: int, sample: int, may_mirror: bool, *view: int) -> _Draw:
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
        views = tuple(self._draw(epoch, sample, may_mirror, v) for v in others)
        return _Draw(captions, is_flipped and may_mirror, generator, views)

    @property
    def _crops(self) -> bool:
        return self.config.crop_scale != (1.0, 1.0)

    @property
    def _crops_later(self) -> bool:
        return self.config.crop_on == "device"

    def _read(self, draw: _Draw, source: _Source) -> tuple[Tensor, CropBox | None]:
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
            fit="squash" if self._crops_later else None if self._crops else self.fit,
            interpolation=self.interpolation,
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

    def _video(self, rows: list[_Drawn], samples: Tensor) -> Tensor:
        if self._cache is None:
            return torch.stack([row.video for row in rows if row.video is not None])
        video = self._cache.frames[self.clip_of[samples]]
        if self.config.flip or self._crops or self.config.rand_augment:
            for place, row in enumerate(rows):
                video[place] = self._augmented(video[place], row.draw)
        return video

    def _text_ids(self, rows: list[_Drawn], caption: Tensor) -> Tensor:
        """`[B, C]` caption numbers to `[B, C, L]` tokens; no caption (-1) is the empty text."""
        if self._cache is not None:
            ids = self._cache.text_ids[caption.clamp(min=0)]
            return torch.where((caption >= 0)[..., None], ids, self._cache.empty_ids)
        texts: list[str] = []
        for row, numbers in zip(rows, caption.tolist(), strict=True):
            for number in numbers:
                text = self._text(number)
                texts.append(self._part(text, row.epoch, row.sample, number))
                self._shortened += texts[-1] != text
        ids = self.encode_text(texts)
        return ids.reshape(*caption.shape, -1)

    def _part(self, text: str, *drawn_for: int) -> str:
        """What is shown of a caption; a drawn sentence is a function of the seed and of (epoch, sample, caption)."""
        words, mode = self.config.caption_words, self.config.long_captions
        if mode == "whole":
            return text
        if mode == "first":
            return first_sentences(text, words)
        return drawn_sentence(text, words, generator_for(self.seed, *drawn_for, 1))

    def _count_shortened(self) -> int:
        """How many since the last call."""
        count, self._shortened = self._shortened, 0
        return count

    def _hard_ids(self, hard: HardTextSource, rows: Sequence[_Drawn]) -> Tensor:
        """Tokens `[B, num, L]` of sentences drawn from those that each row's first caption gives; -1 where it has fewer."""
        texts: list[str] = []
        places: list[int] = []
        for place, row in enumerate(rows):
            number = row.draw.captions[0]
            found = hard.of(self._part(self._text(number), row.epoch, row.sample, number))
            drawn = torch.randperm(len(found), generator=generator_for(self.seed, row.epoch, number, _HARD))
            for n, chosen in enumerate(drawn[: hard.num].tolist()):
                texts.append(found[chosen])
                places.append(place * hard.num + n)
        ids = cut_padding(self.encode_text(texts or [""]), self.pad_id)
        every = torch.full((len(rows) * hard.num, ids.shape[1]), -1, dtype=torch.int64)
        every[places] = ids[: len(places)]
        return every.view(len(rows), hard.num, -1)

    def _text(self, caption: int) -> str:
        if caption < 0:
            return ""
        if isinstance(self.examples, Columns):
            return self.examples.text_of(caption)
        sample = int(torch.searchsorted(self._first_caption, caption, right=True)) - 1
        return self.examples[sample].texts[caption - int(self._first_caption[sample])]


class _Source(NamedTuple):
    video: str | PackedVideo
    start_s: float
    end_s: float | None
    may_mirror: bool


def _no_text(texts: list[str]) -> Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int64)


class _Draw(NamedTuple):
    captions: list[int]  # C numbers
    is_flipped: bool
    generator: torch.Generator  # for what is drawn next
    others: tuple[_Draw, ...] = ()  # of the clip's further views


def _box(height: int, width: int, draw: _Draw, scale: tuple[float, float]) -> CropBox:
    """The part of a picture to be shown, in shares of its sides; mirrored where the width is negative."""
    found = transforms.random_box(height, width, scale=scale, generator=draw.generator)
    side = min(height, width)
    top, left, crop_h, crop_w = found or ((height - side) // 2, (width - side) // 2, side, side)
    across = crop_w / width
    return top / height, left / width, crop_h / height, -across if draw.is_flipped else across


class _Drawn(NamedTuple):
    sample: int
    epoch: int
    draw: _Draw
    video: Tensor | None  # None where it is in the cache; of a clip of several views [views, T, 3, S, S]
    box: CropBox | None = None  # where the device is to crop


def _each_view(row: _Drawn) -> list[_Drawn]:
    """One row a view of a clip, each with its own draws and frames."""
    if not row.draw.others:
        return [row]
    draws = (row.draw, *row.draw.others)
    videos = [None] * len(draws) if row.video is None else list(row.video)
    return [_Drawn(row.sample, row.epoch, draw, video) for draw, video in zip(draws, videos, strict=True)]


@dataclass(frozen=True)
class _Cache:
    frames: Tensor  # uint8 [clips, T, 3, S, S]
    text_ids: Tensor  # [captions, L]
    empty_ids: Tensor  # [L]
