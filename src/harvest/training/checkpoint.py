"""Checkpoints: weights, optimizer moments and one integer, the step. Written whole or not at all.

RUN/checkpoints/step-00001200/weights.safetensors   the objective's state
                              optimizer.pt          AdamW's moments, read with weights_only
                              average.safetensors   the moving average of the weights, where there is one
                              state.json            the step, written last
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from harvest.interfaces import HarvestError
from harvest.model.folder import load_strictly, new_folder
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
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in objective.state_dict().items()}
    # A finite loss may still have had a gradient that is not: such weights must not take a good checkpoint's place.
    ruined = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if ruined:
        raise HarvestError(
            f"step {step} left values that are not finite in {len(ruined)} weights (first: {ruined[0]}), so it was not "
            "saved; the last checkpoint is from before. Lower --optim.lr, set --optim.max-grad-norm 1, or use "
            "--loop.precision fp32."
        )
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
    for old in _checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    for leftover in folder.glob(".step-*"):  # of a save that was killed
        shutil.rmtree(leftover)


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
