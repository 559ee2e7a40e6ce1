"""What the commands that score a model share: opening it, showing a result, writing it and its card."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from harvest.cli.options import ScoreOptions
from harvest.data.sampling import FrameOrder
from harvest.errors import HarvestError
from harvest.evaluation.card import ScoredRows, make_card, write_card
from harvest.evaluation.motion_truth import motion_truth
from harvest.evaluation.result import Result, table
from harvest.files import write_file
from harvest.interfaces import OnProgress
from harvest.machine import hardware
from harvest.model.folder import load_head
from harvest.model.heads import Head
from harvest.model.importing.pretrained import load_any
from harvest.model.importing.sources import find_local
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.parallel import world
from harvest.progress import bar, say

_ENCODING: dict[FrameOrder, str] = {
    "forward": "encoding",
    "reversed": "encoding, reversed",
    "shuffled": "encoding, shuffled",
    "one_frame": "encoding, one frame",
}
"""Titles of progress bars."""


def has_head(name: str, *, zero_shot: bool = False) -> bool:
    """Whether a model has the head of a task that it was fine-tuned for, and is to use it."""
    return not zero_shot and (find_local(name) / "head.json").is_file()


def open_model(
    name: str, *, zero_shot: bool = False, **options: Any
) -> tuple[VideoTextModel, Tokenizer | None, Head | None]:
    """A model as any command names it: mini-image, a run folder, a model folder, a hub name or a file of weights.

    `options` are those of `ImportOptions`, such as how texts are cut.
    """
    model, tokenizer, _ = load_any(name, **options)
    return model, tokenizer, load_head(find_local(name)) if has_head(name, zero_shot=zero_shot) else None


def score_and_give(
    score: Callable[[FrameOrder, OnProgress], Result],
    model: VideoTextModel,
    head: Head | None,
    options: ScoreOptions,
    *,
    with_motion_truth: bool,
    split: ScoredRows,
    source: str,
    typed: list[str],
) -> None:
    """Score a model on this process's device, with motion truth where asked for; the main rank shows the result, and
    writes it and its card where asked for.

    `score(frame_order, progress)` scores once; `source` names the model; `typed` is the command's name and what was
    typed behind it.
    """
    with world() as here:
        model.to(here.device)
        if head is not None:
            head.to(here.device)

        def shown(frame_order: FrameOrder) -> Result:
            with bar(_ENCODING[frame_order], quiet=not here.is_main) as progress:
                return score(frame_order, progress)

        result = motion_truth(shown) if with_motion_truth else shown("forward")
        if not here.is_main:
            return
    show(result, options.out, json=options.json)
    if options.card is not None:
        command = f"harvest {shlex.join(typed)}"
        made = make_card(result, split, model, head=head, source=source, command=command, hardware=hardware())
        write_card(options.card, made, result)
        say(f"card: {options.card / 'card.html'}")


def show(result: Result, out: Path | None, *, json: bool) -> None:
    """A result as people read it: the table, how it came about, what it means, and what it lacks; or as JSON.

    It is written to `out` too; the path is printed on standard error.
    """
    if json:
        print(result.to_json())
    else:
        console = Console()
        console.print(table(result))
        counts = ", ".join(
            f"{name.replace('_', ' ')} {count:,}" for name, count in result.counts.items() if count
        )
        for line in (counts, result.protocol, *result.findings):
            console.print(line, markup=False, highlight=False)
        for name, reason in list(result.missing.items())[:10]:
            console.print(f"not evaluated: {name}: {reason}", markup=False, highlight=False)
        if len(result.missing) > 10:
            console.print(f"and {len(result.missing) - 10:,} more, in --out and --card", highlight=False)
    if out is not None:
        write_file(out, result.to_json())
        say(f"written: {out}")


def refuse(flags: dict[str, Any], why: str) -> None:
    """HarvestError where one of the flags was given, as it would do nothing; `why` says what it needs or is for."""
    given = [flag for flag, value in flags.items() if value is not None and value is not False]
    if given:
        raise HarvestError(f"{', '.join(given)}: {why}")
