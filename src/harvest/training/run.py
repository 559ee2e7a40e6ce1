"""What stands around the training loop: claiming a run folder, stopping, lists of broken videos, the finished model."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from torch import nn

from harvest.data.dataset import Refused
from harvest.files import PART, write_file
from harvest.interfaces import HarvestError
from harvest.model.adaptation import merge
from harvest.model.folder import save_model
from harvest.model.inflation import blend
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import World, barrier, merge_over_ranks, sync_errors
from harvest.progress import say
from harvest.settings import differences, read_settings, to_json
from harvest.training.prepare import Loader

if TYPE_CHECKING:
    from harvest.config import RunConfig


def claim(run: Path, config: RunConfig, here: World) -> None:
    """Write config.json into a new run folder, or see that the folder holds this very run."""
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
    elif run.exists() and any(inside.suffix != PART for inside in run.iterdir()):
        raise HarvestError(f"{run} is not empty and holds no run: give another folder with --out")
    barrier()  # nobody may find the files that the main rank writes now
    with sync_errors():
        if here.is_main:
            try:
                write_file(path, to_json(config))
            except OSError as error:
                raise HarvestError(f"cannot write into {run}: {error.strerror}") from error


@dataclass
class Stop:
    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask the loop to finish its step and save; a second Ctrl-C ends at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True
        say("finishing this step and saving; press Ctrl-C again to end at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
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
    return {id: Refused(**why) for id, why in json.loads(path.read_text()).items()}


def write_broken(run: Path, loader: Loader, here: World) -> None:
    """Add what this process and the others could not read to the run's broken.json, by id with its reason."""
    found = merge_over_ranks({id: (why.reason, why.position) for id, why in loader.broken.items()})
    with sync_errors():
        if here.is_main and found:
            known, path = read_broken(run), run / "broken.json"
            for id, (reason, position) in found.items():
                known.setdefault(id, Refused(reason, position))
            write_file(path, json.dumps({id: why._asdict() for id, why in known.items()}, indent=1))


def finish(
    run: Path,
    config: RunConfig,
    objective: nn.Module,
    tokenizer: Tokenizer | None,
    image_model: VideoTextModel | None,
    loader: Loader,
) -> None:
    """Write the model folder, blended with the image model if asked for, and the report of broken videos."""
    model = cast(VideoTextModel, objective.model)
    merge(model)
    if config.blend < 1:
        assert image_model is not None  # seen to before the first step
        blend(image_model.to(next(model.parameters()).device), model, video_ratio=config.blend)
    save_model(
        run / "model",
        model,
        tokenizer,
        head=getattr(objective, "head", None),
        notes={"recipe": config.recipe, "started_from": config.start.model},
    )
    if (run / "broken.json").exists():
        broken = json.loads((run / "broken.json").read_text())
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
