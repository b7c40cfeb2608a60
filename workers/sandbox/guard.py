"""The process between a worker and a job: starts the job, watches what it takes, ends all it has started.

It has read nothing of a stranger's. What it learns goes to the worker through a pipe that the job hasn't.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from workers.sandbox import kernel, limits, namespaces
from workers.sandbox.features import Mode
from workers.sandbox.namespaces import Processes
from workers.sandbox.policy import Sandbox

MEMORY, DISK = "memory", "disk"
_LOOK_S, _LOOK_AT_DISK_S = 0.25, 1.0
_HEARD = {signal.SIGCHLD, signal.SIGTERM}
#: Multiprocessing's exit code of a process whose fork server has gone: nobody else may say that.
_LOST = 255


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the guard has made for the job."""

    slot: int  #: a number that no other job has now
    own_pids: str  #: why the job isn't in a namespace of processes; empty when it is


def follow(
    job: Callable[[Surroundings], NoReturn],
    sandbox: Sandbox | None,
    told: int,
    close: Iterable[int],
) -> NoReturn:
    """Run the job in a child of this process; end as it ends, when nothing of it is left.

    Parameters:
        told: a pipe to the worker, for why the job was ended, if it was.
        close: descriptors that are the job's alone.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What loses its parent comes to this process, unless it has a namespace for that.
    kernel.prctl(kernel.SET_CHILD_SUBREAPER, 1)
    processes, surroundings = _surroundings(sandbox)
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        job(surroundings)
    for one in close:
        os.close(one)
    guard = _Guard(pid, processes, sandbox)
    why = guard.wait()
    with suppress(OSError):
        os.write(told, json.dumps({"ended": why}).encode() + b"\n")
    _end_as(guard.status)


def _surroundings(sandbox: Sandbox | None) -> tuple[Processes | None, Surroundings]:
    why, processes = "the sandbox is off", None
    if sandbox is not None and sandbox.mode is not Mode.OFF:
        try:
            processes, why = namespaces.own_processes(), ""
        except OSError as err:
            why = str(err)
    return processes, Surroundings(slot=os.getpid(), own_pids=why)


class _Guard:
    def __init__(self, pid: int, processes: Processes | None, sandbox: Sandbox | None) -> None:
        self._pid = pid
        self._processes = processes
        self._sandbox = sandbox
        self._looked_at_disk = time.monotonic()
        self._is_there = True
        self.status = 0

    def wait(self) -> str | None:
        """Return when the job and all that it started have ended: why it was ended, if it was."""
        why = None
        while not self._has_ended():
            heard = signal.sigtimedwait(_HEARD, _LOOK_S)
            if heard is None:
                why = why or self._exceeded()
            if why or (heard and heard.si_signo == signal.SIGTERM):
                self._kill()
        self._kill()
        return why

    def _has_ended(self) -> bool:
        if self._is_there:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._is_there, self.status = False, status
        return not self._is_there

    def _exceeded(self) -> str | None:
        sandbox = self._sandbox
        if sandbox is None or sandbox.mode is Mode.OFF:
            return None
        most = sandbox.limits.memory_bytes
        if most is not None and limits.uses_more_memory(self._descendants(), most):
            return MEMORY
        at, most = time.monotonic(), sandbox.limits.disk_bytes
        if most is not None and at - self._looked_at_disk > _LOOK_AT_DISK_S:
            self._looked_at_disk = at
            if limits.disk_used_bytes(sandbox.workdir, at_most=most) > most:
                return DISK
        return None

    def _descendants(self) -> list[int]:
        return limits.descendants(os.getpid())

    def _kill(self) -> None:
        """End the job and all that it started."""
        if self._is_there:  # its number is nobody else's until it was waited for
            os.kill(self._pid, signal.SIGKILL)
        if self._processes is not None:
            self._processes.kill()
        if self._is_there:
            _, self.status = os.waitpid(self._pid, 0)
            self._is_there = False
        if self._processes is not None:
            self._processes.wait()
            self._processes = None
        # Each that is ended hands on its children; until none is left.
        while left := self._descendants():
            for one in left:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            self._reap(left)

    def _reap(self, pids: Iterable[int]) -> None:
        for one in pids:
            with suppress(ChildProcessError):  # a child's child
                os.waitpid(one, os.WNOHANG)
        time.sleep(0.001)


def _end_as(status: int) -> NoReturn:
    """End this process as another has ended."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(signal.Signals))
        os.kill(os.getpid(), -code)
    os._exit(code - 1 if code == _LOST else code)
