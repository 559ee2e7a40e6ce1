"""`harvest bench`: this machine, measured."""

from collections.abc import Callable
from pathlib import Path

from harvest.cli.parsing import print_json, run

WHAT = """usage: harvest bench WHAT [options]        harvest bench WHAT --help for examples

  all         the machine in one file: step, data and tokens, each for a short time
  step        the training step, with and without dropping patches
  data        reading clips: whole, by seeking, from shards; how long training waits for them
  tokens      ways of choosing tokens x budgets x batches, timed, with a plot
  accuracy    the same ways and budgets: what they teach in equal seconds, in the mini-world
  umt         the steps of UMT's two stages, and of the teacher's cache
  umt-accuracy  UMT's stages beside VideoMAE, from scratch and Harvest: what they teach in equal seconds
  vectors     search among a million made-up vectors"""


def bench_command(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(WHAT)
        return
    from harvest.interfaces import HarvestError

    commands: dict[str, Callable[[], Callable[..., None]]] = {
        "all": _all,
        "step": _step,
        "data": _data,
        "tokens": _tokens,
        "accuracy": _accuracy,
        "umt": _umt,
        "umt-accuracy": _umt_accuracy,
        "vectors": lambda: vectors_bench,
    }
    if args[0] not in commands:
        raise HarvestError(f"nothing to bench called {args[0]!r}: {', '.join(commands)}")
    run(commands[args[0]](), args[1:], prog=f"harvest bench {args[0]}")


# Each imports only when it is asked for: a machine that only trains has no video libraries.


def _all() -> Callable[..., None]:
    from harvest.bench.all import all_command

    return all_command


def _step() -> Callable[..., None]:
    from harvest.bench.step import step_command

    return step_command


def _data() -> Callable[..., None]:
    from harvest.bench.data import data_command

    return data_command


def _tokens() -> Callable[..., None]:
    from harvest.bench.tokens import tokens_command

    return tokens_command


def _accuracy() -> Callable[..., None]:
    from harvest.bench.accuracy import accuracy_command

    return accuracy_command


def _umt_accuracy() -> Callable[..., None]:
    from harvest.bench.umt_accuracy import umt_accuracy_command

    return umt_accuracy_command


def _umt() -> Callable[..., None]:
    from harvest.bench.umt import umt_command

    return umt_command


def vectors_bench(out: Path = Path("runs/vectors"), count: int = 1_000_000, width: int = 512) -> None:
    """Search among made-up vectors: times, recall@10 against exact search, memory. Run twice: see --out.

    Args:
        out: Folder for the library. One that is filled already is only asked: its memory is then that of searching.
        count: Vectors.
        width: Of each.
    """
    from harvest.bench.vectors import measure_vectors
    from harvest.progress import bar

    with bar("filling") as progress:
        figures = measure_vectors(out, count=count, width=width, progress=progress)
    print_json(figures)
