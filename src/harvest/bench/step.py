"""`harvest bench step`: how fast this machine trains, with and without dropping patches.

The real model and the real objective on random clips: whole steps, forward, backward and optimizer, without
decoding. Variants take turns in one run, so that whatever else the machine does hits them alike.

Symbols in the cost formulas: N tubelets seen, D width, L layers, n words; MAC = one multiply and add = 2 FLOP.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harvest.bench.ceiling import matmul_gflop_per_s, wait_for
from harvest.bench.trace import Traced, cells_of, trace_steps
from harvest.files import write_file
from harvest.interfaces import Batch, HarvestError
from harvest.machine import cpu_name, keep_memory
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel, compile_blocks
from harvest.objectives.post_pretraining import PostPretraining, PostPretrainingConfig
from harvest.objectives.reach import random_batch
from harvest.objectives.text_store import encode_texts
from harvest.parallel import Precision
from harvest.progress import bar
from harvest.tokens import Selection, num_kept
from harvest.training.optim import OptimConfig, build_optimizer
from harvest.training.step import OptimizerStep

Size = Literal["b16", "l14", "mini"]
Stepper = Callable[[Batch, Selection, int], float]
"""One training step on a batch, seeing what a selection says, with its number: its seconds."""

_B16 = VideoEncoderConfig()
_SIZES: dict[Size, tuple[VideoEncoderConfig, TextEncoderConfig, FusionConfig]] = {
    "b16": (_B16, TextEncoderConfig(), FusionConfig(4, 8)),
    "l14": (
        dataclasses.replace(
            _B16, patch_size=14, width=1024, depth=24, num_heads=16, mlp_width=4096, embed_dim=768
        ),
        TextEncoderConfig(width=768, num_heads=12, mlp_width=3072, embed_dim=768),
        FusionConfig(4, 12),
    ),
    "mini": (
        dataclasses.replace(
            _B16, tubelet_size=2, patch_size=8, width=128, depth=4, num_heads=4, mlp_width=512, embed_dim=128
        ),
        TextEncoderConfig(
            vocab_size=768,
            context_length=32,
            width=128,
            depth=3,
            num_heads=4,
            mlp_width=512,
            embed_dim=128,
            start_id=0,
            end_id=1,
            pad_id=2,
        ),
        FusionConfig(2, 4),
    ),
}


@dataclass(frozen=True)
class StepSettings:
    """What is measured, and how."""

    model: Size = "b16"
    """CLIP's ViT-B/16 or ViT-L/14, or the mini-world's model. Weights are random."""
    drop_ratios: tuple[float, ...] = (0.0, 0.9)
    """Shares of patches dropped, measured in turns in one run."""
    frames: int = 8
    """Frames a clip."""
    image_size: int | None = None
    """Side of a frame; 224, and 64 for mini."""
    batch: int | None = None
    """Clips a step, the same at every ratio. Without it about the same work: on a CPU 4 clips at 0 %, 40 at 90 %."""
    words: int = 32
    """Words a caption, start and end among them."""
    precision: Precision = "bf16"
    """bf16 autocast or fp32."""
    cache_texts: bool = False
    """Captions encoded before, as with objective.cache_texts."""
    compile: bool = False
    """Compile the transformer blocks."""
    checkpointing: bool = False
    """Recompute the video blocks' activations in the backward pass."""
    reference: bool = False
    """Also a plain reference of the same model: fp32, eager, every patch embedded and then dropped."""
    threads: int | None = None
    """Threads PyTorch computes with."""
    keep_memory: bool = True
    """On a CPU: what a step frees is kept for the next one, as in training."""
    seconds: float = 20.0
    """Time for each variant."""
    device: str | None = None
    """cuda where there is one, else cpu."""

    def __post_init__(self) -> None:
        if not self.drop_ratios or any(not 0 <= ratio < 1 for ratio in self.drop_ratios):
            raise HarvestError(
                f"drop_ratios: expected numbers of 0 or more and less than 1, got {self.drop_ratios}"
            )
        if (self.batch is not None and self.batch < 1) or self.seconds <= 0:
            raise HarvestError(
                f"expected a batch of at least 1 and more than 0 seconds, got {self.batch} and {self.seconds}"
            )


def step_command(
    settings: StepSettings,
    trace: Path | None = None,
    out: Path | None = None,
) -> None:
    """Clips a second of a training step, side by side for several drop ratios.

    $ harvest bench step
    $ harvest bench step --model l14 --drop-ratios 0 0.9 --batch 16 --cache-texts
    $ harvest bench step --reference --seconds 60 --out step.json

    Args:
        trace: Write a step of each to this file, for Perfetto or chrome://tracing, and print where their time goes.
        out: Write the result as JSON to this file.
    """
    if trace is not None and settings.compile:
        raise HarvestError("--trace sees the parts of blocks that are not compiled: leave out --compile")
    result = measure_steps(settings, trace=trace)
    print_result(result)
    if result.parts is not None:
        print_table(("part", *result.parts), cells_of(result.parts))
        print(f"written: {trace}")
    if out is not None:
        write_file(out, to_json(result))
        print(f"written: {out}")


@dataclass(frozen=True)
class StepTime:
    """One variant: steps of `batch` clips. Times are medians over `steps` measured ones."""

    variant: str
    """harvest or reference."""
    drop_ratio: float
    batch: int
    kept: int
    """Tubelets seen of each clip."""
    steps: int
    step_s: float
    fastest_step_s: float
    clips_per_s: float
    speedup: float | None
    """Clips a second over those of the same variant at 0 % drop; None where that was not measured."""
    gflop_per_clip: float
    """By formula: matrix products of the model, the backward pass counted twice the forward where it is computed."""
    gflop_per_s: float
    ceiling_gflop_per_s: float
    """Of matrix products alone, measured in the same run at the sizes of this variant's MLPs, in its precision."""
    mfu: float
    """Model FLOP utilisation: `gflop_per_s / ceiling_gflop_per_s`."""
    peak_gb: float | None
    """Most memory of the device in use during a step; None on a CPU, whose `machine` row has the process's."""


@dataclass(frozen=True)
class StepBench:
    settings: dict[str, object]
    machine: dict[str, object]
    rows: tuple[StepTime, ...]
    parts: dict[str, dict[str, float]] | None = None
    """Seconds of each part of a step, by variant, where a trace was asked for."""


def measure_steps(settings: StepSettings, *, trace: Path | None = None) -> StepBench:
    """Measure whole training steps of each drop ratio, variants in turns, `seconds` for each."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    config = model_config(settings.model, frames=settings.frames, image_size=settings.image_size)
    most = config.text_tower.context_length
    if not 3 <= settings.words <= most:
        raise HarvestError(f"words: expected 3 to {most}, got {settings.words}")
    place = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    variants: list[Variant] = []
    models: list[VideoTextModel] = []
    for name in ("harvest", "reference") if settings.reference else ("harvest",):
        plain = name == "reference"
        caches = settings.cache_texts and not plain
        objective = make_objective(config, cache_texts=caches, plain=plain).to(place)
        objective.model.video.checkpointing = settings.checkpointing and not plain
        if settings.compile and not plain:
            compile_blocks(objective.model)
        step = make_stepper(
            objective, "fp32" if plain else settings.precision, place, keeps_memory=settings.keep_memory
        )
        variants += [
            Variant(
                "reference" if plain else "harvest",
                Selection(ratio),
                step,
                random_batch(config, size, settings.words, place),
            )
            for ratio in settings.drop_ratios
            for size in [settings.batch or default_batch(ratio, place, settings.model)]
        ]
        models += [objective.model] * len(settings.drop_ratios)
    warm_up(variants)
    take_turns(variants, seconds=settings.seconds)
    parts = None
    if trace is not None:
        steps = [
            Traced(f"{v.name}, {v.selection.drop_ratio:.0%} dropped", model, v.run)
            for v, model in zip(variants, models, strict=True)
        ]
        parts = trace_steps(steps, trace, device=place)
    return StepBench(
        settings=dataclasses.asdict(settings) | {"image_size": config.video.image_size},
        machine=describe_machine(place) | {"peak resident GB": round(peak_resident_gb(), 2)},
        rows=_rows(
            variants,
            config,
            words=settings.words,
            cache_texts=settings.cache_texts,
            precision=settings.precision,
            place=place,
        ),
        parts=parts,
    )


def model_config(
    model: Size, *, frames: int, image_size: int | None = None, tubelet_size: int | None = None
) -> ModelConfig:
    """Sizes of a model; `tubelet_size` None is its own."""
    video, text, fusion = _SIZES[model]
    video = dataclasses.replace(video, tubelet_size=tubelet_size or video.tubelet_size)
    size = image_size or (64 if model == "mini" else 224)
    if size % video.patch_size or frames < 1:
        raise HarvestError(
            f"expected at least 1 frame and an image_size that is a multiple of {video.patch_size}, got {frames}, {size}"
        )
    return ModelConfig(dataclasses.replace(video, num_frames=frames, image_size=size), text, fusion)


def default_batch(drop_ratio: float, device: torch.device, model: Size = "b16") -> int:
    """About equal work a step at every ratio: 1 / (1 - ratio) times the clips of 0 %, which are 32 on a GPU, on a CPU
    4, and 2 of ViT-L/14, whose activations are then 6 GB."""
    clips = 32 if device.type == "cuda" else 2 if model == "l14" else 4
    return round(clips / (1 - drop_ratio))


# ---- what is measured --------------------------------------------------------------------------------------------


class _EmbedsAll(VideoEncoder):
    """The plain way: every patch is normalised and embedded, and the dropped ones are thrown away after."""

    def embed_tubelets(self, video: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens_BND, times_BN = super().embed_tubelets(video, None)
        if keep is None:
            return tokens_BND, times_BN
        return tokens_BND.gather(1, keep[..., None].expand(-1, -1, tokens_BND.shape[2])), times_BN.gather(
            1, keep
        )


def make_objective(config: ModelConfig, *, cache_texts: bool, plain: bool) -> PostPretraining:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VideoTextModel(config)
        if plain:
            video = _EmbedsAll(config.video)
            video.load_state_dict(model.video.state_dict())
            model.video = video
    return PostPretraining(PostPretrainingConfig(cache_texts=cache_texts), model, seed=0)


def make_stepper(
    objective: Any, precision: Precision, device: torch.device, *, keeps_memory: bool = True
) -> Stepper:
    """One training step as the loop does it; returns its seconds. On a CPU the process keeps what it frees from now on,
    as in training, unless it is told not to."""
    if keeps_memory and device.type == "cpu":
        keep_memory()
    optimizer = build_optimizer(objective, OptimConfig(lr=1e-6))
    take_step = OptimizerStep(objective.train(), optimizer, device, precision)
    stored: list[Tensor] = []  # the embeddings of the first captions, as a store has them

    def step(batch: Batch, selection: Selection, number: int) -> float:
        if getattr(objective.config, "cache_texts", False):
            if len(stored) < len(batch.caption):
                stored[:] = encode_texts(objective.model, batch.text_ids.flatten(0, 1))
            batch = batch._replace(
                stored=torch.stack(stored[: len(batch.caption)]).view(torch.uint8)[:, None]
            )
        objective.selection = selection
        wait_for(device)
        before = time.perf_counter()
        take_step(batch, number)
        wait_for(device)
        return time.perf_counter() - before

    return step


@dataclass
class Variant:
    """What takes turns with others: a step of some objective on some clips, seeing some of their tubelets."""

    name: str
    selection: Selection
    step: Stepper
    clips: Batch
    times: list[float] = field(default_factory=list)
    peak_gb: float | None = None

    def run(self) -> None:
        device = self.clips.video.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.times.append(self.step(self.clips, self.selection, len(self.times)))
        if device.type == "cuda":
            self.peak_gb = max(self.peak_gb or 0.0, torch.cuda.max_memory_allocated(device) / 1e9)


def warm_up(variants: Sequence[Variant]) -> None:
    """Run each twice: allocations, autotuning and compilation happen in the first."""
    with bar("warming up") as progress:
        for number, variant in enumerate(variants):
            progress(number, len(variants))
            variant.run()
            variant.run()
            variant.times.clear()


def take_turns(variants: Sequence[Variant], *, seconds: float) -> None:
    """Run every variant for `seconds`, at least twice. Turns are one step long: who has had least time goes next."""
    with bar("measuring, seconds") as progress:
        while True:
            behind = min(variants, key=lambda v: (len(v.times) >= 2, sum(v.times)))
            if len(behind.times) >= 2 and sum(behind.times) >= seconds:
                return
            behind.run()
            progress(round(sum(min(sum(v.times), seconds) for v in variants)), round(seconds * len(variants)))


# ---- what it costs by formula ------------------------------------------------------------------------------------


def step_gflop(
    config: ModelConfig, *, kept: int, words: int, text_mask_ratio: float = 0.15, cache_texts: bool = False
) -> float:
    """GFLOP of one clip's training step: video, frozen text, fusion and the head at hidden words.

    Matrix products alone: layer norms, softmax and activations are below 1 %. The backward pass costs twice the
    forward where weights are trained, once where it only passes through to the mask embedding.
    """
    video, text = config.video, config.text_tower
    patches, encoder = video_mac(video, kept)
    tower = text_mac(text, words)
    macs: float = 2 * patches + 3 * encoder  # the pixels need no gradient
    if not cache_texts:
        macs += tower
    macs += 2 * tower  # the masked caption: forward, and backward to the mask embedding
    if config.fusion is not None:
        macs += 3 * fusion_mac(config, kept=kept, words=words, text_mask_ratio=text_mask_ratio)
    return 2 * macs / 1e9


def video_mac(video: VideoEncoderConfig, kept: int) -> tuple[int, int]:
    """Forward MACs of a clip of which `kept` tubelets are seen: of the patch embedding, and of the blocks."""
    patches = kept * video.tubelet_size * 3 * video.patch_size**2 * video.width
    mlp_width = video.mlp_width * (3 if video.gated_mlp else 2) // 2  # a gate is a third matrix
    return patches, video.depth * block_mac(num_seen(video, kept), video.width, mlp_width)


def num_seen(video: VideoEncoderConfig, kept: int) -> int:
    """Tokens in the blocks: the kept tubelets and the prefix."""
    return kept + {"none": 0, "clip": 1, "frame": video.num_times}[video.prefix]


def text_mac(text: TextEncoderConfig, words: int) -> int:
    """Forward MACs of a caption."""
    return text.depth * block_mac(words, text.width, text.mlp_width)


def fusion_mac(config: ModelConfig, *, kept: int, words: int, text_mask_ratio: float) -> float:
    """Forward MACs of a caption that looks at a clip, and of the head at its hidden words."""
    if config.fusion is None:
        return 0.0
    text = config.text_tower
    body = fused_mac(config.fusion, text, context_width=config.video.width, context=kept, words=words)
    return body + max(1.0, text_mask_ratio * (words - 2)) * word_head_mac(text)


def fused_mac(
    fusion: FusionConfig, text: TextEncoderConfig, *, context_width: int, context: int, words: int
) -> int:
    """Forward MACs of words that look at each other and at `context` tokens, through all blocks of a fusion."""
    width, is_bert = text.width, fusion.layout == "bert"
    enter = 0 if is_bert else context * context_width * width + words * width**2
    seen_width = context_width if is_bert else width
    block = block_mac(words, width, text.mlp_width if is_bert else 4 * width)
    cross = 2 * words * width**2 + 2 * context * seen_width * width + 2 * words * context * width
    return enter + fusion.depth * (block + cross)


def word_head_mac(text: TextEncoderConfig) -> int:
    """Forward MACs of the head at one hidden word."""
    return text.width**2 + text.width * text.vocab_size


def block_mac(tokens: int, width: int, mlp_width: int) -> int:
    """Forward MACs of a transformer block."""
    return tokens * (4 * width**2 + 2 * width * mlp_width) + 2 * tokens**2 * width


def _rows(
    variants: list[Variant],
    config: ModelConfig,
    *,
    words: int,
    cache_texts: bool,
    precision: Precision,
    place: torch.device,
) -> tuple[StepTime, ...]:
    clips_per_s = {
        (v.name, v.selection.drop_ratio): len(v.clips.video) / statistics.median(v.times) for v in variants
    }
    num_tubelets = config.video.num_times * config.video.num_patches
    rows = []
    for v in variants:
        ratio, kept = v.selection.drop_ratio, num_kept(num_tubelets, v.selection.drop_ratio)
        gflop = step_gflop(config, kept=kept, words=words, cache_texts=cache_texts and v.name == "harvest")
        rate, whole = clips_per_s[v.name, ratio], clips_per_s.get((v.name, 0.0))
        ceiling = matmul_gflop_per_s(
            len(v.clips.video) * kept,
            config.video.width,
            config.video.mlp_width,
            precision="fp32" if v.name == "reference" else precision,
            device=place,
        )
        rows.append(
            StepTime(
                variant=v.name,
                drop_ratio=ratio,
                batch=len(v.clips.video),
                kept=kept,
                steps=len(v.times),
                step_s=statistics.median(v.times),
                fastest_step_s=min(v.times),
                clips_per_s=rate,
                speedup=rate / whole if whole else None,
                gflop_per_clip=gflop,
                gflop_per_s=gflop * rate,
                ceiling_gflop_per_s=ceiling,
                mfu=gflop * rate / ceiling,
                peak_gb=v.peak_gb,
            )
        )
    return tuple(rows)


# ---- what is told ------------------------------------------------------------------------------------------------


def to_json(result: StepBench) -> str:
    return json.dumps(dataclasses.asdict(result), indent=1)


def describe_machine(device: torch.device) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_resident_gb() -> float:
    """The most memory that this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on a Mac bytes
    return most / (1e9 if sys.platform == "darwin" else 1e6)


_HEADINGS = (
    "variant",
    "drop",
    "batch",
    "kept",
    "step",
    "clips/s",
    "speed-up",
    "GFLOP/clip",
    "GFLOP/s",
    "MFU",
    "memory",
)


def print_result(result: StepBench) -> None:
    """Settings, machine and a table."""
    cells = [
        (
            row.variant,
            f"{100 * row.drop_ratio:.0f} %",
            str(row.batch),
            str(row.kept),
            f"{1000 * row.step_s:.0f} ms",
            f"{row.clips_per_s:.2f}",
            f"{row.speedup:.1f} x" if row.speedup is not None else "",
            f"{row.gflop_per_clip:.1f}",
            f"{row.gflop_per_s:.0f}",
            f"{100 * row.mfu:.0f} %",
            f"{row.peak_gb:.1f} GB" if row.peak_gb is not None else "",
        )
        for row in result.rows
    ]
    title = ", ".join(str(value) for value in result.machine.values())
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    print(f"{settings}\n{title}")
    print_table(_HEADINGS, cells)


def print_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """By rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in (headings, *cells):
            print("  ".join(f"{cell:>10}" for cell in line))
        return
    table = Table(*headings)
    for line in cells:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:  # a file or a pipe is as wide as it has to be
        console = Console(width=200)
    console.print(table)
