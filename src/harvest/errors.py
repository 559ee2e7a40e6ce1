"""The errors that a user can mend. Apart from `interfaces`, so that a command can fail without importing PyTorch."""

from __future__ import annotations

import importlib.util


class HarvestError(Exception):
    """A mistake the user can mend. The command line prints its message and no traceback."""


class RunStopped(HarvestError):
    """A signal stopped a run; it is saved and can go on."""

    def __init__(self, message: str, *, signal: int = 2) -> None:
        super().__init__(message)
        self.code = 128 + signal
        """The exit code of a process that this signal ended: 130 for Ctrl-C, 143 for SIGTERM."""


def need_torch(what: str) -> None:
    """HarvestError, which says that `what` needs PyTorch, where that is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise HarvestError(
            f"{what} needs PyTorch, which is not installed: pip install 'harvest-video[torch]'"
        )
