"""Options that several commands share, each a dataclass whose fields are options of the command. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MotionTruth = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a manifest, or of a published training set, are read."""

    videos: Path | None = None
    """Folder that video paths are relative to; without it the manifest's own."""
    form: str = ""
    """Name of the training set (harvest dataset), where it is not to be recognised by its columns."""
    columns: tuple[str, ...] = ()
    """What a column is, where its name does not say: caption=long_text video=file start=t0 ignore=t1."""


@dataclass(frozen=True)
class ScoreOptions:
    """How a model is scored, and where the result goes."""

    zero_shot: bool = False
    """Leave the head of a fine-tuned model aside."""
    motion_truth: MotionTruth = "auto"
    """yes: score again with the frames reversed, shuffled, and one frame alone, as columns of their own. auto: on
    manifests of the mini-world."""
    out: Path | None = None
    """Write the result as JSON to this file."""
    card: Path | None = None
    """Write the benchmark card into this folder: every number with what decides it; for `harvest compare`."""
    json: bool = False
    """Print the result as JSON, and whatever else is told on standard error."""
