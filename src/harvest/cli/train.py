"""`harvest train`: a recipe becomes a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from harvest.cli.parsing import heed_no_color, nearest, take_option
from harvest.errors import HarvestError

if TYPE_CHECKING:
    from harvest.config import RunConfig


HELP = """usage: harvest train RECIPE [--out RUN] [--tiny] [--SETTING VALUE ...]
       harvest train --config RUN/config.json [--out RUN] [--SETTING VALUE ...]

Runs a recipe; the same command goes on where a stopped run was.
With --eval.data the best model so far is kept in RUN/best.
`harvest train RECIPE --help` lists its settings, `harvest recipes` the recipes.
On several GPUs: torchrun --nproc-per-node 8 -m harvest train RECIPE …

  harvest train mini-harvest
  harvest train harvest-b16 --data.train results_10M_train.csv \\
      --data.videos /data/webvid --out runs/webvid
  harvest train harvest-b16 --start.model google/siglip-base-patch16-224 \\
      --data.train clips.jsonl --optim.lr 2e-5
  harvest train harvest-b16 --data.train clips.jsonl \\
      --eval.data val.jsonl choice.jsonl --eval.every 500
  harvest train harvest-l14 --data.train clips.parquet --blend 0.5 \\
      --loop.global-batch 512 --tuning.steps 0
"""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    out, args = take_option(args, "--out")
    config = config_of(args, command="train")
    from harvest.training.loop import train

    folder = train(config, Path(out) if out else Path("runs") / config.recipe)
    print(f"model: {folder}")


def config_of(args: list[str], *, command: str) -> "RunConfig":
    """The run that a recipe's name or --config FILE says, with the settings given besides."""
    import tyro

    from harvest.config import RunConfig, read_config
    from harvest.recipes import RECIPES, tiny

    path, args = take_option(args, "--config")
    if path is not None:
        config = read_config(Path(path))
    elif not args:
        raise HarvestError(f"{command} needs a recipe{nearest('', RECIPES)}")
    else:
        name, args = args[0], args[1:]
        if name not in RECIPES:
            raise HarvestError(f"no recipe {name!r}{nearest(name, RECIPES)}")
        config = tiny(name) if "--tiny" in args else RECIPES[name]()
        args = [a for a in args if a != "--tiny"]
    args = _with_none(config, args)
    heed_no_color()
    config = tyro.cli(
        RunConfig,
        args=args,
        default=config,
        prog=f"harvest {command} {config.recipe}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    sizes = [arg for arg in args if arg.startswith("--start.scratch.")]
    if sizes and config.start.model != "scratch":
        raise HarvestError(
            f"{sizes[0]} is for a model from scratch; the sizes of {config.start.model} (start.model) are its own"
        )
    return config


def _with_none(config: "RunConfig", args: list[str]) -> list[str]:
    """`none`, however it is written, as each setting has it: None, or an empty name (data.images)."""
    found: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
        name = flag or (found[-1] if found else "")
        if value.lower() == "none" and name.startswith("--"):
            arg = f"{flag}{equals}{_none_of(config, name, typed=value)}"
        found.append(arg)
    return found


def _none_of(config: "RunConfig", flag: str, *, typed: str) -> str:
    """What stands for nothing in the setting behind a flag; what was typed where it always has a value."""
    import dataclasses
    import types
    import typing

    *parts, last = flag.removeprefix("--").replace("-", "_").split(".")
    owner: object = config
    for part in parts:
        owner = getattr(owner, part, None)
    if not dataclasses.is_dataclass(owner):
        return typed
    kind = typing.get_type_hints(type(owner)).get(last)
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and type(None) in typing.get_args(kind):
        return "None"
    defaults = {field.name: field.default for field in dataclasses.fields(owner)}
    return "" if kind is str and defaults[last] == "" else typed
