"""`harvest miniworld`."""

from pathlib import Path
from typing import Annotated

import tyro


def miniworld_command(
    out: Annotated[Path, tyro.conf.Positional], /, train: int = 20_000, seed: int = 0, workers: int = 2
) -> None:
    """Write the mini-world: captioned clips, questions and labels (docs/miniworld.md).

    $ harvest miniworld runs/world --train 12000

    Args:
        out: Folder to write into.
        train: Number of training clips.
        seed: Another seed is another world of the same kind.
    """
    from harvest.data.miniworld import MiniWorldConfig, write_miniworld
    from harvest.progress import bar

    with bar("drawing the mini-world") as progress:
        world = write_miniworld(
            out, MiniWorldConfig(seed=seed, train=train), progress=progress, workers=workers
        )
    print(f"manifests: {world.folder}")
