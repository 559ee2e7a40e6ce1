"""`harvest push`: a model folder on the hub, with its model card."""

from pathlib import Path
from typing import Annotated

import tyro


def push_command(
    folder: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    /,
    licence: str | None = None,
    base_model: str | None = None,
    data: tuple[str, ...] = (),
    card: tuple[Path, ...] = (),
    private: bool = False,
    dry_run: bool = False,
    new_card: bool = False,
) -> None:
    """Write a model card and upload a model folder to the hub (docs/export.md).

    $ harvest push runs/mine user/my-model --dry-run
    $ harvest push runs/mine user/my-model --private

    Args:
        folder: Model folder, or the folder of a run that has one.
        name: Repository, user/name.
        licence: Licence as the hub writes it, such as apache-2.0.
        base_model: Name on the hub of the model that training began with, where the folder does not say.
        data: What it was trained on: names of published sets (`harvest dataset`), whose terms are added, or
            descriptions of several words. Without it, what the run's settings say.
        card: Benchmark cards of these weights, besides those in the folder.
        private: Only you see the repository.
        dry_run: Write the model card and list what would be uploaded.
        new_card: Write README.md anew where there is one, which is kept otherwise.
    """
    from harvest.export.push import Stated
    from harvest.export.push import push as push_folder

    stated = Stated(licence, base_model, data, card)
    print(push_folder(folder, name, stated, private=private, dry_run=dry_run, new_card=new_card))
