"""The `harvest` command: parse, call, print.

Each command is a module, imported when it is called, so that `--help` answers at once.
"""

import importlib
import os
import sys

from harvest import __version__
from harvest.cli.encodings import write_in_any_encoding
from harvest.cli.parsing import nearest, run
from harvest.errors import HarvestError, RunStopped, need_torch
from harvest.launched import end_with_launcher

GROUPS = {
    "search your videos": {
        "index": "index folders of videos, or bring their library up to date",
        "search": "find moments in a library by a sentence, a picture or a clip",
        "moments": "a score for every second of one video, and its curve",
        "serve": "a library over HTTP, with a page in the browser",
    },
    "train": {
        "demo": "an image model becomes a video model, in minutes, with a report",
        "recipes": "list the training recipes",
        "dataset": "list published training sets, or write a manifest of one",
        "check": "find broken, duplicate, short and silent clips of a manifest",
        "prepare": "pack a manifest's clips into tar shards that training reads fast",
        "encode-texts": "encode a run's captions once, before it starts",
        "plan": "what a run will take: memory, clips a second, hours, workers",
        "train": "run a recipe, or resume a run",
        "adapt": "an image model becomes a video model by videos without captions",
    },
    "evaluate": {
        "evaluate": "retrieval, multiple choice, recognition, question answering",
        "benchmark": "what a benchmark's files lack, and a score by its protocol",
        "probe": "train a head on a frozen model's features",
        "compare": "which differences between two cards exceed their intervals",
    },
    "models and tools": {
        "convert": "a Harvest model folder from CLIP, SigLIP or ViCLIP weights",
        "export": "a model for sentence-transformers, transformers or ONNX",
        "push": "a model folder on the Hugging Face hub, with a model card",
        "blend": "average the weights of an image model and its video model",
        "miniworld": "write the generated clips of the mini-world",
        "bench": "measure this machine: the training step, reading, search",
        "completions": "let bash, zsh or fish complete commands, options and recipes",
        "version": "the versions that a report of a fault should name",
    },
}
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}
"""Every command, and what it does. The options of `harvest NAME` are the arguments of `harvest.cli.NAME.NAME_command`;
a command that looks at its arguments first has `main(args)` instead. - is read as _."""

WITHOUT_TORCH = ("index", "search", "serve", "version")
"""Commands that need no PyTorch: those of a library run on an ONNX export too."""

_QUIET = ("-q", "--quiet")
_SHORT = {"-o": "--out", "-m": "--model", "-k": "--k"}


def about() -> str:
    """The text of `harvest --help`."""
    groups = "\n".join(
        f"\n{title}:\n" + "\n".join(f"  {name:<12}  {what}" for name, what in commands.items())
        for title, commands in GROUPS.items()
    )
    return (
        f"harvest {__version__}: turn an image-text model into a video-text model, and use it\n\n"
        f"usage: harvest COMMAND [options]        harvest COMMAND --help for examples\n{groups}\n\n"
        "Every command takes -q, --quiet: results and errors alone, without progress.\n"
        "-o is short for --out, -m for --model, -k for --k.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code, where it is not one of several processes that torchrun started.

    A user's mistake is one message on stderr and code 2, what the machine refuses (a full disk) code 1, and a
    run that was stopped and saved code 130, or 143 where SIGTERM stopped it.
    """
    write_in_any_encoding()
    if argv is None:
        end_with_launcher()  # before what takes seconds to import
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
    rest = [_SHORT.get(arg, arg) for arg in args[1:]]
    if any(arg in _QUIET for arg in rest):
        from harvest.progress import set_quiet

        set_quiet(True)
        rest = [arg for arg in rest if arg not in _QUIET]
    try:
        if args[0] not in WITHOUT_TORCH:
            need_torch(f"harvest {args[0]}")
        name = args[0].replace("-", "_")
        module = importlib.import_module(f"harvest.cli.{name}")
        if hasattr(module, "main"):
            module.main(rest)
        else:
            run(getattr(module, f"{name}_command"), rest, prog=f"harvest {args[0]}")
    except HarvestError as error:
        print(f"harvest: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunStopped) else 2
    return 0
