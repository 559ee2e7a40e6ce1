"""`harvest export`: a model in the format of another library."""

from pathlib import Path
from typing import Annotated, Literal

from harvest.cli.parsing import run


def export_command(args: list[str]) -> None:
    import tyro

    def export(
        model: Annotated[str, tyro.conf.Positional],
        out: Annotated[Path, tyro.conf.Positional],
        /,
        format: Literal["transformers"] = "transformers",
    ) -> None:
        """Write a model for other libraries (docs/export.md).

        $ harvest export runs/demo/model exported

        Args:
            model: Model folder, or any source that `harvest convert` takes.
            out: The folder to write.
            format: transformers: a model folder that also opens in transformers and sentence-transformers.
        """
        from harvest.export.hub import export_hub

        export_hub(model, out)
        print(f"model: {out}")

    run(export, args)
