"""Checkpoints: weights, optimizer moments and one integer, the step. Written whole or not at all.

RUN/checkpoints/step-00001200/weights.safetensors   the objective's state
                              optimizer.pt          AdamW's moments, read with weights_only
                              average.safetensors   the moving average of the weights, where there is one
                              state.json            the step, written last

A run that is sharded over its ranks (FSDP2) writes `state/` instead of the first three, by PyTorch's distributed
checkpoint: every rank its shares, in parallel. It is read by any number of ranks, sharded or not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Container, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from harvest.interfaces import HarvestError
from harvest.model.folder import load_strictly, new_folder
from harvest.parallel import is_sharded, is_share, together, world_rank_size
from harvest.training.average import WeightAverage


def save_checkpoint(
    run: Path,
    *,
    step: int,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep_last: int,
    average: WeightAverage | None = None,
) -> None:
    """Write `step-…` beside the older ones, then delete all but the newest `keep_last`.

    A full disk or a kill leaves the older checkpoints as they were: the new folder gets its name when it is whole.
    """
    folder = run / "checkpoints"
    if is_sharded(objective):
        with together():
            _refuse_ruined(step, _local(objective.state_dict()))
        _save_shares(folder / f"step-{step:08d}", step, _state(objective, optimizer, average))
        if world_rank_size()[0] == 0:
            _tidy(run, keep_last)
        return
    if world_rank_size()[0] > 0:
        return
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in objective.state_dict().items()}
    _refuse_ruined(step, weights)
    try:
        with new_folder(folder / f"step-{step:08d}") as temporary:
            safetensors.torch.save_file(weights, temporary / "weights.safetensors")
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
            if average is not None:
                averaged = {name: tensor.cpu() for name, tensor in average.tensors.items()}
                safetensors.torch.save_file(averaged, temporary / "average.safetensors")
            (temporary / "state.json").write_text(json.dumps({"step": step}))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise HarvestError(
            f"could not save a checkpoint in {folder}: {error}. Free some space and run the same command again: "
            "it goes on from the last checkpoint, which is intact."
        ) from error
    _tidy(run, keep_last)


def _refuse_ruined(step: int, weights: Mapping[str, Tensor]) -> None:
    """A finite loss may still have had a gradient that is not: such weights must not take a good checkpoint's place."""
    ruined = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if ruined:
        raise HarvestError(
            f"step {step} left values that are not finite in {len(ruined)} weights (first: {ruined[0]}), so it was not "
            "saved; the last checkpoint is from before. Lower --optim.lr, set --optim.max-grad-norm 1, or use "
            "--loop.precision fp32."
        )


def _tidy(run: Path, keep_last: int) -> None:
    for old in _checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    for leftover in (run / "checkpoints").glob(".step-*"):  # of a save that was killed
        shutil.rmtree(leftover)


# ---- sharded over the ranks --------------------------------------------------------------------------------------


def _local(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to_local() if is_share(t) else t for name, t in state.items()}  # type: ignore[attr-defined]


def _state(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    *,
    known: Container[str] | None = None,
) -> dict[str, Tensor]:
    """Every tensor of a run by one name each; with `known`, room for the moments that a checkpoint has is made."""
    state = {f"objective.{name}": tensor for name, tensor in objective.state_dict().items()}
    for name, parameter in objective.named_parameters():
        if known is not None and f"moments.{name}.step" in known:
            empty = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {"step": step, **empty}
        for key, tensor in optimizer.state.get(parameter, {}).items():
            state[f"moments.{name}.{key}"] = tensor
    if average is not None:
        state |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    return state


def _save_shares(folder: Path, step: int, state: dict[str, Tensor]) -> None:
    """Every rank writes its shares; the folder gets its name when all of them are on the disk."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    temporary = folder.with_name(f".{folder.name}-shares")
    is_main = world_rank_size()[0] == 0
    try:
        with together():
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        save(state, storage_writer=FileSystemWriter(temporary / "state", sync_files=True))
        with together():
            if is_main:
                with new_folder(folder) as whole:
                    os.rename(temporary / "state", whole / "state")
                    (whole / "state.json").write_text(json.dumps({"step": step}))
                temporary.rmdir()
    except (OSError, RuntimeError, CheckpointException) as error:
        raise HarvestError(
            f"could not save a checkpoint in {folder.parent}: {error}. Free some space and run the same command"
            " again: it goes on from the last checkpoint, which is intact."
        ) from error


def _load_shares(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder / "state")
    try:
        known = reader.read_metadata().state_dict_metadata
        state = _state(objective, optimizer, average, known=known)
        wrong = sorted(known.keys() ^ state.keys())
        if wrong:
            raise HarvestError(
                f"{folder} does not hold this run's state; only one of both has {', '.join(wrong[:12])}"
            )
        with warnings.catch_warnings():  # that one process loads alone is meant so
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=reader, no_dist=world_rank_size()[1] == 1)
    except (OSError, RuntimeError, ValueError, CheckpointException) as error:
        raise HarvestError(
            f"{folder} cannot be read: {error}. Remove it to go on from the one before."
        ) from error


def load_checkpoint(
    run: Path,
    *,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> int | None:
    """Fill objective, optimizer and average from the newest checkpoint of a run; its step, or None if there is none."""
    checkpoints = _checkpoints(run)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    if (newest / "state").is_dir():
        _load_shares(newest, objective, optimizer, average)
        return int(json.loads((newest / "state.json").read_text())["step"])
    if is_sharded(objective):
        raise HarvestError(f"{newest} was written without shards: go on with --loop.parallel ddp")
    try:
        weights = safetensors.torch.load_file(newest / "weights.safetensors")
        moments = torch.load(newest / "optimizer.pt", map_location="cpu", weights_only=True)
        if average is not None:
            average.load(safetensors.torch.load_file(newest / "average.safetensors"))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise HarvestError(
            f"{newest} cannot be read: {error}. Remove it to go on from the one before."
        ) from error
    load_strictly(objective, weights, source=str(newest))
    optimizer.load_state_dict(moments)
    return int(json.loads((newest / "state.json").read_text())["step"])


def newest_weights(run: Path) -> dict[str, torch.Tensor]:
    """The objective's weights in a run's newest checkpoint, whatever its optimizer; nothing where there is none."""
    checkpoints = _checkpoints(run)
    if not checkpoints:
        return {}
    try:
        return safetensors.torch.load_file(checkpoints[-1] / "weights.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise HarvestError(f"{checkpoints[-1]} cannot be read: {error}") from error


def _checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first. Temporary folders of a killed save start with a dot."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name))
