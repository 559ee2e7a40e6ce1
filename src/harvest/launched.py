"""A process that a launcher such as torchrun started ends with it. Needs no PyTorch, whose import takes seconds."""

from __future__ import annotations

import os
import signal
import sys


def end_with_launcher() -> None:
    """Get SIGTERM, which saves a run, when the launcher of this rank dies; without it a rank would live on alone."""
    if sys.platform != "linux" or "RANK" not in os.environ:
        return
    import ctypes

    PR_SET_PDEATHSIG = 1
    launcher = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it has died meanwhile
        os.kill(os.getpid(), signal.SIGTERM)
