"""How the farm's processes behave: none outlives its parent, threads don't wait for each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_LOOK_S = 1.0


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when its parent dies, even by kill -9. Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)


def end_without(parent: int, *, grace_s: float) -> None:
    """Watch the parent, and end this process when it has died: by SIGTERM, and after the grace for good.

    For processes whose library may not listen yet when the kernel tells them, or whose parent may be
    dead before they can ask the kernel.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def take_short_turns() -> None:
    """Let a thread that waits for the interpreter have it after half a millisecond rather than five.

    A statement on SQLite takes a tenth of that, and each gives the interpreter away: a thread with
    twenty of them would wait for the others twenty times.
    """
    sys.setswitchinterval(0.0005)
