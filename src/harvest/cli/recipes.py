"""`harvest recipes`: the runs that Harvest knows."""

import textwrap


def recipes_command() -> None:
    """List the training recipes. Settings of one: harvest train RECIPE --help

    $ harvest recipes
    """
    from harvest.recipes import RECIPES

    margin = max(map(len, RECIPES)) + 2
    for name, recipe in RECIPES.items():
        what = (recipe.__doc__ or "").strip().splitlines()[0]
        lines = textwrap.wrap(what, width=80 - margin)
        print(f"{name:<{margin}}" + f"\n{'':<{margin}}".join(lines))
