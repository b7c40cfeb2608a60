"""The process between a worker and a job: starts the job, watches its usage, kills its descendants.

It never reads untrusted input. Its findings go to the worker through a pipe that the job doesn't hold.
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

from workers.sandbox import kernel, namespaces, tree, usage
from workers.sandbox.features import Mode
from workers.sandbox.namespaces import Processes
from workers.sandbox.policy import Sandbox

#: Why a job is killed. Whoever is outside ends its guard in order.
MEMORY, DISK, OUTSIDE = "memory", "disk", "outside"
_LOOK_S = 0.25
#: Counting files takes at most 1/20 of a guard's time.
_DISK_TIMES = 20
#: Sent by whoever ends processes in order, as a service manager does to all of a worker's at once.
ENDS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_HEARD = {signal.SIGCHLD, *ENDS}
#: multiprocessing's exit code for a process whose fork server is gone: nothing else may exit with it.
_LOST = 255


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the guard has set up for the job."""

    slot: int  #: unique among the running jobs
    own_pids: str  #: why the job has no PID namespace; empty when it has
    own_shm: bool  #: whether ``/dev/shm`` is private to the job


def follow(
    job: Callable[[Surroundings], NoReturn],
    sandbox: Sandbox | None,
    told: int,
    close: Iterable[int],
) -> NoReturn:
    """Run the job in a child of this process; exit as it exits, once none of its processes is left.

    Parameters:
        told: a pipe to the worker, for the reason if the job is killed.
        close: descriptors that only the job may hold.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Orphans are reparented to this process, unless the job has its own PID namespace.
    kernel.prctl(kernel.SET_CHILD_SUBREAPER, 1)
    processes, surroundings = _surroundings(sandbox)
    pid = os.fork()
    if pid == 0:
        # Not as Python would, by an exception within the stage.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        job(surroundings)
    for one in close:
        os.close(one)
    guard = _Guard(pid, processes, sandbox, own_shm=surroundings.own_shm)
    why = guard.wait()
    with suppress(OSError):
        os.write(told, json.dumps({"ended": why}).encode() + b"\n")
    _end_as(guard.status)


def _surroundings(sandbox: Sandbox | None) -> tuple[Processes | None, Surroundings]:
    why, processes, own_shm = "the sandbox is off", None, False
    if sandbox is not None and sandbox.mode is not Mode.OFF:
        own_shm = namespaces.own_shared_memory()
        try:
            processes, why = namespaces.own_processes(), ""
        except OSError as err:
            why = str(err)
    return processes, Surroundings(slot=os.getpid(), own_pids=why, own_shm=own_shm)


class _Guard:
    def __init__(
        self, pid: int, processes: Processes | None, sandbox: Sandbox | None, *, own_shm: bool
    ) -> None:
        self._pid = pid
        self._processes = processes
        self._sandbox = sandbox
        self._shared_memory = namespaces.SHM if own_shm else None
        self._looked = self._disk_next = time.monotonic()
        self._is_there = True
        self._why: str | None = None
        self.status = 0

    def wait(self) -> str | None:
        """Wait until the job and its descendants have ended; return why it was killed, if it was."""
        while not self._has_ended():
            heard = signal.sigtimedwait(_HEARD, _LOOK_S)
            # By the clock: a job may keep messages coming all the time.
            if time.monotonic() - self._looked >= _LOOK_S:
                self._why = self._why or self._exceeded()
                self._looked = time.monotonic()
            if heard and heard.si_signo in ENDS and not self._has_ended():
                self._why = self._why or OUTSIDE
            if self._why:
                self._kill()
        self._kill()
        return self._why

    def _has_ended(self) -> bool:
        while self._is_there and (pid := _ended_child()):
            if self._processes is not None and pid == self._processes.first:
                self._kill()  # and with it, its whole namespace
                break
            _, status = os.waitpid(pid, 0)
            if pid == self._pid:
                self._is_there, self.status = False, status
        return not self._is_there

    def _exceeded(self) -> str | None:
        sandbox = self._sandbox
        if sandbox is None or sandbox.mode is Mode.OFF:
            return None
        most = sandbox.limits.memory_bytes
        pids = tree.below(os.getpid())
        if most is not None:
            used = usage.memory_bytes(pids, file_system=self._shared_memory, most=most)
            if used > most:
                return MEMORY
        at, most = time.monotonic(), sandbox.limits.disk_bytes
        if most is not None and at >= self._disk_next:
            used = usage.disk_bytes(sandbox.workdir, pids, most=most)
            took = time.monotonic() - at
            self._disk_next = at + took * _DISK_TIMES
            if used > most:
                return DISK
        return None

    def _kill(self) -> None:
        """Kill the job and its descendants."""
        if self._is_there:  # its PID isn't reused before it is reaped
            os.kill(self._pid, signal.SIGKILL)
        if self._processes is not None:
            self._processes.kill()
        # Reap them all: a namespace's first process doesn't end before the guard's own children in it.
        while self._is_there or self._processes is not None:
            pid, status = os.waitpid(-1, 0)
            if pid == self._pid:
                self._is_there, self.status = False, status
            elif self._processes is not None and pid == self._processes.first:
                self._processes.close()
                self._processes = None
        # Each killed process passes its children on; repeat until none is left.
        while left := tree.below(os.getpid()):
            tree.send(left, signal.SIGKILL)
            self._reap(left)

    def _reap(self, pids: Iterable[int]) -> None:
        for one in pids:
            with suppress(ChildProcessError):  # a grandchild
                os.waitpid(one, os.WNOHANG)
        time.sleep(0.001)


def _ended_child() -> int:
    """The PID of a child that has ended and must be reaped; 0 without one."""
    with suppress(ChildProcessError):
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found.si_pid if found else 0
    return 0


def _end_as(status: int) -> NoReturn:
    """Exit as the process with this wait status did."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(signal.Signals))
        os.kill(os.getpid(), -code)
    os._exit(code - 1 if code == _LOST else code)
