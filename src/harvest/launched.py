"""A process that a launcher such as torchrun started ends with it. Needs no PyTorch, whose import takes seconds."""

from __future__ import annotations

import os
import signal
import sys


def is_launched() -> bool:
    """Whether a launcher started this process beside others."""
    return "RANK" in os.environ


def end_with_launcher() -> None:
    """Get SIGTERM, which saves a run, when the launcher of this rank dies; without it a rank would live on alone."""
    if sys.platform != "linux" or not is_launched():
        return
    import ctypes

    PR_SET_PDEATHSIG = 1
    launcher = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it has died meanwhile
        os.kill(os.getpid(), signal.SIGTERM)
