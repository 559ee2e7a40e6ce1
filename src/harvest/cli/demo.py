"""`harvest demo`: the whole method in minutes."""

import sys
import webbrowser
from pathlib import Path


def demo_command(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Watch an image model that cannot tell left from right become one that can.

    $ harvest demo
    $ harvest demo --out /tmp/demo

    Args:
        out: Folder for the mini-world, the run, the model, the library, report.html and demo.json. A stopped demo resumes.
        seed: Seed of the training run.
    """
    from harvest.demo import run_demo

    report = run_demo(out, seed=seed)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _offer(report)


def _offer(report: Path) -> None:
    """Ask whether to open the report, where somebody is there to answer."""
    try:
        answer = input("\nopen the report in the browser? [Y/n] ")
    except EOFError:
        return
    if answer.strip().lower() in ("", "y", "yes"):
        webbrowser.open(report.resolve().as_uri())
