"""What measured a claim of Harvest's once. The command of each experiment stands beside its figures in docs/.

Run one from the root of the project, where Harvest is installed: `python -m experiments.selectors --help`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from harvest.cli.parsing import run
from harvest.errors import HarvestError


def main(function: Callable[..., None]) -> None:
    """Run an experiment with the arguments of the command line."""
    try:
        run(function, sys.argv[1:], prog=f"python -m experiments.{Path(sys.argv[0]).stem}")
    except HarvestError as error:
        sys.exit(f"experiments: {error}")
