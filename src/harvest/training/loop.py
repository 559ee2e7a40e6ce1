"""One training loop for every objective: read it top to bottom.

The state of a run is its weights, the optimizer's moments and one integer, the step. Learning rate, sample order,
dropping, masking and crops are functions of (seed, step, rank) or (seed, epoch, sample), so a run that was stopped,
or killed at any moment, goes on to the bit.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harvest.interfaces import Batch, HarvestError, Losses, RunStopped
from harvest.machine import keep_memory
from harvest.model.video_text import compile_blocks
from harvest.objectives.contract import Ready
from harvest.parallel import (
    LargestOfRanks,
    World,
    computed_in,
    deterministic,
    mean_over_ranks,
    send,
    shard,
    sync_errors,
    world,
    wrap,
)
from harvest.progress import bar, say
from harvest.training.average import WeightAverage
from harvest.training.checkpoint import CheckpointWriter, load_checkpoint
from harvest.training.held_out import HeldOut
from harvest.training.log import RunLog
from harvest.training.optim import build_optimizer
from harvest.training.prepare import Loader, Prepared, check_budgets, prepare, read_clips
from harvest.training.run import begin, claimed, ended, finish, read_broken, stop_signals, write_broken
from harvest.training.start import build_objective
from harvest.training.step import LossScale, OptimizerStep
from harvest.training.vary import show_frames, show_size

if TYPE_CHECKING:
    from harvest.config import RunConfig


def train(config: RunConfig, run: Path) -> Path:
    """Run `config` in folder `run`, going on from its newest checkpoint; returns the model folder, `run/model`.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/; best/ with `eval.data`; broken.json where videos were.
    Raises HarvestError for a folder that holds another run, a non-finite loss, or a disk that is full.
    """
    with (
        world() as here,
        stop_signals() as stop,
        claimed(run, config, here),
        deterministic(config.loop.deterministic),
    ):
        if config.loop.threads is not None:
            torch.set_num_threads(config.loop.threads)
        if here.device.type == "cpu":
            keep_memory()
        if computed_in(here.device, config.loop.precision) != config.loop.precision:
            say("this CPU has no bf16 instructions: computing in fp32, which is faster here")
        prepared = prepare(config, run, here)
        held_out = HeldOut(config, prepared, run, here)
        check_budgets(config, prepared.model)
        objective: Any = ready_objective(config, prepared, run, here)
        optimizer = build_optimizer(objective, config.optim)
        decay = config.loop.average_decay
        average = None if decay is None else WeightAverage(objective, decay=decay)
        first_step = load_checkpoint(run, objective=objective, optimizer=optimizer, average=average) or 0
        held_out.resume(first_step)
        take_step = OptimizerStep(
            wrap(objective, here),
            optimizer,
            here.device,
            config.loop.precision,
            config.optim.max_grad_norm,
            average,
            getattr(objective, "loss_scale", None),
        )
        objective.train()
        loader, batches = _batches(config, prepared, run, here, first_step)
        step, batch = first_step, next(batches)
        begin(run, config, prepared, here, first_step)
        largest = LargestOfRanks()

        def score(step: int) -> float:
            return held_out(step, objective, average, log, stopped=lambda: largest(stop.asked))

        with (
            RunLog(run, first_step=first_step, steps=config.total_steps, is_main=here.is_main) as log,
            CheckpointWriter(run, keep_last=config.loop.keep_last) as checkpoints,
        ):
            since, waited, clips = time.perf_counter(), 0.0, 0
            while step < config.total_steps:
                since += score(step)
                objective.selection = config.selection_at(step)
                shown = show_frames(batch, config.num_frames_at(step))
                lr = config.lr_at(step)
                losses = take_step(show_size(shown, config.image_size_at(step)), step, lr=lr)
                step, clips = step + 1, clips + loader.batch_at(step)

                is_last = step == config.total_steps
                stopped_by = largest(stop.asked or int(checkpoints.failed))
                is_saved = step % config.loop.save_every == 0 or is_last or stopped_by > 0
                is_saved = is_saved or held_out.is_due(step)
                if is_saved or step % config.loop.log_every == 0:
                    numbers = _numbers(losses, step)
                    seconds = time.perf_counter() - since
                    log.write(
                        step,
                        numbers
                        | {"lr": lr, "clips_per_s": clips / seconds, "waiting": waited / seconds}
                        | {"broken": float(len(loader.broken)), "broken_ratio": loader.broken_ratio}
                        | {"truncated": float(loader.truncated)},
                    )
                    since, waited, clips = time.perf_counter(), 0.0, 0
                log.advance(step)
                if is_saved:  # or raise what went wrong with the one before
                    checkpoints.save(step, objective=objective, optimizer=optimizer, average=average)
                    write_broken(run, loader, here)
                if stopped_by and not is_last:
                    checkpoints.wait()
                    message = (
                        f"stopped at step {step} of {config.total_steps} and saved; the same command goes on"
                    )
                    raise RunStopped(message, signal=stopped_by)
                if not is_last:
                    before = time.perf_counter()
                    batch = next(batches)
                    waited += time.perf_counter() - before
            score(step)
        largest.close()
        made = ended(config, prepared, objective, average)
        with sync_errors():
            if here.is_main:
                finish(run, config, prepared, made, loader)
    return run / "model"


def ready_objective(config: RunConfig, prepared: Prepared, run: Path, here: World) -> Any:
    """The objective on its device, its caches filled, compiled and sharded as the run says."""
    model = prepared.model
    objective = build_objective(config, model, prepared.given).to(here.device)
    if config.loop.compiles_on(here.device):
        compile_blocks(model)
    if config.loop.precision == "fp16":
        objective.loss_scale = LossScale().to(here.device)  # its state is in the checkpoints
    model.video.checkpointing = config.loop.checkpointing
    read = partial(read_clips, config, model.config.video.squares)
    ready = Ready(config, prepared.dataset, prepared.tokenizer, here, read, run, prepared.image_model)
    config.objective.needs.prepare(objective, ready)
    if config.loop.parallel == "fsdp":
        shard(objective, here)
    return objective


def _batches(
    config: RunConfig, prepared: Prepared, run: Path, here: World, first_step: int
) -> tuple[Loader, Iterator[Batch]]:
    """The loader and its batches, on the device, the first of them read."""
    with bar("decoding clips", quiet=not here.is_main) as progress:
        loader = prepared.loader(
            global_batch=config.global_batches,
            rank=here.rank,
            world=here.size,
            first_step=first_step,
            progress=progress,
            refused=read_broken(run),
            device=here.device,
        )
        batches = (Batch(*(send(tensor, here.device) for tensor in batch)) for batch in loader)
        return loader, itertools.chain([next(batches)], batches)


def _numbers(losses: Losses, step: int) -> dict[str, float]:
    """The losses of a step, means over ranks; HarvestError where they are not finite."""
    values = {"loss": losses.total.detach(), **losses.parts}
    means = mean_over_ranks(torch.stack([value.float() for value in values.values()]))
    numbers = dict(zip(values, means.tolist(), strict=True))  # the one place where a run waits for its device
    if not math.isfinite(numbers["loss"]):
        raise HarvestError(
            f"the loss is {numbers['loss']} at step {step} ({', '.join(f'{k} {v:.4g}' for k, v in numbers.items())}). "
            "The last checkpoint is from before. Lower --optim.lr, set --optim.max-grad-norm 1, or use "
            "--loop.precision fp32."
        )
    return numbers
