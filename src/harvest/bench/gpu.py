"""`harvest bench gpu`: one page about a GPU, in one command, on a machine without video libraries or a network.

Parts follow each other, each within its share of the time. What a part finds is on disk as soon as it is found; one that
fails is named, and the rest goes on. On a CPU everything runs from end to end at tiny sizes.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

import harvest
from harvest.bench.ceiling import copy_gb_per_s, matmul_gflop_per_s, send_gb_per_s
from harvest.bench.step import (
    Size,
    StepSettings,
    describe_machine,
    measure_steps,
    model_config,
    take_turns,
    warm_up,
)
from harvest.bench.tokens import measure_tokens
from harvest.bench.umt import stage1, stage2, tower_of, umt_variants
from harvest.files import write_file
from harvest.interfaces import Batch, Box, Example, HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.joining import with_answers
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives import OBJECTIVES
from harvest.objectives.contract import Given, Objective
from harvest.objectives.embedding_alignment import EmbeddingAlignmentConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnsweringConfig
from harvest.objectives.reach import random_batch
from harvest.parallel import Precision, deterministic
from harvest.progress import say
from harvest.training.optim import OptimConfig, build_optimizer
from harvest.training.step import OptimizerStep

if TYPE_CHECKING:
    from harvest.config import RunConfig

Row = dict[str, Any]

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
"""Largest relative difference from the CPU's fp32: of a loss before and after an update."""
CURVE_TOLERANCE = 0.05
"""The same, of the mean loss of a tenth of a run: rounding grows from step to step."""
GPU_TESTS = ("tests/objectives/test_gpu.py", "tests/model/test_packing.py", "tests/model/test_int8.py")


class Machine(NamedTuple):
    """What is measured, and at which sizes."""

    device: torch.device
    seconds: float
    """For each thing that is timed."""

    @property
    def is_gpu(self) -> bool:
        return self.device.type != "cpu"

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ("b16", "l14") if self.is_gpu else ("mini",)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return ("fp32", "bf16") if self.is_gpu else ("fp32",)

    def steps(self, size: Size, **settings: Any) -> list[Row]:
        """`harvest bench step`, row by row."""
        if not self.is_gpu:
            settings = {
                **settings,
                "batch": 2,
                "frames": 2,
                "image_size": 32,
                "words": 8,
                "precision": "fp32",
            }
        how = StepSettings(model=size, seconds=self.seconds, device=str(self.device), **settings)
        shown = ("drop_ratio", "batch", "step_s", "clips_per_s", "speedup", "gflop_per_s", "mfu", "peak_gb")
        return [{name: getattr(row, name) for name in shown} for row in measure_steps(how).rows]


# ---- the parts ---------------------------------------------------------------------------------------------------


def gpu_tests(machine: Machine) -> Iterator[Row]:
    """The tests that need a GPU, and those with one that is not there."""
    root = Path(harvest.__file__).parents[2]
    if importlib.util.find_spec("pytest") is None or not all((root / path).is_file() for path in GPU_TESTS):
        yield {"skipped": "pytest or the tests of the repository are not here"}
        return
    chosen = GPU_TESTS if machine.is_gpu else GPU_TESTS[2:]
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *chosen]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = ended.stdout.strip().splitlines() or ended.stderr.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield {"tests": lines[-1], "ok": ended.returncode == 0, "failed": "; ".join(failed)}


def ceilings(machine: Machine) -> Iterator[Row]:
    """Matrix products at the sizes of a model's layers, and copies."""
    for size in machine.sizes:
        video = model_config(size, frames=8).video
        for precision in machine.precisions:
            rate = matmul_gflop_per_s(
                16384 if machine.is_gpu else 64,
                video.width,
                video.mlp_width,
                precision=precision,
                device=machine.device,
                seconds=machine.seconds,
            )
            yield {"what": f"matrix products, {size}, {precision}", "rate": rate, "unit": "GFLOP/s"}
    megabytes = 256 if machine.is_gpu else 1
    within = copy_gb_per_s(machine.device, megabytes=megabytes, seconds=machine.seconds)
    yield {"what": "copies within the device, read and written", "rate": within, "unit": "GB/s"}
    for pinned in (True, False) if machine.is_gpu else (False,):
        rate = send_gb_per_s(machine.device, pinned=pinned, megabytes=megabytes, seconds=machine.seconds)
        kind = "pinned" if pinned else "pageable"
        yield {"what": f"from {kind} memory to the device", "rate": rate, "unit": "GB/s"}


def against_cpu(machine: Machine) -> Iterator[Row]:
    """Every objective: the loss of a step and of the next one, after the update, against the CPU's in fp32."""
    for settings in OBJECTIVES:
        objective, batch = made(settings, clips=4 if machine.is_gpu else 2)
        here = losses_of(objective, [batch], torch.device("cpu"), "fp32", steps=2)
        for precision in machine.precisions:
            there = losses_of(objective, [batch], machine.device, precision, steps=2)
            off = max(abs(a - b) / abs(b) for a, b in zip(there, here, strict=True))
            yield {
                "objective": type(objective).__name__,
                "precision": precision,
                "cpu": here[0],
                "device": there[0],
                "off": off,
                "tolerance": TOLERANCE[precision],
                "ok": off <= TOLERANCE[precision],
            }


def step_times(machine: Machine) -> Iterator[Row]:
    """Harvest's step at four drop ratios, in turns, eager and compiled."""
    for compiled in (False, True) if machine.is_gpu else (False,):
        for size in machine.sizes:
            for row in machine.steps(size, drop_ratios=(0.0, 0.5, 0.8, 0.9), compile=compiled):
                yield {"model": size, "compiled": compiled, **row}


def umt_times(machine: Machine) -> Iterator[Row]:
    """UMT's stages, with and without a cache of the teacher."""
    size, batch = machine.sizes[0], 64 if machine.is_gpu else 2
    frames = (8, 4) if machine.is_gpu else (2, 2)
    for compiled in (False, True) if machine.is_gpu else (False,):
        for variant in umt_variants(
            size, batch, frames, machine.precisions[-1], machine.device, compile=compiled
        ):
            warm_up([variant])
            take_turns([variant], seconds=machine.seconds)
            rate = batch / sorted(variant.times)[len(variant.times) // 2]
            about = {"what": variant.name, "compiled": compiled, "batch": batch}
            yield {**about, "clips_per_s": rate, "peak_gb": variant.peak_gb}


def memory(machine: Machine) -> Iterator[Row]:
    """The most memory of a step of Harvest's main stage at 64 clips, with and without recomputing activations."""
    for size in machine.sizes:
        for checkpointing in (False, True):
            [row] = machine.steps(
                size,
                drop_ratios=(0.9,),
                checkpointing=checkpointing,
                **({"batch": 64} if machine.is_gpu else {}),
            )
            peak, batch = row["peak_gb"], row["batch"]
            yield {"model": size, "batch": batch, "checkpointing": checkpointing, "peak_gb": peak}


def packed(machine: Machine) -> Iterator[Row]:
    """Clips that keep different numbers of tubelets, packed, against equally many of each; several budgets in turns."""
    small: dict[str, Any] = {} if machine.is_gpu else {"image_size": 32}
    shown = ("selector", "budget", "batch", "compiled", "step_s", "clips_per_s", "choose_ratio", "peak_gb")
    for compiled in (False, True) if machine.is_gpu else (False,):
        found = measure_tokens(
            machine.sizes[0],
            selectors=("random", "run_length"),
            budgets=(0.1, 0.2, 0.5) if machine.is_gpu else (0.2, 0.5),
            batches=(64 if machine.is_gpu else 2,),
            frames=8 if machine.is_gpu else 4,
            precision=machine.precisions[-1],
            compile=(compiled,),
            seconds=machine.seconds,
            device=str(machine.device),
            **small,
        )
        for row in found.rows:
            yield {name: getattr(row, name) for name in shown}
        if compiled:
            yield {"graphs compiled after warm-up": found.compiled_after_warm_up}


def curve(machine: Machine) -> Iterator[Row]:
    """Harvest's objective on the mini-world's model and made-up clips: the mean loss of each tenth of a run."""
    steps, clips = (200, 128) if machine.is_gpu else (10, 8)
    objective, every = made(PostPretrainingConfig, clips=clips)
    batches = [every.rows(slice(start, start + clips // 4)) for start in range(0, clips, clips // 4)]

    def tenths(device: torch.device, precision: Precision) -> list[float]:
        losses = losses_of(objective, batches, device, precision, steps=steps)
        return torch.tensor(losses).view(10, -1).mean(dim=1).tolist()  # type: ignore[no-any-return]

    here = tenths(torch.device("cpu"), "fp32")
    yield {"where": "CPU, fp32", "first": here[0], "last": here[-1]}
    for precision in machine.precisions:
        there = tenths(machine.device, precision)
        off = max(abs(a - b) / abs(b) for a, b in zip(there, here, strict=True))
        ends = {"first": there[0], "last": there[-1]}
        yield {"where": f"device, {precision}", **ends, "off": off, "ok": off <= CURVE_TOLERANCE}


PARTS: dict[str, tuple[Callable[[Machine], Iterator[Row]], float]] = {
    "objectives": (against_cpu, 2.0),
    "curve": (curve, 2.0),
    "ceilings": (ceilings, 0.5),
    "steps": (step_times, 4.0),
    "memory": (memory, 1.0),
    "umt": (umt_times, 2.5),
    "packed": (packed, 2.0),
    "tests": (gpu_tests, 1.0),
}
"""What is measured, and its share of the time."""
Part = Literal["objectives", "curve", "ceilings", "steps", "memory", "umt", "packed", "tests"]


# ---- objectives that are stepped ---------------------------------------------------------------------------------


def made(settings: type[Objective], *, clips: int) -> tuple[Any, Batch]:
    """An objective on a model of the mini-world's size with random weights, and clips of noise that it can learn from."""
    place = torch.device("cpu")
    run = SimpleNamespace(loop=SimpleNamespace(seed=0))  # all that is read of it: RunConfig needs PyAV
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if issubclass(settings, MaskedAlignmentConfig):
            build = stage2 if issubclass(settings, MultimodalConfig) else stage1
            objective: Any = build("mini", 4, place, "fp32")
        else:
            sizes = model_config("mini", frames=4)
            if issubclass(settings, PixelReconstructionConfig):  # it trains a video tower alone
                sizes = ModelConfig(tower_of("mini", 4), text=None)
            model = VideoTextModel(sizes)
            if settings().needs.answers:
                model, _ = with_answers(model)
            rows = [Example(f"{n}", "", boxes=(Box((0.1, 0.1, 0.6, 0.7), (n % 2,)),)) for n in range(clips)]
            given = Given(("left", "right"), tokenizer=load_pretrained("mini-image")[1], clips=rows)
            objective = settings().build(cast("RunConfig", run), model, given)
    batch = random_batch(objective.model.config, clips, 8, place, captions=2)
    batch = batch._replace(label=torch.arange(clips) % 2)
    if issubclass(settings, QuestionAnsweringConfig):
        batch.text_ids[..., 3] = objective.model.mask_id
    if issubclass(settings, EmbeddingAlignmentConfig):
        width, generator = objective.model.config.video.embed_dim, torch.Generator().manual_seed(0)
        stored = torch.rand(clips, width, generator=generator).half()
        batch = batch._replace(stored=stored.view(torch.uint8))
    return objective, batch


def losses_of(
    objective: Any, batches: list[Batch], device: torch.device, precision: Precision, *, steps: int
) -> list[float]:
    """The losses of some steps of a copy of the objective on a device, with the draws of a CPU and without dropout."""
    with deterministic(True), without_dropout():
        torch.use_deterministic_algorithms(True, warn_only=True)  # the draws matter here
        own = copy.deepcopy(objective).to(device).train()
        step = OptimizerStep(own, build_optimizer(own, OptimConfig(lr=3e-4)), device, precision, 1.0)
        shown = [Batch(*(part.to(device) for part in batch)) for batch in batches]
        totals: list[Tensor] = [step(shown[n % len(shown)], n).total.detach() for n in range(steps)]
    return torch.stack(totals).float().cpu().tolist()  # type: ignore[no-any-return]


@contextmanager
def without_dropout() -> Iterator[None]:
    """PyTorch's dropout, which a GPU draws for itself, does nothing in the block, in attention neither."""
    dropout, attention = F.dropout, F.scaled_dot_product_attention
    F.dropout = lambda x, *_, **__: x
    F.scaled_dot_product_attention = lambda *qkv, **how: attention(*qkv, **{**how, "dropout_p": 0.0})
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention = dropout, attention


# ---- one after the other -----------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """A part has used its share; no `except Exception` on the way stops it."""


def gpu_command(
    out: Path,
    device: str | None = None,
    minutes: float = 8.0,
    parts: tuple[Part, ...] = get_args(Part),
) -> None:
    """Whether a GPU computes what a CPU does, how fast and in how much memory: one page.

    $ harvest bench gpu --out gpu
    $ harvest bench gpu --out gpu --parts objectives curve
    $ harvest bench gpu --out here --device cpu

    The same command goes on where it was stopped: parts that are done in the folder are not measured again.

    Args:
        out: Folder of gpu.json and gpu.md, written as results come.
        device: cuda, or cpu: everything at tiny sizes; without it the GPU where there is one.
        minutes: Time for all parts.
        parts: What is measured.
    """
    if minutes <= 0:
        raise HarvestError(f"minutes: expected more than 0, got {minutes}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise HarvestError("PyTorch finds no GPU here: give --device cpu for a trial at tiny sizes")
    machine = Machine(place, seconds=1.0 if place.type != "cpu" else 0.01)
    found = _opened(out, describe_machine(place))
    left = [part for part in parts if not found["parts"].get(part, {}).get("done")]
    end_s = time.monotonic() + 60 * minutes
    for place_in, part in enumerate(left):
        share = PARTS[part][1] / sum(PARTS[later][1] for later in left[place_in:])
        _measure(part, machine, found, out, seconds=max(0.1, share * (end_s - time.monotonic())))
    say(f"written: {out / 'gpu.md'}, {out / 'gpu.json'}")
    print(page_of(found))


def _opened(out: Path, about: dict[str, object]) -> dict[str, Any]:
    """What an earlier start has found, or nothing."""
    path = out / "gpu.json"
    if not path.is_file():
        return {"machine": about, "parts": {}}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        same = found["machine"] == about
        found["parts"].get("")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarvestError(f"{path} cannot be read ({error}): remove it, or give another --out") from error
    if not same:
        raise HarvestError(f"{path} is of another machine ({found['machine']}): give another --out")
    return found


def _measure(part: str, machine: Machine, found: dict[str, Any], out: Path, *, seconds: float) -> None:
    """Run one part, with every row on disk before the next is measured."""
    rows: list[Row] = []
    about = str(PARTS[part][0].__doc__).splitlines()[0]
    told: dict[str, Any] = {"about": about, "rows": rows, "failed": None, "done": False}
    found["parts"][part] = told
    before = time.monotonic()
    say(f"{part}: up to {seconds:.0f} s")
    try:
        with _at_most(seconds):
            for row in PARTS[part][0](machine):
                rows.append(row)
                _write(found, out)
        told["done"] = True
    except OutOfTime:
        told["failed"] = f"stopped after its {seconds:.0f} s"
    except Exception as error:  # the other parts go on
        first = (str(error).splitlines() or [""])[0]
        told["failed"] = f"{type(error).__name__}: {first}"
    told["seconds"] = round(time.monotonic() - before, 1)
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    _write(found, out)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds, where the system has such an alarm."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the page ----------------------------------------------------------------------------------------------------


def _write(found: dict[str, Any], out: Path) -> None:
    write_file(out / "gpu.json", json.dumps(found, indent=1))
    write_file(out / "gpu.md", page_of(found))


def page_of(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# A GPU in one page", "", ", ".join(str(value) for value in found["machine"].values()), ""]
    lines += ["| bar | measured | holds |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | {holds} |" for what, figure, holds in bars_of(found["parts"])]
    for part, told in found["parts"].items():
        lines += ["", f"## {part}", "", told["about"], ""]
        heads = list(dict.fromkeys(name for row in told["rows"] for name in row))
        if heads:
            lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(_cell(row.get(name)) for name in heads) + " |" for row in told["rows"]]
        if told["failed"]:
            lines += ["", f"**Not finished**: {told['failed']}"]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def bars_of(parts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a GPU must show: bar, figure, and whether it holds."""

    def values(part: str, name: str, **where: object) -> list[float]:
        rows = parts.get(part, {}).get("rows", [])
        chosen = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
        return [row[name] for row in chosen if row.get(name) is not None]

    def bar(what: str, found: list[float], *, least: float | None = None, most: float | None = None) -> Any:
        if not found:
            return what, "not measured", ""
        best = max(found) if most is None else min(found)
        holds = best >= least if least is not None else most is not None and best <= most
        return what, f"{best:.3g}", "yes" if holds else "no"

    for size, share in (("b16", 0.45), ("l14", 0.55)):
        found = values("steps", "mfu", model=size, drop_ratio=0.9)
        yield bar(f"{size}, 90 % dropped: at least {share:.0%} of the ceiling", found, least=share)
    found = values("steps", "speedup", model="b16", drop_ratio=0.9)
    yield bar("b16: 90 % dropped at least 8 x as fast as 0 %", found, least=8)
    found = values("memory", "peak_gb", model="b16", checkpointing=False)
    yield bar("b16, main stage, 64 clips: at most 8 GB", found, most=8)
    yield bar("graphs compiled after warm-up: 0", values("packed", "graphs compiled after warm-up"), most=0)
    for part in ("objectives", "curve"):
        wrong = [row for row in parts.get(part, {}).get("rows", []) if row.get("ok") is False]
        is_done = parts.get(part, {}).get("done")
        yield (
            f"{part}: as on the CPU",
            f"{len(wrong)} differ" if is_done else "not measured",
            (("no" if wrong else "yes") if is_done else ""),
        )
