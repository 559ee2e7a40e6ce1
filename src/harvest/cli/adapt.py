"""`harvest adapt`: a video model from videos without captions."""

from pathlib import Path
from typing import Annotated

import tyro

from harvest.cli.defaults import DEFAULT_MODEL


def adapt_command(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path = Path("runs/adapted"),
    model: str = DEFAULT_MODEL,
    steps: int = 2000,
    batch: int = 64,
    window_s: float = 4.0,
    compared: int = 200,
) -> None:
    """An image model becomes a video model by videos without captions.

    It says of a part of a clip's patches what the image model says of all.

    The model in --out is searched as before, and indexes faster with --budget.

    $ harvest adapt ~/Videos
    $ harvest index ~/Videos --model runs/adapted --budget 26

    Args:
        folders: Folders of videos, or single files.
        out: Folder of the run. The same command goes on where it was stopped.
        model: Image model to start from.
        steps: Training steps.
        batch: Clips a step.
        window_s: Length in seconds of the stretches that videos are cut into.
        compared: Stretches on which the model is compared with the image model at the end.
    """
    from harvest.adapting import adapting_run, agreement, write_stretches
    from harvest.errors import HarvestError
    from harvest.training.loop import train

    if steps < 1 or batch < 2 or window_s <= 0 or compared < 1:
        raise HarvestError(
            "expected --steps and --compared of at least 1, --batch of at least 2, --window-s above 0"
        )
    manifest = out.with_name(out.name + ".clips.jsonl")
    num = write_stretches(folders, manifest, window_s=window_s)
    print(f"{num:,} stretches of {window_s:g} s: {manifest}")
    config = adapting_run(model, manifest, steps=steps, batch=batch)
    folder = train(config, out)
    budgets = config.vary.budgets
    print(f"cosine with {model} that sees all frames, before and after:")
    for one in agreement(model, folder, manifest, budgets, compared):
        print(f"  {one.budget:>5} tubelets of a clip   {one.before:.3f}   {one.after:.3f}")
    print(f"model: {folder}\nharvest index FOLDER --model {out} --budget {budgets[0]}")
