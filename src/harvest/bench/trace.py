"""Where the time of a training step goes: torch.profiler over one step of each variant, summed by parts of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from harvest.model.layers import MLP, Attention
from harvest.model.video_text import VideoTextModel
from harvest.tokens.select import CHOOSING

PART, VARIANT = "part: ", "variant: "
TOWER = "rest of the video tower"
PARTS = (
    "patch embedding",
    "attention",
    "MLP",
    "norms",
    TOWER,
    "text",
    "fusion",
    "losses",
    "choosing",
    "optimizer",
)
"""The first five are of the video tower; its rest is residual sums, positions and casts. Losses are what is left over,
moving gradients about among it. Forward and backward are together."""


@dataclass
class Traced:
    """A training step to look into."""

    name: str
    model: VideoTextModel
    run: Callable[[], object]


def trace_steps(steps: Sequence[Traced], path: Path, *, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of each part of each of the steps, by name. Writes them to `path`, for Perfetto or chrome://tracing.

    On a GPU the seconds are those of its kernels. Compiled blocks have no parts.
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as seen:
        for step in steps:
            with named_parts(step.model), record_function(VARIANT + step.name):
                step.run()
    path.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(path))
    return by_part(seen.events(), is_cuda=is_cuda)


@contextmanager
def named_parts(model: VideoTextModel) -> Iterator[None]:
    """While the block runs, what the parts of a model compute has their names around it."""
    kinds = ((Attention, "attention"), (MLP, "MLP"), (nn.LayerNorm, "norms"))
    calls: list[tuple[Any, str, str]] = [
        (module, "forward", part)
        for module in model.video.modules()
        for kind, part in kinds
        if isinstance(module, kind)
    ]
    calls += [(model.video, "embed_tubelets", "patch embedding"), (model, "encode_video", TOWER)]
    calls += [(model, "encode_text", "text"), (model, "fuse", "fusion"), (model, "predict_words", "fusion")]
    for owner, method, part in calls:
        setattr(owner, method, _named(getattr(owner, method), part))
    try:
        yield
    finally:
        for owner, method, _ in calls:
            delattr(owner, method)  # the class's own is seen again


def _named(call: Callable[..., Any], part: str) -> Callable[..., Any]:
    def named(*args: Any, **options: Any) -> Any:
        with record_function(PART + part):
            return call(*args, **options)

    return named


def by_part(events: Sequence[Any], *, is_cuda: bool) -> dict[str, dict[str, float]]:
    """Seconds by variant and part of a profile's events.

    What runs forward lies in the range of its part; of several the outermost, the whole tower's aside. What runs backward has the
    number of the forward operation whose gradient it is, and counts to that one's part.
    """
    ranges = [
        (event.time_range.start, event.time_range.end, event.name.removeprefix(VARIANT))
        for event in events
        if event.name.startswith(VARIANT)
    ]
    part_of_number: dict[int, str] = {}
    for event in events:
        part = _forward_part(event)
        if part is not None and event.sequence_nr >= 0:
            part_of_number[event.sequence_nr] = part
    found: dict[str, dict[str, float]] = {name: defaultdict(float) for _, _, name in ranges}
    for event in events:
        start = event.time_range.start
        variant = next((name for begin, end, name in ranges if begin <= start < end), None)
        if variant is None or event.name.startswith(VARIANT):
            continue
        part = _forward_part(event) or _backward_part(event, part_of_number) or "losses"
        micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        found[variant][part] += micros * 1e-6
    return {name: dict(parts) for name, parts in found.items()}


def _forward_part(event: Any) -> str | None:
    part = None
    while event is not None:
        if event.name.startswith(PART):
            found = event.name.removeprefix(PART)
            part = part if part is not None and found == TOWER else found
        elif event.name == CHOOSING:
            part = "choosing"
        elif event.name.startswith("Optimizer."):
            part = "optimizer"
        event = event.cpu_parent
    return part


def _backward_part(event: Any, part_of_number: dict[int, str]) -> str | None:
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return part_of_number.get(event.sequence_nr)
        event = event.cpu_parent
    return None


def cells_of(found: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """A row a part: its name, and for each step its milliseconds and its share."""
    rows = []
    for part in PARTS:
        row = [part]
        for parts in found.values():
            seconds, total = parts.get(part, 0.0), sum(parts.values())
            row.append(f"{1000 * seconds:.1f} ms, {seconds / total:.1%}" if total else "")
        rows.append(tuple(row))
    return rows
