"""The `harvest` command: parse, call, print.

Each command is a module, imported when it is called, so that `--help` answers at once.
"""

import importlib
import os
import sys

from harvest import __version__
from harvest.cli.parsing import nearest
from harvest.errors import HarvestError, RunStopped

GROUPS = {
    "search your videos": {
        "index": "index folders of videos, or bring their library up to date",
        "search": "find moments in a library by a sentence, a picture or a clip",
        "moments": "a score for every second of one video, and a picture of the curve",
        "serve": "a library over HTTP, with a page in the browser",
    },
    "train": {
        "demo": "the whole method in minutes: an image model becomes a video model, with a report",
        "recipes": "list the training recipes",
        "check": "look at every clip of a manifest: broken, duplicate, short, silent, with a page of statistics",
        "prepare": "pack a manifest's clips, trimmed and scaled, into tar shards that training reads fast",
        "plan": "what a run will take: memory, clips a second, hours, loader workers",
        "train": "run a recipe, or resume it: harvest train harvest-b16 --data.train clips.csv",
    },
    "evaluate": {
        "evaluate": "zero-shot retrieval, multiple choice, recognition, question answering",
        "benchmark": "what a benchmark's files lack, and a score on it by its protocol",
        "probe": "what a frozen model knows: a head on features that are computed once",
        "compare": "which differences between two models' cards are larger than their intervals",
    },
    "models and tools": {
        "convert": "write a Harvest model folder from CLIP, SigLIP, OpenCLIP or ViCLIP weights",
        "blend": "weights between an image model and its video model that keep most of both skills",
        "miniworld": "write the generated clips of the mini-world",
        "bench": "measure the training step on this machine",
    },
}
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}
"""Every command, and what it does. `harvest NAME` calls `harvest.cli.NAME.NAME_command`, imported by that call."""

_MODULES = {
    "check": "clips",
    "prepare": "clips",
    "miniworld": "clips",
    "recipes": "training",
    "train": "training",
    "plan": "training",
}
"""Commands that do not have a module of their own yet, and where they are: remove a line with each split."""


def about() -> str:
    """The text of `harvest --help`."""
    groups = "\n".join(
        f"\n{title}:\n" + "\n".join(f"  {name:<10}  {what}" for name, what in commands.items())
        for title, commands in GROUPS.items()
    )
    return (
        f"harvest {__version__}: turn an image-text model into a video-text model, and use it\n\n"
        f"usage: harvest COMMAND [options]        harvest COMMAND --help for examples\n{groups}\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code, where it is not one of several processes that torchrun started.

    A user's mistake is one message on stderr and code 2, what the machine refuses (a full disk) code 1, and a
    run that was stopped and saved code 130.
    """
    code = _run_safely(list(sys.argv[1:] if argv is None else argv))
    if argv is None and "RANK" in os.environ:
        # Everything is written. A normal exit would tear down gloo's groups while their threads run, which
        # sometimes aborts a rank that has finished its work.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run_safely(args: list[str]) -> int:
    """Run a command; what went wrong is one sentence on stderr."""
    try:
        code = _main(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("harvest: interrupted", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader, such as `head`, has seen enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"harvest: {error}", file=sys.stderr)
        return 1


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(about())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"harvest {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"harvest: no command {args[0]!r}{nearest(args[0], COMMANDS)}", file=sys.stderr)
        print(about(), file=sys.stderr)
        return 2
    name = args[0]
    try:
        module = importlib.import_module(f"harvest.cli.{_MODULES.get(name, name)}")
        getattr(module, f"{name}_command")(args[1:])
    except HarvestError as error:
        print(f"harvest: {error}", file=sys.stderr)
        return 130 if isinstance(error, RunStopped) else 2
    return 0
