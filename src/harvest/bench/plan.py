"""`harvest plan`: what a run will need of a machine, before it is started.

Memory, clips a second and hours are arithmetic from the recipe's sizes; this machine is looked at for what arithmetic
cannot know: how fast it multiplies, copies and decodes, and how long a step really takes. Every line says which.

Symbols: MAC = one multiply and add = 2 FLOP; K kept tubelets; a stage is a part of the run with one way of seeing.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from harvest.bench.ceiling import copy_gb_per_s, matmul_gflop_per_s
from harvest.bench.host import Line, Probe, Source, Stage, day_lines, host_lines, time_text
from harvest.bench.step import (
    describe_machine,
    make_objective,
    make_stepper,
    model_config,
    num_seen,
    print_table,
)
from harvest.bench.work import KNOWN, OPTIONS, gflop_of, reading_of, teacher_of
from harvest.config import RunConfig, StartConfig, from_dict
from harvest.interfaces import Example, Grid, HarvestError
from harvest.model.importing.sources import find_local
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.contract import WORDS, Reading
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.reach import random_batch
from harvest.recipes import RECIPES
from harvest.settings import read_json
from harvest.tokens import Selection, budget_of


@dataclass(frozen=True)
class Gpu:
    """Data-sheet figures of a device."""

    bf16_tflops: float
    """Dense matrix products, fp32 accumulation, without sparsity."""
    memory_gb: float


GPUS: Mapping[str, Gpu] = {
    "b200": Gpu(2250, 180),
    "h200": Gpu(989, 141),
    "h100": Gpu(989, 80),
    "a100": Gpu(312, 80),
    "a100-40": Gpu(312, 40),
    "l40s": Gpu(362, 48),
    "rtx6000-ada": Gpu(364, 48),
    "rtx4090": Gpu(165, 24),
    "rtx3090": Gpu(71, 24),
    "a10": Gpu(125, 24),
    "l4": Gpu(121, 24),
}

UTILISATION = 0.3
"""Share of a peak that a step is assumed to reach where none was timed: a transformer of this size, not compiled."""

BYTES_A_TOKEN = 39
"""Bytes that a block keeps of each token and channel for the backward pass, under bf16 autocast: what
autograd saves, measured (`tests/bench/test_plan.py` measures it again)."""

BYTES_A_WORD = 54
"""The same of a fusion block, whose words look at about three tubelets each."""

OVERHEAD_GB = 1.5
"""Assumed for the device's context, workspaces and fragments."""


@dataclass(frozen=True)
class Plan:
    recipe: str
    gpus: int
    gpu: str
    probe: Probe
    stages: tuple[Stage, ...]
    hours: float
    lines: tuple[Line, ...]


# ---- the model of a recipe ---------------------------------------------------------------------------------------

_BERTS = {
    "bert-base-uncased": {"depth": 12, "width": 768, "num_heads": 12, "mlp_width": 3072},
    "bert-large-uncased": {"depth": 24, "width": 1024, "num_heads": 16, "mlp_width": 4096},
}
_MADE_BY = {"demo": "mini-harvest"}
"""Runs that are named otherwise than their recipes."""


def sizes_of(config: RunConfig) -> ModelConfig:
    """Sizes of the model that a recipe trains, without its weights; HarvestError where its start is not known here."""
    sizes, needs = _start_sizes(config), config.objective.needs
    frames = 1 if needs.stills else config.data.num_frames
    sizes = dataclasses.replace(sizes, video=dataclasses.replace(sizes.video, num_frames=frames))
    if needs.second_stage and sizes.text is None:
        sizes = _joined(sizes, config.start)
    if needs.matching and sizes.fusion is not None:
        sizes = dataclasses.replace(sizes, fusion=dataclasses.replace(sizes.fusion, matches=True))
    if needs.answers and sizes.fusion is not None:
        says = dataclasses.replace(sizes.fusion, fills_words=True, matches=False)
        sizes = dataclasses.replace(sizes, answers=says)
    return sizes


def _start_sizes(config: RunConfig) -> ModelConfig:
    """Of what a run starts from."""
    start = config.start
    if start.scratch is not None:
        return start.scratch
    if start.model in KNOWN:
        known = model_config(
            KNOWN[start.model],
            frames=config.data.num_frames,
            tubelet_size=start.tubelet_size,
        )
        return dataclasses.replace(known, fusion=start.fusion)
    written = find_local(start.model) / "config.json"
    if written.is_file():
        values = read_json(written)
        if isinstance(values.get("model"), dict):
            return from_dict(ModelConfig, values["model"], where=str(written))  # type: ignore[no-any-return]
    path = Path(start.model)
    name = path.parent.name if path.name == "model" else path.name
    name = _MADE_BY.get(name, name)
    if name in RECIPES and name != config.recipe:  # a run of another recipe, which need not be there yet
        return sizes_of(RECIPES[name]())
    raise HarvestError(
        f"plan does not know the sizes of {start.model!r}; it knows {', '.join(KNOWN)}, models from scratch, folders of"
        " Harvest models, and runs of recipes. Give one of the same size with --start.model"
    )


def _joined(tower: ModelConfig, start: StartConfig) -> ModelConfig:
    """A tower without a text tower, joined to the text tower that `start.text` names (`model.joining.join`)."""
    fusion = start.fusion
    if start.text is None or fusion is None:
        raise HarvestError(f"{start.model} has no text tower: give start.text and start.fusion")
    if start.text == "scratch" and start.scratch_text is not None:
        text = start.scratch_text
    elif start.text in KNOWN:
        text = model_config(KNOWN[start.text], frames=1).text_tower
    elif start.text in _BERTS:
        bert = _BERTS[start.text]
        text = TextEncoderConfig(
            vocab_size=30_522,
            context_length=512,
            norms="after",
            causal=False,
            mask_id=103,
            embed_dim=start.embed_dim,
            **bert | {"depth": bert["depth"] - fusion.depth},  # type: ignore[arg-type]
        )
    else:
        raise HarvestError(
            f"plan does not know the sizes of the text tower {start.text!r}; it knows {', '.join([*_BERTS, *KNOWN])} and"
            " scratch: give one of the same size with --start.text"
        )
    video = dataclasses.replace(
        tower.video, projection=True, projection_bias=True, embed_dim=text.embed_dim, pooled_norm=True
    )
    return dataclasses.replace(tower, video=video, text=text, fusion=fusion)


def _kept(config: RunConfig, sizes: ModelConfig, selection: Selection) -> int:
    video = sizes.video
    grid = Grid(video.num_times, video.num_patches, video.tubelet_size, video.patch_size)
    return budget_of(selection, grid)


@dataclass(frozen=True)
class Memory:
    """Gigabytes of a device: whatever the batch, and for each clip of its share."""

    fixed_gb: float
    clip_gb: float
    most_clips: int | None = None
    """No more clips than these are computed at a time (objective.chunk_clips)."""

    def at(self, clips: int) -> float:
        return self.fixed_gb + self.clip_gb * min(clips, self.most_clips or clips)

    def largest_batch(self, memory_gb: float) -> int | None:
        """Clips that fit, 0 where not one does; None where any number does."""
        room = memory_gb - self.fixed_gb
        if self.most_clips is not None and self.clip_gb * self.most_clips <= room:
            return None
        return max(0, int(room / self.clip_gb))


def memory_of(config: RunConfig, sizes: ModelConfig, kept: int, *, gpus: int) -> Memory:
    """By formula: weights, gradients, moments and buckets in fp32, copies of weights in 16 bits, and what blocks keep."""
    objective, video = config.objective, sizes.video
    with torch.device("meta"):
        model = VideoTextModel(sizes)
    weights = sum(p.numel() for p in model.parameters())
    frozen = 0
    if getattr(objective, "text_tower", None) == "frozen":
        frozen = sum(p.numel() for p in model.text.parameters())
    trained = weights - frozen
    buckets = 4 if gpus > 1 and config.loop.parallel == "ddp" else 0
    average = 4 if config.loop.average_decay is not None else 0
    state: float = 4 * weights + (4 + 8 + buckets + average) * trained
    if config.loop.parallel == "fsdp":
        state = state / gpus
    state += (0 if config.loop.precision == "fp32" else 2) * trained
    teacher = teacher_of(objective) if isinstance(objective, MaskedAlignmentConfig) else None
    if teacher is not None:
        with torch.device("meta"):
            state += 4 * sum(p.numel() for p in VideoTextModel(teacher).video.parameters())
    wide = 2 if config.loop.precision == "fp32" else 1
    tokens = num_seen(video, kept)
    block = wide * BYTES_A_TOKEN * tokens * video.width
    blocks = block * video.depth
    if config.loop.checkpointing:  # the input of each, and all of the one that is computed again
        blocks = 4 * tokens * video.width * video.depth + block
    pixels = (
        video.num_frames * 3 * video.image_size**2 + 6 * kept * video.tubelet_size * 3 * video.patch_size**2
    )
    words, reading = 0.0, reading_of(config, sizes)
    if reading.kept:
        words += wide * BYTES_A_TOKEN * reading.kept * WORDS * sizes.text_tower.width * sizes.text_tower.depth
    if reading.fused and sizes.fusion is not None:
        text, deep = sizes.text_tower, sizes.fusion.depth * reading.fused
        further = max(0, kept - 3 * WORDS)  # tubelets beyond those, of which keys and values are kept
        words += wide * deep * text.width * (BYTES_A_WORD * WORDS + 4 * further)
        words += 10 * reading.hidden * text.vocab_size
    chunk = getattr(objective, "chunk_clips", 0) or None
    return Memory(state / 1e9 + OVERHEAD_GB, (blocks + pixels + words) / 1e9, chunk)


# ---- looking at this machine -------------------------------------------------------------------------------------


def probe(config: RunConfig, *, data: str | None = None, seconds: float = 30.0) -> Probe:
    """Measure this machine's products and copies, how fast it decodes, and a real step where that is affordable.

    `data` is a manifest or shards whose clips are decoded; without it a clip is drawn and written first. A step is timed
    for post-pretraining alone, where a few clips take less than a third of `seconds`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, selection = sizes_of(config), config.selection_at(0)
    kept = _kept(config, sizes, selection)
    video = sizes.video
    precision = config.loop.precision
    products = matmul_gflop_per_s(16 * kept, video.width, video.mlp_width, precision=precision, device=device)
    step = None
    clips = 32 if device.type == "cuda" else 4
    affordable = 4 * clips * gflop_of(config, sizes, kept) / products < seconds / 3
    if isinstance(config.objective, PostPretrainingConfig) and sizes.fusion is not None and affordable:
        step = _step_gflop_per_s(config, sizes, kept, clips, device, seconds / 3)
    rate, decoded = _decode(config, data, image_size=video.image_size, seconds=seconds / 3)
    return Probe(
        device=str(describe_machine(device)["device"]),
        matmul_gflop_per_s=products,
        copy_gb_per_s=copy_gb_per_s(device),
        decode_clips_per_s=rate,
        decoded=decoded,
        step_gflop_per_s=step,
        memory_gb=torch.cuda.get_device_properties(device).total_memory / 1e9
        if device.type == "cuda"
        else None,
    )


def _step_gflop_per_s(
    config: RunConfig, sizes: ModelConfig, kept: int, clips: int, device: torch.device, seconds: float
) -> float:
    objective = make_objective(sizes, cache_texts=False, plain=False).to(device)
    step = make_stepper(objective, config.loop.precision, device)
    batch = random_batch(sizes, clips, min(WORDS, sizes.text_tower.context_length), device)
    took: list[float] = []
    step(batch, config.selection_at(0), 0)  # allocations
    while len(took) < 2 or sum(took) < seconds:
        took.append(step(batch, config.selection_at(0), len(took)))
    plain = dataclasses.replace(
        config,
        objective=PostPretrainingConfig(),
        loop=dataclasses.replace(config.loop, checkpointing=False),
    )
    return clips * gflop_of(plain, sizes, kept) / sorted(took)[len(took) // 2]


def _decode(
    config: RunConfig, data: str | None, *, image_size: int, seconds: float
) -> tuple[float | None, str]:
    """Clips a second of a core that decodes, as a loader worker does, and what it decoded.

    By processor time, since other work on this machine is none of the run's.
    """
    try:  # a machine that only trains has no video libraries
        from harvest.bench.data import draw_clips
        from harvest.data.dataset import ClipDataset
        from harvest.data.manifest import read_manifest
        from harvest.data.shards import are_shards, read_shards
    except ImportError as error:
        return None, f"nothing: {error}"
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            decoded = "a drawn clip of 10 s, 640 x 360, H.264"
            rows: Sequence[Example] = draw_clips(Path(folder), 1, size=(640, 360))
        elif are_shards(data):
            decoded, rows = data, read_shards(data)
        else:
            videos = Path(config.data.videos) if config.data.videos else None
            decoded, rows = data, read_manifest(Path(data), videos=videos, captions_required=False)
        settings = dataclasses.replace(config.data, cache="none", views_per_clip=1, captions_per_clip=1)
        clips = ClipDataset(rows, settings, image_size=image_size, encode_text=None, seed=config.loop.seed)
        read, tried, before, busy = 0, 0, time.perf_counter(), time.process_time()
        while tried < 3 or (time.perf_counter() - before < seconds and tried < 200):
            found = clips[[(tried // len(clips), tried % len(clips))]]
            read, tried = read + (found.batch is not None), tried + 1
        return (read / (time.process_time() - busy) or None), decoded


# ---- what follows ------------------------------------------------------------------------------------------------


def plan(config: RunConfig, found: Probe, *, gpus: int, gpu: str | None) -> Plan:
    """What the run will take on `gpus` devices: a `gpu` of the table, or, where that is None, this machine's."""
    check_devices(gpus, gpu)
    lines: list[Line] = []
    if gpu is not None:
        device, memory_gb = gpu, GPUS[gpu].memory_gb
        gflop_per_s = UTILISATION * GPUS[gpu].bf16_tflops * 1e3
        lines.append(Line(f"{gpu}: bf16 products", f"{GPUS[gpu].bf16_tflops:g} TFLOP/s", "data sheet"))
        lines.append(Line("share of it that a step reaches", f"{100 * UTILISATION:.0f} %", "assumed"))
    else:
        device, memory_gb = found.device, found.memory_gb or _memory_gb()
        gflop_per_s = found.step_gflop_per_s or UTILISATION * found.matmul_gflop_per_s
        if found.step_gflop_per_s is None:
            lines.append(
                Line("share of its products that a step reaches", f"{100 * UTILISATION:.0f} %", "assumed")
            )
    lines.append(Line("memory of a device", f"{memory_gb:.0f} GB", "data sheet" if gpu else "measured"))
    lines += _lines(found)
    lines += _assumed(config)
    stages = tuple(
        _stage(
            config,
            found,
            name,
            selection,
            steps,
            batch,
            gflop_per_s=gflop_per_s,
            gpus=gpus,
            memory_gb=memory_gb,
        )
        for name, selection, steps, batch in _stages(config)
    )
    hours = sum(stage.hours for stage in stages)
    lines += host_lines(config, sizes_of(config), stages, gpus)
    for stage in stages:
        lines += _told(stage, config, gpus)
    lines.append(Line("the whole run", time_text(hours), "formula"))
    lines[:0] = day_lines(config, found, stages, hours, gpus)
    return Plan(config.recipe, gpus, device, found, stages, hours, tuple(lines))


def check_devices(gpus: int, gpu: str | None) -> None:
    """HarvestError for none, or for one that the table does not have."""
    if gpus < 1:
        raise HarvestError(f"--gpus: expected at least 1, got {gpus}")
    if gpu is not None and gpu not in GPUS:
        raise HarvestError(f"--gpu {gpu}: the table has {', '.join(GPUS)}; without it this machine is taken")


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _stages(config: RunConfig) -> list[tuple[str, Selection, int, int]]:
    loop, tuning = config.loop, config.tuning
    parts = [("main", config.selection_at(0), loop.steps, loop.global_batch)]
    if tuning.steps:
        last = config.selection_at(loop.steps)
        parts.append(("tuning", last, tuning.steps, tuning.global_batch or loop.global_batch))
    return parts


def _stage(
    config: RunConfig,
    found: Probe,
    name: str,
    selection: Selection,
    steps: int,
    global_batch: int,
    *,
    gflop_per_s: float,
    gpus: int,
    memory_gb: float,
) -> Stage:
    sizes = sizes_of(config)
    kept = _kept(config, sizes, selection)
    gflop = gflop_of(config, sizes, kept)
    computed = gpus * gflop_per_s / gflop
    memory = memory_of(config, sizes, kept, gpus=gpus)
    rate, decode = computed, found.decode_clips_per_s
    workers: int | None = None
    bound: Literal["compute", "decode", "unknown"] = "unknown"
    if config.data.cache == "memory":
        workers, bound = 0, "compute"  # each clip is decoded once
    elif decode is not None:
        workers = -int(-computed // (decode * gpus))
        read = decode * gpus * max(1, config.data.workers)
        rate, bound = min(computed, read), "compute" if read >= computed else "decode"
    return Stage(
        name=name,
        steps=steps,
        global_batch=global_batch,
        kept=kept,
        gflop_per_clip=gflop,
        clips_per_s=computed,
        hours=steps * global_batch / rate / 3600,
        memory_gb=memory.at(-(-global_batch // gpus)),
        largest_batch=memory.largest_batch(memory_gb),
        workers=workers,
        bound=bound,
    )


def _assumed(config: RunConfig) -> list[Line]:
    """What the arithmetic takes for granted of the data."""
    lines = []
    if reading_of(config, sizes_of(config)) != Reading():
        lines.append(Line("words of a text", str(WORDS), "assumed"))
        if config.data.captions_per_clip == 0:
            lines.append(Line("options of a question", str(OPTIONS), "assumed"))
    if config.data.images:
        lines.append(Line("steps that show pictures", "they cost what clips cost", "assumed"))
    return lines


# ---- what is told ------------------------------------------------------------------------------------------------


def _lines(found: Probe) -> list[Line]:
    lines = [
        Line(f"{found.device}: products", f"{found.matmul_gflop_per_s:,.0f} GFLOP/s", "measured"),
        Line("its copies in memory", f"{found.copy_gb_per_s:,.0f} GB/s", "measured"),
    ]
    if found.step_gflop_per_s is not None:
        lines.append(Line("its rate in a real step", f"{found.step_gflop_per_s:,.0f} GFLOP/s", "measured"))
    if found.decode_clips_per_s is not None:
        what = f"decoding on one core: {found.decoded}"
        lines.append(Line(what, f"{found.decode_clips_per_s:.1f} clips/s", "measured"))
    return lines


def _told(stage: Stage, config: RunConfig, gpus: int) -> list[Line]:
    def line(what: str, figure: str, source: Source = "formula") -> Line:
        return Line(f"{stage.name}: {what}", figure, source)

    lines = [
        line("steps, clips a step", f"{stage.steps:,}, {stage.global_batch:,}", "recipe"),
        line("tubelets seen of a clip", f"{stage.kept:,}"),
        line("work of a clip", f"{stage.gflop_per_clip:,.0f} GFLOP"),
        line("all devices compute", f"{stage.clips_per_s:,.1f} clips/s"),
        line("memory of a device", f"{stage.memory_gb:.1f} GB"),
        line("largest batch of a device", _batch(stage, config, gpus)),
    ]
    if stage.workers is not None:
        lines.append(line("loader workers a device needs, on cores like this one's", f"{stage.workers:,}"))
    if stage.bound == "decode":
        needed = f"decoding, with data.workers {config.data.workers}: raise it, or pack the clips (harvest prepare)"
        lines.append(line("bound by", needed))
    elif stage.bound == "compute":
        lines.append(line("bound by", "computing"))
    lines.append(line("time", time_text(stage.hours)))
    return lines


def _batch(stage: Stage, config: RunConfig, gpus: int) -> str:
    if stage.largest_batch is None:
        return "any: objective.chunk_clips bounds what is computed at a time"
    share = -(-stage.global_batch // gpus)
    if stage.largest_batch >= share:
        return f"{stage.largest_batch:,} clips; its share is {share:,}"
    ways = ["more devices"]
    if hasattr(config.objective, "chunk_clips") and stage.largest_batch:
        ways.insert(0, f"--objective.chunk-clips {stage.largest_batch}")
    if not config.loop.checkpointing:
        ways.append("--loop.checkpointing")
    return f"{stage.largest_batch:,} clips, and its share is {share:,}: {', or '.join(ways)}"


def print_plan(made: Plan) -> None:
    """A table with a source for every line."""
    print(f"{made.recipe} on {made.gpus} x {made.gpu}")
    print_table(("what", "figure", "source"), [(line.what, line.figure, line.source) for line in made.lines])
