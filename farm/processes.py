"""Processes that don't outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when its parent dies, even by kill -9. Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if os.getppid() == 1 and os.environ.get("FARM_PARENT_PID", "1") != "1":
        # The parent died before we asked.
        os.kill(os.getpid(), sig)
