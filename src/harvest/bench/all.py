"""`harvest bench all`: a machine in one page, computing, reading and choosing, each measured for a short time."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import torch

from harvest.bench import data, step, tokens
from harvest.bench.ceiling import copy_gb_per_s
from harvest.data.manifest import read_manifest
from harvest.parallel import Precision
from harvest.progress import bar


def all_command(
    model: step.Size = "b16",
    manifest: Path | None = None,
    videos: Path | None = None,
    drop_ratios: tuple[float, ...] = (0.0, 0.9),
    batch: int | None = None,
    frames: int = 8,
    precision: Precision = "bf16",
    compile: bool = False,
    workers: int = 1,
    threads: int | None = None,
    seconds: float = 10.0,
    out: Path | None = None,
) -> None:
    """The training step, reading clips, waiting for them in training, and choosing tokens, one after the other.

    $ harvest bench all --out machine.json
    $ harvest bench all --model mini --seconds 2

    Args:
        model: CLIP's ViT-B/16 or ViT-L/14, or the mini-world's model. Weights are random.
        manifest: Clips to read; without it some are drawn.
        videos: Folder that the manifest's paths are relative to.
        drop_ratios: Shares of patches dropped in the step; the last is trained with from packed clips.
        batch: Clips a step; without it about equal work at every ratio.
        frames: Frames a clip.
        precision: bf16 autocast or fp32.
        compile: Compile the transformer blocks.
        workers: Processes that decode for training.
        threads: Threads PyTorch computes with.
        seconds: Time for each variant of each part.
        out: Write the results as JSON to this file.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    found = measure_all(
        model,
        manifest=manifest,
        videos=videos,
        drop_ratios=drop_ratios,
        batch=batch,
        frames=frames,
        precision=precision,
        compile=compile,
        workers=workers,
        seconds=seconds,
    )
    print("The training step\n")
    step.print_result(found.step)
    print("\nReading clips\n")
    data.print_result(found.data)
    print("\nChoosing tokens\n")
    tokens.print_result(found.tokens)
    print(f"\nCopies in the device's memory: {found.copy_gb_per_s:.0f} GB/s")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(dataclasses.asdict(found), indent=1))
        print(f"written: {out}")


@dataclasses.dataclass(frozen=True)
class MachineBench:
    step: step.StepBench
    data: data.DataBench
    tokens: tokens.TokenBench
    copy_gb_per_s: float


def measure_all(
    model: step.Size,
    *,
    manifest: Path | None = None,
    videos: Path | None = None,
    drop_ratios: tuple[float, ...] = (0.0, 0.9),
    batch: int | None = None,
    frames: int = 8,
    precision: Precision = "bf16",
    compile: bool = False,
    workers: int = 1,
    seconds: float = 10.0,
) -> MachineBench:
    """Each part by its own measure, `seconds` for each of its variants."""
    stepped = step.measure_steps(
        step.StepSettings(
            model,
            drop_ratios=drop_ratios,
            frames=frames,
            batch=batch,
            precision=precision,
            compile=compile,
            seconds=seconds,
        )
    )
    side = step.model_config(model, frames=frames).video.image_size
    with tempfile.TemporaryDirectory(prefix="harvest-bench-") as name:
        folder = Path(name)
        if manifest is None:
            with bar("drawing clips") as progress:
                clips = data.draw_clips(folder, 4, size=(640, 360), progress=progress)
        else:
            rows = read_manifest(manifest, videos=videos, captions_required=False)
            clips = rows[:: max(1, len(rows) // 32)][:32]
        read = data.measure_data(clips, folder / "packed", frames=frames, image_size=side, seconds=seconds)
        waiting = data.measure_waiting(
            folder / "packed" / "video",
            model,
            drop_ratio=drop_ratios[-1],
            batch=batch,
            frames=frames,
            workers=workers,
            seconds=seconds,
        )
    chosen = tokens.measure_tokens(
        model,
        budgets=(0.1, 1.0),
        batches=(batch or 16,),
        frames=frames,
        precision=precision,
        compile=(compile,),
        seconds=seconds,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return MachineBench(stepped, dataclasses.replace(read, waiting=waiting), chosen, copy_gb_per_s(device))
