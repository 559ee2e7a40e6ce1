"""The errors that a user can mend. Apart from `interfaces`, so that a command can fail without importing PyTorch."""

from __future__ import annotations


class HarvestError(Exception):
    """A mistake the user can mend. The command line prints its message and no traceback."""


class RunStopped(HarvestError):
    """The user stopped a run; it is saved and can go on."""
