"""What every command needs of a command line: functions become parsers, options are read, results printed."""

import os
from collections.abc import Callable, Iterable

from harvest.errors import HarvestError


def run(function: Callable[..., None], args: list[str], *, prog: str) -> None:
    import tyro

    heed_no_color()
    # Settings that come as one dataclass are options like any other; a switch has the one form that changes it.
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    tyro.cli(function, args=args, prog=prog, config=config)


def heed_no_color() -> None:
    """Help without colours where NO_COLOR is set; tyro itself asks only whether it writes to a terminal."""
    import tyro

    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")


def asks_help(args: list[str], text: str) -> bool:
    """Whether a command's help is asked for, which is then printed: its basic options, without importing PyTorch.

    `--help-all` is for `run`, which lists every option.
    """
    if not {"-h", "--help"} & set(args):
        return False
    print(text, end="")
    return True


def nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `name VALUE` or `name=VALUE`, and the other arguments."""
    for place, arg in enumerate(args):
        if arg == name:
            if place + 1 == len(args):
                raise HarvestError(f"{name} needs a value")
            return args[place + 1], args[:place] + args[place + 2 :]
        if arg.startswith(name + "="):
            return arg[len(name) + 1 :], args[:place] + args[place + 1 :]
    return None, args


def print_json(value: object) -> None:
    import dataclasses
    import json

    print(json.dumps(dataclasses.asdict(value), indent=1, ensure_ascii=False))  # type: ignore[call-overload]


def printable(text: str) -> str:
    """Text for a terminal: control characters, which a file's name may hold, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
