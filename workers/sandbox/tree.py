"""Finds, stops, continues and kills a process's descendants.

By descent alone: they may be in any session and process group. An orphan is reparented to the guard, or
to the first process of its namespace.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

#: At most this many passes look for processes started or continued meanwhile.
_PASSES, _PAUSE_S = 100, 0.001
_STOPPED, _ENDED = "Tt", "ZXx"
#: In an uninterruptible system call: it stops before it returns to user space.
_IN_A_CALL = "D"


def below(pid: int) -> dict[int, int]:
    """A process's descendants: PID → parent."""
    found: dict[int, int] = {}
    new = [pid]
    while new:
        made = {child: one for one in new for child in _children(one)}
        new = [one for one in made if one not in found]
        found |= made
    return found


def _children(pid: int) -> list[int]:
    made: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                made += map(int, (task / "children").read_text().split())
    return made


def born(pid: int) -> str:
    """A process's start time, which tells it from a later one with the same PID; empty when it has
    ended."""
    return _field(Path(f"/proc/{pid}"), 19)


def stop(guard: int) -> None:
    """Stop all processes of a guard's job, but neither the guard nor the namespace's first process.

    Processes that start meanwhile are stopped too; one that is continued by another still running is stopped
    again.
    """
    for _ in range(_PASSES):
        found = of_job(guard)
        running = {pid: parent for pid, parent in found.items() if _runs(pid)}
        if not running:
            return
        send(running, signal.SIGSTOP)
        time.sleep(_PAUSE_S)


def resume(guard: int) -> None:
    """Continue all processes of a guard's job."""
    send(of_job(guard), signal.SIGCONT)


def send(processes: dict[int, int], sig: signal.Signals) -> None:
    """Send a signal to processes (PID → parent), skipping those whose PID was reused."""
    family = processes.keys() | set(processes.values())
    for pid in processes:
        with suppress(OSError):
            _send(pid, family, sig)


def _send(pid: int, family: Iterable[int], sig: signal.Signals) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # before Linux 5.3, or in a container that refuses it
        os.kill(pid, sig)
        return
    try:
        # The PID may have been reused. An orphan was reparented within the family.
        if _parent(pid) in family:
            signal.pidfd_send_signal(handle, sig)
    finally:
        os.close(handle)


def of_job(guard: int) -> dict[int, int]:
    """All processes of a guard's job: PID → parent. Neither the guard, nor the namespace's first process."""
    found = below(guard)
    return {
        pid: parent
        for pid, parent in found.items()
        if parent != guard or not _is_first_of_namespace(pid)
    }


def _is_first_of_namespace(pid: int) -> bool:
    numbers = _of_status(pid, "NSpid").split()
    return len(numbers) > 1 and numbers[-1] == "1"


def _runs(pid: int) -> bool:
    state = _state(Path(f"/proc/{pid}"))
    if state not in _ENDED:
        return state not in _STOPPED + _IN_A_CALL
    # Its first thread may have ended before the others.
    with suppress(OSError):
        states = [_state(task) for task in Path(f"/proc/{pid}/task").iterdir()]
        return any(one not in _ENDED + _STOPPED + _IN_A_CALL for one in states)
    return False


def _state(process: Path) -> str:
    return _field(process, 0) or _ENDED[0]


def _field(process: Path, number: int) -> str:
    """A field of ``/proc/PID/stat``, counted from after the name."""
    with suppress(OSError, IndexError):
        text = (process / "stat").read_text(errors="replace")
        return text.rpartition(")")[2].split()[number]
    return ""


def _parent(pid: int) -> int:
    return int(_of_status(pid, "PPid") or 0)


def _of_status(pid: int, name: str) -> str:
    with suppress(OSError):
        # The process chooses its name, which may contain what Python takes for the end of a line.
        for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):
            if line.startswith(f"{name}:".encode()):
                return line.partition(b":")[2].decode().strip()
    return ""
