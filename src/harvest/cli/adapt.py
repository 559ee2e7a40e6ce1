"""`harvest adapt`: a video model from videos without captions."""

from pathlib import Path
from typing import Annotated

from harvest.cli.parsing import asks_help, run

HELP = """usage: harvest adapt FOLDER [FOLDER ...] [--model MODEL] [--out RUN] [OPTIONS]

An image model learns from your videos, without captions, to say of a clip from
a twentieth to a fifth of its patches what it says of all of them. The model in
RUN is searched with words as before, and indexes faster with --budget.

  harvest adapt ~/Videos
  harvest index ~/Videos --model runs/adapted --budget 26

options:
  --model MODEL        image model to start from
                       (default google/siglip2-base-patch32-256)
  --out RUN            folder of the run (default runs/adapted); the same
                       command goes on where it was stopped
  --steps N            training steps (default 2000)
  --batch N            clips a step (default 64)
  --window-s SECONDS   length of the stretches of videos (default 4)
  --help-all           all options
"""


def adapt_command(args: list[str]) -> None:
    if asks_help(args, HELP):
        return
    import tyro

    from harvest.cli.defaults import DEFAULT_MODEL

    def adapt(
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

        $ harvest adapt ~/Videos --out runs/mine

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

    run(adapt, args)
