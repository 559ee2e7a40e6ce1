"""`harvest compare`: which differences between two models are larger than their intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from harvest.cli.parsing import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from harvest.evaluation.comparison import Comparison


def compare_command(
    a: Annotated[Path, tyro.conf.Positional],
    b: Annotated[Path, tyro.conf.Positional],
    /,
    allow: tuple[str, ...] = (),
    json: bool = False,
) -> None:
    """Which differences between two models are larger than their intervals.

    Differences are judged by a paired bootstrap over videos.

    Figures without time and of another clip get no better or worse.

    $ harvest evaluate runs/a/model --data clips.jsonl --card cards/a
    $ harvest evaluate runs/b/model --data clips.jsonl --card cards/b
    $ harvest compare cards/a/card.json cards/b/card.json

    Args:
        a: A benchmark card, card.json or its folder.
        b: The card to compare with it; differences are B minus A.
        allow: Settings that may differ, e.g. num_frames; without it cards of different protocols are refused.
        json: Print the differences as JSON.
    """
    from rich.console import Console

    from harvest.evaluation.card import read_card
    from harvest.evaluation.comparison import compare as compare_cards

    cards = read_card(a), read_card(b)
    found = compare_cards(*cards, allow=allow)
    if json:
        print_json(found)
        return
    console = Console()
    for name, (card, _) in zip("AB", cards, strict=True):
        console.print(
            f"{name}: {card.model['source']}, weights {card.model['fingerprint'][:12]}", markup=False
        )
    console.print(_table(found))
    for line in found.other_settings:
        console.print(f"they also differ in {line}", markup=False)
    num = sum(one.interval is not None for one in found.differences)
    console.print(
        f"{cards[0][0].split.name}: each interval is of the difference when the same videos are drawn again for both;"
        f" of {num} figures one in twenty would stand out by chance.",
        markup=False,
    )


def _table(found: "Comparison") -> "Table":
    from rich.table import Table

    from harvest.evaluation.result import is_fraction, shown

    grid = Table(box=None, pad_edge=False)
    grid.add_column("figure", overflow="fold")
    for title in ("A", "B", "B - A", "95 % interval", ""):
        grid.add_column(title, justify="right")
    for one in found.differences:
        ends = ""
        if one.interval is not None:
            ends = f"{100 * one.interval[0]:+.1f} to {100 * one.interval[1]:+.1f}"
        unit = 100 if is_fraction(one.name) else 1
        grid.add_row(
            one.name,
            shown(one.name, one.a),
            shown(one.name, one.b),
            f"{unit * (one.b - one.a):+.1f}",
            ends,
            one.verdict,
        )
    return grid
