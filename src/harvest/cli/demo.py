"""`harvest demo`: the whole method in minutes."""

from pathlib import Path

from harvest.cli.parsing import run


def demo_command(args: list[str]) -> None:
    def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
        """Watch an image model that cannot tell left from right become a video model that can.

        $ harvest demo
        $ harvest demo --out /tmp/demo

        Args:
            out: Folder for the mini-world, the run, report.html, demo.json and the model. Goes on if it was stopped.
            seed: Seed of the training run.
        """
        from harvest.demo import run_demo

        run_demo(out, seed=seed)

    run(demo, args)
