"""Checkpoints: weights, optimizer moments and one integer, the step. Written whole or not at all, beside the training.

RUN/checkpoints/step-00001200/weights.safetensors   the objective's state
                              moments.safetensors   AdamW's moments, by the parameters' names
                              average.safetensors   the moving average of the weights, where there is one
                              state.json            the step and the files' checksums, written last

A run that is sharded over its ranks (FSDP2) writes `state/` instead of the first three, by PyTorch's distributed
checkpoint: every rank its shares, in parallel. Either is read by any number of ranks, sharded or not.

A damaged checkpoint is renamed to `damaged-step-…`, and the run goes on from the one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from harvest.files import check_checksums, checksums_of, new_folder
from harvest.interfaces import HarvestError
from harvest.model.folder import load_strictly
from harvest.parallel import is_shard, is_sharded, shard_like, side_group, sync_errors, world_rank_size
from harvest.progress import say
from harvest.settings import read_settings
from harvest.training.average import WeightAverage

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

FILES = {"objective": "weights", "moments": "moments", "average": "average"}
"""What a name in `_state` begins with, and the file it goes to."""


class State(NamedTuple):
    """What a checkpoint's state.json says."""

    step: int
    checksums: Mapping[str, str]
    """The SHA-256 of every other file, by its path in the checkpoint's folder."""


class CheckpointWriter:
    """Copies a run's state and writes the copy in a thread, so that training goes on; one checkpoint at a time.

    A full disk or a kill leaves the older checkpoints as they were: a new folder gets its name when it is whole. Then
    all but the newest `keep_last` are deleted. What went wrong is raised by the next `save` or `wait`; `failed` says
    it before, so that all ranks can come there together. Leaving the context waits for the last checkpoint.
    """

    def __init__(self, run: Path, *, keep_last: int) -> None:
        self.folder, self.keep_last = run / "checkpoints", keep_last
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._group: object | None = None

    @property
    def failed(self) -> bool:
        return self._error is not None

    def save(
        self,
        step: int,
        *,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None = None,
    ) -> None:
        """Begin to write `step-…`, once the one before is on the disk. Every rank must call it.

        Raises HarvestError for weights that are not finite, and for what went wrong with the one before.
        """
        self.wait()
        state = _state(objective, optimizer, average)
        with sync_errors():
            _refuse_ruined(step, state)
        if is_sharded(objective):
            self._start(self._shares_writer(step, state))
        elif world_rank_size()[0] == 0:
            copied = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}
            self._start(lambda: _write_whole(self._path(step), step, copied))

    def wait(self) -> None:
        """Until the last checkpoint is on the disk, or raise why it is not. Every rank must call it."""
        self._join()
        error, self._error = self._error, None
        with sync_errors():
            if isinstance(error, (OSError, RuntimeError, safetensors.SafetensorError)):
                raise self._not_saved(error) from error
            if error is not None:
                raise error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        else:
            self._join()

    def _not_saved(self, error: Exception) -> HarvestError:
        return HarvestError(
            f"could not save a checkpoint in {self.folder}: {error}. Free some space and run the same command again: it"
            " goes on from the last checkpoint, which is intact."
        )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, write: Callable[[], None]) -> None:
        def run() -> None:
            try:
                write()
                if world_rank_size()[0] == 0:
                    _tidy(self.folder, self.keep_last)
            except Exception as error:  # raised where all ranks meet, by `wait`
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def _shares_writer(self, step: int, state: dict[str, Tensor]) -> Callable[[], None]:
        """Copy every rank's shares; what is given back writes them, and gives the folder its name."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        if self._group is None:
            self._group = side_group()
        folder = self._path(step)
        temporary = folder.with_name(f".{folder.name}-shares")
        is_main = world_rank_size()[0] == 0
        with sync_errors():
            if is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                try:
                    temporary.mkdir(parents=True)
                except OSError as error:
                    raise self._not_saved(error) from error
        writer = FileSystemWriter(temporary / "state", sync_files=True)
        saving = async_save(state, storage_writer=writer, process_group=self._group)  # type: ignore[arg-type]
        written = cast("Future[object]", saving)

        def finish() -> None:
            try:
                written.result()  # on the main rank: every rank's shares are on the disk
            except CheckpointException as error:
                raise OSError(_told(error)) from error
            if is_main:
                with new_folder(folder) as whole:
                    os.rename(temporary / "state", whole / "state")
                    _write_state(whole, step)
                temporary.rmdir()

        return finish


def _write_whole(folder: Path, step: int, state: Mapping[str, Tensor]) -> None:
    with new_folder(folder) as temporary:
        for kind, file in FILES.items():
            part = _part(state, kind)
            if part or kind != "average":
                safetensors.torch.save_file(part, temporary / f"{file}.safetensors")
        _write_state(temporary, step)


def _write_state(folder: Path, step: int) -> None:
    state = json.dumps(State(step, checksums_of(folder))._asdict(), indent=1)
    (folder / "state.json").write_text(state)


def _part(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): t for name, t in state.items() if name.startswith(f"{kind}.")}


def _refuse_ruined(step: int, state: Mapping[str, Tensor]) -> None:
    """A finite loss may still have had a gradient that is not: such weights must not take a good checkpoint's place."""
    weights = _part(state, "objective")
    local = {name: t.to_local() if is_shard(t) else t for name, t in weights.items()}  # type: ignore[attr-defined]
    ruined = [name for name, tensor in local.items() if not tensor.isfinite().all()]
    if ruined:
        raise HarvestError(
            f"step {step} left values that are not finite in {len(ruined)} weights (first: {ruined[0]}), so it was not "
            "saved; the last checkpoint is from before. Lower --optim.lr, set --optim.max-grad-norm 1, or use "
            "--loop.precision fp32."
        )


def _tidy(folder: Path, keep_last: int) -> None:
    for old in _checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    for leftover in folder.glob(".step-*"):  # of a save that was killed
        shutil.rmtree(leftover)


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


# ---- reading -----------------------------------------------------------------------------------------------------


def load_checkpoint(
    run: Path,
    *,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> int | None:
    """Fill objective, optimizer and average from the newest whole checkpoint of a run, and give its step; None without
    one. Every rank must call it.

    HarvestError where there are checkpoints and all are damaged.
    """
    with sync_errors():
        if world_rank_size()[0] == 0:
            _set_damaged_aside(run / "checkpoints")
    checkpoints = _checkpoints(run / "checkpoints")
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    load = _load_shares if (newest / "state").is_dir() else _load_whole
    load(newest, objective, optimizer, average)
    return _step_of(newest)


def _set_damaged_aside(folder: Path) -> None:
    """Rename the newest checkpoints that are damaged, so that the newest left is whole."""
    checkpoints = _checkpoints(folder)
    damaged: list[tuple[Path, HarvestError]] = []
    while checkpoints:
        try:
            _check_whole(checkpoints[-1])
            break
        except HarvestError as error:
            damaged.append((checkpoints.pop(), error))
    if damaged and not checkpoints:
        raise HarvestError(
            f"{damaged[0][1]}. {folder} has no whole checkpoint: restore one, or remove the folder to start afresh"
        )
    for path, what in damaged:
        aside = path.with_name(f"damaged-{path.name}")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        except OSError as reason:
            raise HarvestError(f"{what}. {path} cannot be renamed: {reason.strerror}") from reason
        say(f"{what}. It is kept as {aside.name}; going on from {checkpoints[-1].name}")


def _check_whole(folder: Path) -> None:
    """HarvestError unless a checkpoint's files are those that were written."""
    state: State = read_settings(State, folder / "state.json")
    if state.step != _step_of(folder):
        raise HarvestError(f"{folder / 'state.json'} is of step {state.step}")
    if not state.checksums:
        raise HarvestError(f"{folder / 'state.json'} has no checksums")
    check_checksums(folder, state.checksums)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _load_whole(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    kinds = [kind for kind in FILES if kind != "average" or average is not None]
    try:
        found = {
            f"{kind}.{name}": tensor
            for kind in kinds
            for name, tensor in safetensors.torch.load_file(folder / f"{FILES[kind]}.safetensors").items()
        }
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(folder, error) from error
    own = objective.state_dict()
    weights = _part(found, "objective")
    cut = {name: shard_like(t, own[name]) if name in own else t for name, t in weights.items()}
    load_strictly(objective, cut, source=str(folder))
    state = _state(objective, optimizer, average, known=found)
    _check_names(folder, state, found)
    with torch.no_grad():
        for name, tensor in state.items():
            if not name.startswith("objective."):
                tensor.copy_(shard_like(found[name], tensor))


def _load_shares(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        known = FileSystemReader(folder / "state").read_metadata().state_dict_metadata
        state = _state(objective, optimizer, average, known=known)
        _check_names(folder, state, known)
        _read_shares(folder, state, no_dist=world_rank_size()[1] == 1)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(folder, error) from error
    except CheckpointException as error:
        raise _unreadable(folder, _told(error)) from error


def _read_shares(folder: Path, state: dict[str, Tensor], *, no_dist: bool) -> None:
    """Fill these tensors, by their names, with what ranks wrote together."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():  # that one process loads alone is meant so
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(state, storage_reader=FileSystemReader(folder / "state"), no_dist=no_dist)  # type: ignore[arg-type]


def _check_names(folder: Path, own: Mapping[str, object], found: Mapping[str, object]) -> None:
    wrong = sorted(own.keys() ^ found.keys())
    if wrong:
        raise HarvestError(
            f"{folder} does not hold this run's state; only one of both has {', '.join(wrong[:12])}"
        )


def _told(error: CheckpointException) -> str:
    """What went wrong on each rank that failed, without its traceback."""
    return "; ".join(f"process {rank}: {why}" for rank, (why, _) in error.failures.items())


def _unreadable(folder: Path, error: Exception | str) -> HarvestError:
    return HarvestError(f"{folder} cannot be read: {error}. Remove it to go on from the one before.")


def newest_weights(run: Path) -> dict[str, Tensor]:
    """The objective's weights in a run's newest checkpoint, whatever its optimizer; nothing where there is none."""
    checkpoints = _checkpoints(run / "checkpoints")
    if not checkpoints:
        return {}
    newest = checkpoints[-1]
    _check_whole(newest)
    try:
        if not (newest / "state").is_dir():
            return safetensors.torch.load_file(newest / "weights.safetensors")
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        known = FileSystemReader(newest / "state").read_metadata().state_dict_metadata
        state = {
            name: torch.empty(kind.size, dtype=kind.properties.dtype)
            for name, kind in known.items()
            if name.startswith("objective.") and isinstance(kind, TensorStorageMetadata)
        }
        _read_shares(newest, state, no_dist=True)
        return _part(state, "objective")
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(newest, error) from error


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first. Temporary folders of a killed save start with a dot."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name))
