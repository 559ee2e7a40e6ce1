"""The `harvest` command: parse, call, print.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable

from harvest import __version__
from harvest.cli.bench import bench_command
from harvest.cli.clips import check_command, miniworld_command, prepare_command
from harvest.cli.models import blend_command, convert_command
from harvest.cli.parsing import nearest
from harvest.cli.scoring import benchmark_command, compare_command, evaluate_command, probe_command
from harvest.cli.searching import index_command, moments_command, search_command, serve_command
from harvest.cli.training import demo_command, plan_command, recipes_command, train_command

ABOUT = f"""harvest {__version__}: turn an image-text model into a video-text model, and use it

usage: harvest COMMAND [options]        harvest COMMAND --help for examples

  demo        the whole method in minutes: an image model becomes a video model, with a report
  recipes     list the training recipes
  check       look at every clip of a manifest: broken, duplicate, short, silent, and statistics on a page
  prepare     pack a manifest's clips, trimmed and scaled, into tar shards that training reads fast
  plan        what a run will take: memory, clips a second, hours, loader workers
  train       run a recipe, or go on with it: harvest train harvest-b16 --data.train clips.csv
  evaluate    zero-shot retrieval, multiple choice, recognition, question answering
  probe       what a frozen model knows: a head on features that are computed once
  benchmark   what a benchmark's files lack, and a score on it by its protocol
  compare     which differences between two models' cards are larger than their intervals
  index       index folders of videos, or bring their library up to date
  search      find moments in a library by a sentence, a picture or a clip
  moments     a score for every second of one video, and a picture of the curve
  serve       a library over HTTP, with a page in the browser
  convert     write a Harvest model folder from CLIP, SigLIP, OpenCLIP or ViCLIP weights
  blend       weights between an image model and its video model that keep most of both skills
  miniworld   write the generated clips of the mini-world
  bench       measure the training step on this machine
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code, where it is not one of several processes that torchrun started.

    A user's mistake is one message on stderr and code 2, what the machine refuses (a full disk) code 1, and a
    run that was stopped and saved code 130.
    """
    code = _told(list(sys.argv[1:] if argv is None else argv))
    if argv is None and "RANK" in os.environ:
        # Everything is written. At its own end Python would take gloo's groups apart while their threads run, which now
        # and then aborts a rank that has done all it had to.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _told(args: list[str]) -> int:
    """Run a command, and say in a sentence what went wrong."""
    try:
        code = _main(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("harvest: ended", file=sys.stderr)
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
        print(ABOUT)
        return 0
    if args[0] in ("-V", "--version"):
        print(f"harvest {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"harvest: no command {args[0]!r}{nearest(args[0], COMMANDS)}", file=sys.stderr)
        print(ABOUT, file=sys.stderr)
        return 2
    from harvest.interfaces import HarvestError, RunStopped  # here, since they bring torch

    try:
        COMMANDS[args[0]](args[1:])
    except HarvestError as error:
        print(f"harvest: {error}", file=sys.stderr)
        return 130 if isinstance(error, RunStopped) else 2
    return 0


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo_command,
    "recipes": recipes_command,
    "check": check_command,
    "prepare": prepare_command,
    "plan": plan_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "benchmark": benchmark_command,
    "compare": compare_command,
    "probe": probe_command,
    "index": index_command,
    "search": search_command,
    "moments": moments_command,
    "serve": serve_command,
    "convert": convert_command,
    "blend": blend_command,
    "miniworld": miniworld_command,
    "bench": bench_command,
}
