"""The training steps of UMT's two stages, timed, with the teacher and with its cache: `python -m experiments.umt_step`."""

from __future__ import annotations

from statistics import median
from typing import Literal

import torch

from experiments import main
from harvest.bench.step import describe_machine, print_table, take_turns, warm_up
from harvest.bench.umt import umt_variants
from harvest.interfaces import HarvestError
from harvest.parallel import Precision


def umt_step(
    model: Literal["b16", "mini"] = "b16",
    batch: int = 8,
    frames: tuple[int, int] = (8, 4),
    precision: Precision = "bf16",
    plain: bool = False,
    compile: bool = False,
    threads: int | None = None,
    seconds: float = 30.0,
    device: str | None = None,
) -> None:
    """Clips a second of UMT's stage 1, with the teacher, with it in int8 and with its cache, and of stage 2.

    $ python -m experiments.umt_step --compile --seconds 20

    Args:
        model: b16 is ViT-B/16 taught by CLIP-B/16, with a BERT-base; mini is the size of the mini-world's.
        batch: Clips a step.
        frames: Frames a clip in the two stages.
        precision: bf16 or fp32, of student and teacher.
        plain: Measure stage 1 in fp32 besides: what the reference computes.
        compile: Compile the transformer blocks, the teacher's too; not those of the plain one.
        threads: Threads PyTorch computes with.
        seconds: For each, after two steps of warm-up.
        device: cpu or cuda; without it the GPU where there is one.
    """
    if batch < 1 or seconds <= 0:
        raise HarvestError(
            f"expected a batch of at least 1 and more than 0 seconds, got {batch} and {seconds}"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows: list[tuple[str, ...]] = []
    for variant in umt_variants(model, batch, frames, precision, place, compile=compile, plain=plain):
        warm_up([variant])
        take_turns([variant], seconds=seconds)
        step_s = median(variant.times)
        steps = str(len(variant.times))
        rows.append((variant.name, str(batch), steps, f"{1000 * step_s:.0f} ms", f"{batch / step_s:.2f}"))
    print(", ".join(str(value) for value in describe_machine(place).values()))
    print_table(("what", "batch", "steps", "step", "clips/s"), rows)


if __name__ == "__main__":
    main(umt_step)
