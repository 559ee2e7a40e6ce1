"""What stands around the training loop: claiming a run folder, stopping, lists of broken videos, the finished model."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import nn

from harvest.data.dataset import Refused
from harvest.data.manifest_rows import digest_of
from harvest.data.shards import ShardSet
from harvest.files import PART, write_file
from harvest.interfaces import Example, HarvestError
from harvest.model.adaptation import merge
from harvest.model.folder import save_model
from harvest.model.heads import Head
from harvest.model.inflation import blend
from harvest.model.video_text import VideoTextModel
from harvest.parallel import World, full_state, is_sharded, merge_over_ranks, sync_errors
from harvest.progress import say
from harvest.settings import differences, read_json, read_settings, to_json
from harvest.training.average import WeightAverage
from harvest.training.prepare import Loader, Prepared
from harvest.training.start import build_objective, start_model

if TYPE_CHECKING:
    from harvest.config import RunConfig


LOCK = ".lock"


@contextmanager
def claimed(run: Path, config: RunConfig, here: World) -> Iterator[None]:
    """Be the only run in a folder, which is new or holds this very run; HarvestError where it is not to be had.

    The lock ends with the process. Nothing else is written: a start that fails leaves no folder behind.
    """
    lock: int | None = None
    with sync_errors():
        _check_folder(run, config)
        if here.is_main:
            lock = _lock(run)
    try:
        yield
    finally:
        if lock is not None:
            if run.is_dir() and not any(inside.name != LOCK for inside in run.iterdir()):
                (run / LOCK).unlink()
                run.rmdir()
            os.close(lock)


def _check_folder(run: Path, config: RunConfig) -> None:
    path = run / "config.json"
    if path.exists():
        other = differences(read_settings(type(config), path), config, free=config.FREE_TO_CHANGE)
        if other:
            raise HarvestError(
                f"{run} holds another run; it differs in\n  " + "\n  ".join(other) + "\n"
                "Give another folder with --out, or remove this one to start afresh."
            )
    elif run.is_file():
        raise HarvestError(f"{run} is a file: give a folder with --out")
    elif run.exists() and any(inside.suffix != PART and inside.name != LOCK for inside in run.iterdir()):
        raise HarvestError(f"{run} is not empty and holds no run: give another folder with --out")


def _lock(run: Path) -> int:
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise HarvestError(f"cannot write into {run}: {error.strerror}") from error
    try:
        fcntl.lockf(
            lock, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # which forked workers that outlive a kill do not hold
    except (BlockingIOError, PermissionError):
        who = os.read(lock, 80).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise HarvestError(f"{run} is being trained by process {who}: wait for it, or end it") from None
    except OSError:
        say(f"the file system of {run} has no locks: see to it that no other run uses the folder")
        return lock
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
    return lock


def begin(run: Path, config: RunConfig, prepared: Prepared, here: World, first_step: int) -> None:
    """Write config.json and data.json, once a run is ready for its first step; see that its data is what it was.

    Says what is ahead.
    """
    with sync_errors():
        if here.is_main:
            check_data(run / "data.json", prepared, changed_ok=config.data.changed_ok)
            try:
                write_file(run / "config.json", to_json(config))
            except OSError as error:
                raise HarvestError(f"cannot write into {run}: {error.strerror}") from error
            say(_stages(config, first_step))


def check_data(path: Path, prepared: Prepared, *, changed_ok: bool) -> None:
    """Compare the rows of a run with those that it began with, and note them where it begins."""
    now = {"train": _digest(prepared.dataset.examples)}
    if prepared.pictures is not None:
        now["images"] = _digest(prepared.pictures.examples)
    if path.exists() and not changed_ok:
        before = read_json(path)
        for name, found in now.items():
            was = before.get(name)
            if was != found:
                then = was.get("rows", "other") if isinstance(was, dict) else "other"
                raise HarvestError(
                    f"data.{name} has changed since this run began: {then} rows then, "
                    f"{found['rows']} now, and their ids, videos, texts or labels differ. Give the rows of then; to go on "
                    "with these, --data.changed-ok; or another folder with --out."
                )
    write_file(path, json.dumps(now, indent=1))


def _digest(rows: Sequence[Example]) -> dict[str, Any]:
    if isinstance(rows, ShardSet):
        return {"rows": len(rows), "digest": rows.digest()}
    return digest_of(rows)


@dataclass
class Stop:
    asked: int = 0
    """The signal that asked for it; 0 for none."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and SIGHUP ask the loop to finish its step and save; a second Ctrl-C ends at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = number
        say("finishing this step and saving; press Ctrl-C again to end at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_broken(run: Path) -> dict[str, Refused]:
    """What this run could not read before it was stopped: it stays left out, so that the order is the same again."""
    path = run / "broken.json"
    if not path.exists():
        return {}
    try:
        known: dict[str, Refused] = read_settings(dict[str, Refused], path)
    except HarvestError as error:
        raise HarvestError(f"{error}. It says which videos this run leaves out: restore it") from error
    return known


def write_broken(run: Path, loader: Loader, here: World) -> None:
    """Add what this process and the others could not read to the run's broken.json, by id with its reason."""
    found = merge_over_ranks({id: (why.reason, why.position) for id, why in loader.broken.items()})
    with sync_errors():
        if here.is_main and found:
            known, path = read_broken(run), run / "broken.json"
            for id, (reason, position) in found.items():
                known.setdefault(id, Refused(reason, position))
            write_file(path, json.dumps({id: why._asdict() for id, why in known.items()}, indent=1))


class Ended(NamedTuple):
    """A model as a run ends with it."""

    model: VideoTextModel
    head: Head | None


def ended(
    config: RunConfig, prepared: Prepared, objective: nn.Module, average: WeightAverage | None
) -> Ended:
    """The model as the run would end with it now: averaged, adapters merged, blended with the image model if asked for.

    A copy, whole on this device also where the objective is sharded. Every rank must call it.
    """
    with average.in_place() if average is not None else nullcontext():
        if is_sharded(objective):  # a module cannot leave its shards: build it anew
            whole, device = full_state(objective), next(objective.parameters()).device
            model = start_model(config, prepared.captions).model
            objective = build_objective(config, model, prepared.given)
            objective.load_state_dict(whole)
            made = Ended(model.to(device), getattr(objective, "head", None))
        else:
            own = Ended(cast(VideoTextModel, objective.model), getattr(objective, "head", None))
            made = copy.deepcopy(own)
    merge(made.model)
    if config.blend < 1:
        assert prepared.image_model is not None  # seen to before the first step
        image_model = prepared.image_model.to(next(made.model.parameters()).device)
        blend(image_model, made.model, video_ratio=config.blend)
    return made


def finish(run: Path, config: RunConfig, prepared: Prepared, made: Ended, loader: Loader) -> None:
    """Write the model folder, and the report of broken videos."""
    tokenizer = prepared.tokenizer
    save_model(run / "model", made.model, tokenizer, head=made.head, notes=notes_of(config))
    if broken := read_broken(run):
        say(
            f"{len(broken)} of {len(loader.dataset)} videos could not be read; their places were taken by the "
            f"next in order. Names and reasons: {run / 'broken.json'}"
        )
    if loader.shortened:
        say(f"of {loader.shortened} long captions a part was shown (data.long_captions)")
    if loader.truncated and tokenizer is not None:
        say(
            f"{loader.truncated} captions were longer than {tokenizer.config.context_length} word pieces and were cut"
        )


def notes_of(config: RunConfig) -> dict[str, object]:
    """What the model folder says of the run."""
    notes: dict[str, object] = {"recipe": config.recipe, "started_from": config.start.model}
    if (
        config.vary.budgets and not config.tuning.steps
    ):  # at its end too it saw so many tubelets of a clip, never all
        notes["budgets"] = list(config.vary.budgets)
    return notes


def _stages(config: RunConfig, first_step: int) -> str:
    """What is ahead, before the first step."""

    def stage(steps: int, clips: int, ratio: float) -> str:
        seen = f"{ratio:.0%} of the tubelets dropped" if ratio else "all of each seen"
        return f"{steps:,} steps of {clips:,} clips, {seen}"

    loop, tuning = config.loop, config.tuning
    parts = [stage(loop.steps, loop.global_batch, config.selection_at(0).drop_ratio)]
    if tuning.steps:
        parts.append(stage(tuning.steps, tuning.global_batch or loop.global_batch, tuning.drop_ratio))
    resumed = f"; resumed after step {first_step:,}" if first_step else ""
    return f"training: {', then '.join(parts)}{resumed}"
