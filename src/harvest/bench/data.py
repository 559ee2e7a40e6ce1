"""`harvest bench data`: what a clip costs to read, whole, by seeking and from shards; does training wait for them?

The ways take turns, a clip each, on the same clips in one process with one decoding thread. What counts is processor
time, so that other work on the machine changes little; wall time stands beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import Interpolation
from torch import Tensor

from harvest.bench.step import (
    Size,
    default_batch,
    describe_machine,
    make_objective,
    make_stepper,
    model_config,
    print_table,
)
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.loader import TrainLoader
from harvest.data.manifest import read_manifest
from harvest.data.options import PrepareConfig
from harvest.data.prepare import prepare
from harvest.data.sampling import segment_times
from harvest.data.shards import read_shards
from harvest.data.video import Decoder, write_video
from harvest.files import write_file
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.objectives.reach import random_batch
from harvest.progress import bar, say
from harvest.tokens import Selection

_FPS, _SECONDS, _KEY_EVERY = 30, 10, 12  # of the clips that are drawn where none are given
_WORDS = 32


def data_command(
    manifest: Path | None = None,
    videos: Path | None = None,
    clips: int = 4,
    size: tuple[int, int] = (640, 360),
    frames: int = 8,
    image_size: int = 224,
    short_side: int = 256,
    seconds: float = 5.0,
    train: Size | None = None,
    drop_ratio: float = 0.9,
    batch: int | None = None,
    workers: int = 1,
    threads: int | None = None,
    train_seconds: float = 60.0,
    out: Path | None = None,
) -> None:
    """Clips a second on one core: files read whole, by seeking, by torchcodec if it is here, shards of video, of frames.

    $ harvest bench data
    $ harvest bench data --manifest clips.jsonl --clips 32 --out data.json
    $ harvest bench data --train b16 --workers 1 --threads 1       and the share of time a training run waits

    Args:
        manifest: Clips to read; without it some are drawn: 10 s of H.264, 30 frames a second, a key frame every 12.
        videos: Folder that the manifest's paths are relative to.
        clips: How many of the manifest, or are drawn.
        size: Width and height of what is drawn.
        frames: Frames a clip.
        image_size: Side of a frame.
        short_side: Pixels of the packed clips' short side.
        seconds: Processor time for each way of reading.
        train: Also train this model from the packed clips, and tell how long it waited for them.
        drop_ratio: Share of patches dropped in training.
        batch: Clips a step of that training; without it 40 at 90 %.
        workers: Processes that decode for it.
        threads: Threads it computes with.
        train_seconds: Time for training, after two steps of warm-up.
        out: Write the result as JSON to this file.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="harvest-bench-") as folder:
        if manifest is not None:
            rows = read_manifest(manifest, videos=videos, captions_required=False)
            chosen = rows[:: max(1, len(rows) // max(1, clips))][:clips]
        else:
            with bar("drawing clips") as progress:
                chosen = draw_clips(Path(folder), clips, size=size, progress=progress)
        result = measure_data(
            chosen,
            Path(folder) / "packed",
            frames=frames,
            image_size=image_size,
            short_side=short_side,
            seconds=seconds,
        )
        if train is not None:
            waiting = measure_waiting(
                Path(folder) / "packed" / "video",
                train,
                drop_ratio=drop_ratio,
                batch=batch,
                frames=frames,
                workers=workers,
                seconds=train_seconds,
            )
            result = dataclasses.replace(result, waiting=waiting)
    print_result(result)
    if out is not None:
        write_file(out, json.dumps(dataclasses.asdict(result), indent=1))
        print(f"written: {out}")


_FURTHER: dict[str, Decoder] = {"torchcodec": "torchcodec", "torchcodec on the GPU": "torchcodec_cuda"}


@dataclass(frozen=True)
class ReadRate:
    """One way of reading. Rates are for one core: a second is one of processor time."""

    way: str
    clips: int
    """Read in all."""
    clips_per_s: float
    frames_per_s: float
    wall_clips_per_s: float
    mb_per_clip: float
    speedup: float
    """Over files read whole."""


@dataclass(frozen=True)
class Waiting:
    """A training run that reads packed clips."""

    model: Size
    drop_ratio: float
    batch: int
    workers: int
    threads: int
    steps: int
    clips_per_s: float
    share: float
    """Of the time, spent waiting for a batch."""


@dataclass(frozen=True)
class DataBench:
    settings: dict[str, object]
    machine: dict[str, object]
    rows: tuple[ReadRate, ...]
    waiting: Waiting | None = None


# ---- reading -----------------------------------------------------------------------------------------------------


@dataclass
class _Way:
    """A way of reading that takes turns with others: `read(n)` reads the n-th clip of an endless order."""

    name: str
    read: Callable[[int], Any]
    mb_per_clip: float
    clips: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    warm: bool = field(default=False)

    def turn(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.read(self.clips)
        if self.warm:  # the first clip loads libraries and fills caches
            self.cpu_s += time.process_time() - cpu
            self.wall_s += time.perf_counter() - wall
            self.clips += 1
        self.warm = True


def measure_data(
    examples: Sequence[Example],
    packed: Path,
    *,
    frames: int = 8,
    image_size: int = 224,
    short_side: int = 256,
    seconds: float = 5.0,
) -> DataBench:
    """Read `examples` in several ways in turns; their shards are left in `packed`/video and `packed`/frames.

    Clips that cannot be packed are left out of all. Raises HarvestError where none is left.
    """
    if frames < 1 or image_size < 1 or seconds <= 0 or not examples:
        raise HarvestError(
            f"bench data: expected clips, frames and image_size of at least 1 and more than 0 seconds, got"
            f" {len(examples)}, {frames}, {image_size}, {seconds}"
        )
    asked = {"video": PrepareConfig(short_side), "frames": PrepareConfig(short_side, frames=2 * frames)}
    broken = {e.id: "not a file" for e in examples if Path(e.video).exists() and not Path(e.video).is_file()}
    for name, config in asked.items():
        with bar(f"packing {name}") as progress:
            broken |= prepare(examples, packed / name, config, workers=0, progress=progress).broken
    good = [example for example in examples if example.id not in broken]
    if not good:
        raise HarvestError(
            f"none of the {len(examples)} clips can be read; first: {next(iter(broken.items()))}"
        )
    if broken:
        say(
            f"{len(broken)} of {len(examples)} clips cannot be read; first: {': '.join(next(iter(broken.items())))}"
        )

    def loaded(rows: Sequence[Example], decoder: Decoder = "pyav") -> Callable[[int], Any]:
        config = DataConfig(num_frames=frames, workers=0, decoder=decoder)
        clips = ClipDataset(rows, config, image_size=image_size, encode_text=None, seed=0)
        return lambda number: clips[[divmod(number, len(clips))]]

    def whole(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return read_whole(
            good[number % len(good)], num_frames=frames, image_size=image_size, generator=generator
        )

    mb = sum(os.path.getsize(example.video) for example in good) / len(good) / 1e6
    ways = [_Way("files, read whole", whole, mb), _Way("files, by seeking", loaded(good), mb)]
    for name, decoder in _FURTHER.items():
        with suppress(HarvestError):  # not here
            ways.append(_Way(f"files, by {name}", loaded(good, decoder), mb))
    for name in asked:
        shards = read_shards(str(packed / name))
        size = sum(os.path.getsize(shard) for shard in shards.shards) / len(shards) / 1e6
        ways.append(_Way(f"shards of {name}", loaded(shards), size))
    with bar("reading, seconds") as progress:
        _take_turns(ways, seconds=seconds, progress=progress)
    slowest = ways[0].clips / ways[0].cpu_s
    rows = tuple(
        ReadRate(
            way=way.name,
            clips=way.clips,
            clips_per_s=way.clips / way.cpu_s,
            frames_per_s=frames * way.clips / way.cpu_s,
            wall_clips_per_s=way.clips / way.wall_s,
            mb_per_clip=way.mb_per_clip,
            speedup=way.clips / way.cpu_s / slowest,
        )
        for way in ways
    )
    settings: dict[str, object] = {
        "clips": len(good),
        "frames": frames,
        "image_size": image_size,
        "short_side": short_side,
        "seconds": seconds,
    }
    return DataBench(settings, describe_machine(torch.device("cpu")), rows)


def _take_turns(ways: Sequence[_Way], *, seconds: float, progress: OnProgress) -> None:
    """A clip each, until every way had `seconds` of processor time; who has had least goes next."""
    for way in ways:
        way.turn()
    while True:
        way = min(ways, key=lambda w: w.cpu_s)
        if way.cpu_s >= seconds:
            return
        way.turn()
        progress(round(sum(min(w.cpu_s, seconds) for w in ways)), round(seconds * len(ways)))


def read_whole(
    example: Example, *, num_frames: int, image_size: int, generator: torch.Generator | None
) -> Tensor:
    """A plain reader: every frame decoded, from the first to the last; those shown at the drawn times are scaled.

    Returns uint8 `[T, 3, S, S]`.
    """
    pictures: list[np.ndarray] = []
    with av.open(example.video, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        ticks = stream.time_base or 1
        start = stream.start_time or 0
        length_s = float((stream.duration or 0) * ticks) or (container.duration or 0) / 1e6
        end_s = length_s if example.end_s is None else example.end_s
        times = segment_times(example.start_s, end_s, num_frames=num_frames, generator=generator).tolist()
        before: Any = None
        for frame in container.decode(stream):
            shown_s = float(((frame.pts or 0) - start) * ticks)
            while before is not None and len(pictures) < num_frames and times[len(pictures)] < shown_s:
                pictures.append(_scaled(before, image_size))
            before = frame
        while before is not None and len(pictures) < num_frames:
            pictures.append(_scaled(before, image_size))
    if not pictures:
        raise HarvestError(f"video {example.video}: it has no frames")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _scaled(frame: Any, image_size: int) -> np.ndarray:
    ratio = image_size / min(frame.width, frame.height)
    width, height = (max(image_size, round(side * ratio)) for side in (frame.width, frame.height))
    picture: np.ndarray = frame.reformat(
        width, height, "rgb24", interpolation=Interpolation.BICUBIC
    ).to_ndarray()
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return picture[top : top + image_size, left : left + image_size]


def draw_clips(
    folder: Path, count: int, *, size: tuple[int, int], progress: OnProgress = lambda done, of: None
) -> list[Example]:
    """So many films of a camera that sways over a textured ground with three things moving on it, and some noise."""
    if count < 1 or min(size) < 64 or size[0] % 2 or size[1] % 2:
        raise HarvestError(
            f"bench data: expected at least 1 clip of even sides from 64 on, got {count} of {size[0]} x {size[1]}"
        )
    examples = []
    for number in range(count):
        path = folder / f"clip-{number}.mp4"
        write_video(path, _film(number, *size), fps=_FPS, crf=23, key_every=_KEY_EVERY)
        examples.append(Example(path.stem, str(path)))
        progress(number + 1, count)
    return examples


def _film(number: int, width: int, height: int) -> Tensor:
    """uint8 `[T, 3, H, W]`."""
    generator = torch.Generator().manual_seed(number)
    ground_h, ground_w = height + height // 4, width + width // 4

    def texture(grain: int) -> Tensor:
        coarse = torch.rand(1, 3, ground_h // grain, ground_w // grain, generator=generator)
        return F.interpolate(coarse, size=(ground_h, ground_w), mode="bilinear")[0]

    ground = 255 * (0.75 * texture(16) + 0.25 * texture(4))
    film = torch.empty(_FPS * _SECONDS, 3, height, width, dtype=torch.uint8)
    side = height // 9
    for t, picture in enumerate(film):
        top = round((ground_h - height) * (0.5 + 0.45 * math.sin(t / 40 + number)))
        left = round((ground_w - width) * (0.5 + 0.45 * math.cos(t / 31 + number)))
        seen = ground[:, top : top + height, left : left + width].clone()
        for thing in range(3):
            y = round((height - side) * (0.5 + 0.4 * math.sin(t / (15 + 7 * thing) + thing)))
            x = round((width - side) * (0.5 + 0.4 * math.cos(t / (20 + 5 * thing) + 2 * thing)))
            seen[:, y : y + side, x : x + side] = torch.tensor([85.0 * thing, 255 - 85.0 * thing, 127.0])[
                :, None, None
            ]
        seen += 2.5 * torch.randn(seen.shape, generator=generator)
        picture.copy_(seen.clamp_(0, 255))
    return film


# ---- waiting -----------------------------------------------------------------------------------------------------


def measure_waiting(
    shards: Path,
    model: Size,
    *,
    drop_ratio: float = 0.9,
    batch: int | None = None,
    frames: int = 8,
    workers: int = 1,
    seconds: float = 60.0,
) -> Waiting:
    """Train a model of random weights from shards, on random captions, and watch the clock."""
    if workers < 0 or seconds <= 0:
        raise HarvestError(
            f"bench data: expected workers of at least 0, more than 0 seconds, got {workers}, {seconds}"
        )
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = model_config(model, frames=frames)
    batch = batch or default_batch(drop_ratio, place, model)
    dataset = ClipDataset(
        read_shards(str(shards)),
        DataConfig(num_frames=frames, workers=workers),
        image_size=config.video.image_size,
        encode_text=None,
        seed=0,
    )
    batches = iter(TrainLoader(dataset, batch, device=place))
    step = make_stepper(make_objective(config, cache_texts=False, plain=False).to(place), "bf16", place)
    said = random_batch(config, batch, _WORDS, place)
    steps, waited_s, total_s = -2, 0.0, 0.0  # two to warm up
    with bar("training, seconds") as progress:
        while steps < 2 or total_s < seconds:
            before = time.perf_counter()
            video = next(batches).video.to(place, non_blocking=True)
            got = time.perf_counter()
            step(said._replace(video=video), Selection(drop_ratio), steps + 2)
            if steps >= 0:
                waited_s += got - before
                total_s += time.perf_counter() - before
                progress(round(min(total_s, seconds)), round(seconds))
            steps += 1
    return Waiting(
        model=model,
        drop_ratio=drop_ratio,
        batch=batch,
        workers=workers,
        threads=torch.get_num_threads(),
        steps=steps,
        clips_per_s=steps * batch / total_s,
        share=waited_s / total_s,
    )


# ---- what is told ------------------------------------------------------------------------------------------------


def print_result(result: DataBench) -> None:
    """Settings, machine and a table."""
    print(", ".join(f"{key} {value}" for key, value in result.settings.items()))
    print(", ".join(str(value) for value in result.machine.values()))
    cells = [
        (
            row.way,
            str(row.clips),
            f"{row.clips_per_s:.1f}",
            f"{row.frames_per_s:.0f}",
            f"{row.wall_clips_per_s:.1f}",
            f"{row.mb_per_clip:.2f}",
            f"{row.speedup:.1f}",
        )
        for row in result.rows
    ]
    print("a second is one of processor time, on one core")
    print_table(("way", "clips", "clips/s", "frames/s", "by clock", "MB/clip", "times"), cells)
    if (w := result.waiting) is not None:
        print(
            f"training {w.model} at {w.drop_ratio:.0%} dropped, {w.batch} clips a step, {w.threads} threads beside"
            f" {w.workers} workers: {w.clips_per_s:.2f} clips/s, {w.share:.1%} of the time waiting for data"
            f" ({w.steps} steps)"
        )
