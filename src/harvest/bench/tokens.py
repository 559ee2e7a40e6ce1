"""`harvest bench tokens`: ways of choosing tokens x budgets x batches x compile, as a table, JSON and a plot.

What is measured is a whole training step of the real objective, choosing included, on clips in which a quarter of the
side moves over a still background. How long choosing alone takes stands beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harvest.bench.ceiling import wait_for
from harvest.bench.step import (
    Size,
    Variant,
    describe_machine,
    make_objective,
    make_stepper,
    model_config,
    print_table,
    take_turns,
    warm_up,
)
from harvest.charts import log_lines
from harvest.files import write_file
from harvest.interfaces import Batch, HarvestError
from harvest.model.video_text import VideoTextModel, compile_blocks, own_attention
from harvest.objectives.reach import random_batch
from harvest.parallel import Precision, autocast, generator_for
from harvest.tokens import Selection, Selector, choose


def tokens_command(
    model: Size = "b16",
    selectors: tuple[Selector, ...] = ("random", "tube", "motion"),
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0),
    batches: tuple[int, ...] = (16,),
    frames: int = 8,
    image_size: int | None = None,
    precision: Precision = "bf16",
    compile: tuple[bool, ...] = (False,),
    threads: int | None = None,
    seconds: float = 5.0,
    device: str | None = None,
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Training steps by way of choosing tokens, budget and batch.

    $ harvest bench tokens --model mini --batches 128 --plot tokens.svg
    $ harvest bench tokens --selectors random motion --batches 32 64

    Args:
        model: CLIP's ViT-B/16 or ViT-L/14, or the mini-world's model. Weights are random.
        selectors: Ways of choosing.
        budgets: Shares of a clip's tubelets that are seen; 1 sees all.
        batches: Clips a step.
        frames: Frames a clip.
        image_size: Side of a frame; 224, and 64 for mini.
        precision: bf16 autocast or fp32.
        compile: Without and with compiled transformer blocks. Compiled, the table says what was compiled after warm-up.
        threads: Threads PyTorch computes with.
        seconds: Time for each combination.
        device: cuda where there is one, else cpu.
        out: Write the result as JSON to this file.
        plot: Draw clips a second over the budget, a line for each way, to this SVG file.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    result = measure_tokens(
        model,
        selectors=selectors,
        budgets=budgets,
        batches=batches,
        frames=frames,
        image_size=image_size,
        precision=precision,
        compile=compile,
        seconds=seconds,
        device=device,
    )
    print_result(result)
    if any(compile):
        print(f"graphs compiled after warm-up: {result.compiled_after_warm_up}")
    for path, text in ((out, json.dumps(dataclasses.asdict(result), indent=1)), (plot, _drawn(result))):
        if path is not None:
            write_file(path, text)
            print(f"written: {path}")


@dataclass(frozen=True)
class TokenTime:
    """One combination. Times are medians over `steps` measured steps."""

    selector: Selector
    budget: int
    """Tubelets seen of each clip."""
    share: float
    batch: int
    compiled: bool
    steps: int
    step_s: float
    clips_per_s: float
    choose_s: float
    """Choosing alone; 0 where all is seen."""
    choose_ratio: float
    """Of the step, which it is part of."""
    peak_gb: float | None
    """GPU memory of a step at its highest; None on a CPU."""


@dataclass(frozen=True)
class TokenBench:
    settings: dict[str, object]
    machine: dict[str, object]
    compiled_after_warm_up: int
    """Graphs that were compiled while steps were measured: 0 where a run that varies its budget never waits."""
    rows: tuple[TokenTime, ...]


def measure_tokens(
    model: Size,
    *,
    selectors: tuple[Selector, ...] = ("random", "tube", "motion"),
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0),
    batches: tuple[int, ...] = (16,),
    frames: int = 8,
    image_size: int | None = None,
    precision: Precision = "bf16",
    compile: tuple[bool, ...] = (False,),
    seconds: float = 5.0,
    device: str | None = None,
) -> TokenBench:
    """Measure every combination, in turns within one run; where all is seen, with the first way alone, for all see it."""
    if not selectors or not batches or not compile or any(batch < 1 for batch in batches) or seconds <= 0:
        raise HarvestError(
            "expected at least one of selectors, batches (of 1 or more) and compile, and some seconds"
        )
    if not budgets or any(not 0 < share <= 1 for share in budgets):
        raise HarvestError(f"budgets: expected shares of more than 0, at most 1, got {budgets}")
    config = model_config(model, frames=frames, image_size=image_size)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    N = config.video.num_times * config.video.num_patches
    variants: list[tuple[bool, Variant]] = []
    for compiled in compile:
        objective = make_objective(config, cache_texts=True, plain=False).to(place)
        if compiled:
            compile_blocks(objective.model)
        step = make_stepper(objective, precision, place)
        for batch in batches:
            clips = _moving(random_batch(config, batch, min(32, config.text_tower.context_length), place))
            for selector, share in itertools.product(selectors, budgets):
                if share == 1 and selector != selectors[0]:
                    continue
                selection = Selection(budget=max(1, round(share * N)), selector=selector)
                variants.append((compiled, Variant("harvest", selection, step, clips)))
    measured = [variant for _, variant in variants]
    warm_up(measured)
    before = _graphs()
    take_turns(measured, seconds=seconds)
    after = _graphs()
    rows = []
    for compiled, variant in variants:
        with autocast(place, precision):
            chosen = _choosing(objective.model, variant)
        step_s = statistics.median(variant.times)
        budget = variant.selection.budget or N
        rows.append(
            TokenTime(
                selector=variant.selection.selector,
                budget=budget,
                share=budget / N,
                batch=len(variant.clips.video),
                compiled=compiled,
                steps=len(variant.times),
                step_s=step_s,
                clips_per_s=len(variant.clips.video) / step_s,
                choose_s=chosen,
                choose_ratio=chosen / step_s,
                peak_gb=_peak_gb(variant, place),
            )
        )
    return TokenBench(
        settings={
            "model": model,
            "frames": frames,
            "image_size": config.video.image_size,
            "precision": precision,
            "seconds": seconds,
        },
        machine=describe_machine(place),
        compiled_after_warm_up=after - before,
        rows=tuple(rows),
    )


def _moving(batch: Batch) -> Batch:
    """Still clips in which a square of a quarter of the side moves to the right."""
    video = batch.video[:, :1].repeat(1, batch.video.shape[1], 1, 1, 1)
    T, side = video.shape[1], video.shape[-1]
    square = batch.video[:, -1, :, : side // 4, : side // 4]
    for time_ in range(T):
        left = (side - side // 4) * time_ // max(1, T - 1)
        video[:, time_, :, side // 3 : side // 3 + side // 4, left : left + side // 4] = square
    return batch._replace(video=video)


def _choosing(model: VideoTextModel, variant: Variant, *, times: int = 7) -> float:
    """Median seconds of choosing alone."""
    video, device = variant.clips.video, variant.clips.video.device

    def look() -> Tensor | None:
        return own_attention(model, video)

    taken = []
    for number in range(times):
        wait_for(device)
        before = time.perf_counter()
        choose(
            variant.selection, video, model.grid(video), generator=generator_for(0, number), attention_fn=look
        )
        wait_for(device)
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _peak_gb(variant: Variant, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    variant.step(variant.clips, variant.selection, 0)
    return torch.cuda.max_memory_allocated(device) / 1e9


_HEADINGS = ("selector", "kept", "batch", "compile", "step ms", "clips/s", "choose ms", "%", "GB")


def print_result(result: TokenBench) -> None:
    """Settings, machine and a table."""
    print(", ".join(f"{name} {value}" for name, value in result.settings.items()))
    print(", ".join(str(value) for value in result.machine.values()))
    print_table(_HEADINGS, [_cells(row) for row in result.rows])


def _cells(row: TokenTime) -> tuple[str, ...]:
    return (
        row.selector,
        f"{row.budget} ({row.share:.0%})",
        str(row.batch),
        "yes" if row.compiled else "no",
        f"{1000 * row.step_s:.1f}",
        f"{row.clips_per_s:.1f}",
        f"{1000 * row.choose_s:.2f}",
        f"{100 * row.choose_ratio:.1f}",
        f"{row.peak_gb:.1f}" if row.peak_gb is not None else "-",
    )


def _drawn(result: TokenBench) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    selectors = dict.fromkeys(row.selector for row in result.rows)
    for row in result.rows:
        for selector in selectors if row.share == 1 else (row.selector,):
            name = f"{selector}, {row.batch} clips{', compiled' if row.compiled else ''}"
            series.setdefault(name, []).append((100 * row.share, row.clips_per_s))
    return log_lines(
        {name: sorted(points) for name, points in series.items()},
        x_title="tubelets seen, %",
        y_title="clips a second",
    )
