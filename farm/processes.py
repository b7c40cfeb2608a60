"""How the farm's processes behave: none outlives its parent, threads don't wait for each other, and a secret
isn't shown among their arguments."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_LOOK_S = 0.5
_PR_SET_PDEATHSIG = 1


def die_with_parent(sig: int = signal.SIGKILL, *, parent: int | None = None) -> None:
    """Ask the kernel to end this process when its parent dies, even by kill -9. Linux only.

    Parameters:
        parent: the parent's id, where it may be dead before this is called: then this process ends now.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), sig)


def end_with_parent(parent: int, *, grace_s: float) -> None:
    """End this process in order, by SIGTERM, when its parent dies, and without if that takes too long.

    Nobody else is left who would see that it hangs.

    Parameters:
        parent: the parent's id, which may be dead already.
    """

    def insist() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    die_with_parent(signal.SIGTERM, parent=parent)
    threading.Thread(target=insist, name="insists on the end", daemon=True).start()


def take_short_turns() -> None:
    """Let a thread that waits for the interpreter have it after half a millisecond rather than five.

    A statement on SQLite takes a tenth of that, and each gives the interpreter away: a thread with
    twenty of them would wait for the others twenty times.
    """
    sys.setswitchinterval(0.0005)


def hide_argument(secret: str) -> None:
    """Overwrite a secret among this process's arguments, which any user may list. Linux only."""
    with suppress(OSError, ValueError, IndexError):
        # Fields 48 and 49: where the kernel put the arguments at the start.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        said = secret.encode()
        if not said or not 0 < start < end:
            return
        at = ctypes.string_at(start, end - start).find(said)
        if at >= 0:
            ctypes.memset(start + at, ord("x"), len(said))
