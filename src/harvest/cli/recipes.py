"""`harvest recipes`: the runs that Harvest knows."""

import textwrap

from harvest.cli.parsing import asks_help

RECIPES_HELP = """usage: harvest recipes

Lists the training recipes. Settings of one: harvest train RECIPE --help

  harvest recipes
"""


def recipes_command(args: list[str]) -> None:
    if asks_help(args, RECIPES_HELP):
        return
    from harvest.recipes import RECIPES

    margin = max(map(len, RECIPES)) + 2
    for name, recipe in RECIPES.items():
        what = (recipe.__doc__ or "").strip().splitlines()[0]
        lines = textwrap.wrap(what, width=80 - margin)
        print(f"{name:<{margin}}" + f"\n{'':<{margin}}".join(lines))
