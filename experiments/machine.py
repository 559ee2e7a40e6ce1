"""A machine in one page, computing, reading and choosing, each measured for a short time: `python -m experiments.machine`."""

import dataclasses
import json
import tempfile
from pathlib import Path

import torch

from experiments import main
from harvest.bench import data, step, tokens
from harvest.bench.ceiling import copy_gb_per_s
from harvest.data.manifest import read_manifest
from harvest.files import write_file
from harvest.parallel import Precision
from harvest.progress import bar


@dataclasses.dataclass(frozen=True)
class MachineSettings:
    """What is measured, and how."""

    model: step.Size = "b16"
    """CLIP's ViT-B/16 or ViT-L/14, or the mini-world's model. Weights are random."""
    manifest: Path | None = None
    """Clips to read; without it some are drawn."""
    videos: Path | None = None
    """Folder that the manifest's paths are relative to."""
    drop_ratios: tuple[float, ...] = (0.0, 0.9)
    """Shares of patches dropped in the step; the last is trained with from packed clips."""
    batch: int | None = None
    """Clips a step; without it about equal work at every ratio."""
    frames: int = 8
    """Frames a clip."""
    precision: Precision = "bf16"
    """bf16 autocast or fp32."""
    compile: bool = False
    """Compile the transformer blocks."""
    workers: int = 1
    """Processes that decode for training."""
    threads: int | None = None
    """Threads PyTorch computes with."""
    seconds: float = 10.0
    """Time for each variant of each part."""


def machine(settings: MachineSettings, out: Path | None = None) -> None:
    """The training step, reading clips, waiting for them in training, and choosing tokens, one after the other.

    $ python -m experiments.machine --out machine.json
    $ python -m experiments.machine --model mini --seconds 2

    Args:
        out: Write the results as JSON to this file.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    print("The training step\n", flush=True)
    stepped = _measure_step(settings)
    step.print_result(stepped)
    print("\nReading clips\n", flush=True)
    read = _measure_data(settings)
    data.print_result(read)
    print("\nChoosing tokens\n", flush=True)
    chosen = _measure_tokens(settings)
    tokens.print_result(chosen)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = MachineBench(stepped, read, chosen, copy_gb_per_s(device))
    print(f"\nCopies in the device's memory: {found.copy_gb_per_s:.0f} GB/s")
    if out is not None:
        write_file(out, json.dumps(dataclasses.asdict(found), indent=1))
        print(f"written: {out}")


@dataclasses.dataclass(frozen=True)
class MachineBench:
    step: step.StepBench
    data: data.DataBench
    tokens: tokens.TokenBench
    copy_gb_per_s: float


def _measure_step(settings: MachineSettings) -> step.StepBench:
    return step.measure_steps(
        step.StepSettings(
            settings.model,
            drop_ratios=settings.drop_ratios,
            frames=settings.frames,
            batch=settings.batch,
            precision=settings.precision,
            compile=settings.compile,
            seconds=settings.seconds,
        )
    )


def _measure_data(settings: MachineSettings) -> data.DataBench:
    frames, seconds = settings.frames, settings.seconds
    side = step.model_config(settings.model, frames=frames).video.image_size
    with tempfile.TemporaryDirectory(prefix="harvest-bench-") as name:
        folder = Path(name)
        if settings.manifest is None:
            with bar("drawing clips") as progress:
                clips = data.draw_clips(folder, 4, size=(640, 360), progress=progress)
        else:
            rows = read_manifest(settings.manifest, videos=settings.videos, captions_required=False)
            clips = rows[:: max(1, len(rows) // 32)][:32]
        read = data.measure_data(clips, folder / "packed", frames=frames, image_size=side, seconds=seconds)
        waiting = data.measure_waiting(
            folder / "packed" / "video",
            settings.model,
            drop_ratio=settings.drop_ratios[-1],
            batch=settings.batch,
            frames=frames,
            workers=settings.workers,
            seconds=seconds,
        )
    return dataclasses.replace(read, waiting=waiting)


def _measure_tokens(settings: MachineSettings) -> tokens.TokenBench:
    return tokens.measure_tokens(
        settings.model,
        budgets=(0.1, 1.0),
        batches=(settings.batch or 16,),
        frames=settings.frames,
        precision=settings.precision,
        compile=(settings.compile,),
        seconds=settings.seconds,
    )


if __name__ == "__main__":
    main(machine)
