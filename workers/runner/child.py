"""One child process per job, forked from a preloaded parent that has never touched CUDA.

The child has its own process group and session, and dies with its parent, taking its descendants along.
It prints to a pipe (the job's log) and sends its result through another. It may do what its
:class:`Sandbox` allows, and its messages are untrusted: nothing it does can harm the worker. Between the
two sits a guard, which never reads untrusted input (``workers.sandbox.guard``).

Children that share a CPU are :class:`Siblings`: one that measures may have the others paused.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from farm import logs
from farm.errors import (
    ChildDied,
    ChildFilledDisk,
    ChildOutOfMemory,
    ChildTimedOut,
    FarmError,
    SandboxMissing,
    StageFault,
    StageInterrupted,
)
from farm.specs import durations
from workers import signals
from workers.runner.child_events import ChildEvent, Line, StageProgressed, Tick
from workers.runner.forks import processes
from workers.runner.inside import Link, main
from workers.runner.printed import Printed
from workers.runner.siblings import Siblings
from workers.sandbox import Sandbox, guard, messages, tree

_TICK_S = 0.1


_PRELOAD_S = 600.0


_PIPE_BYTES = 65536


_END_S = 2.0  #: for the guard to kill the job's processes, before it is killed itself


#: How long one child may keep the others paused, in total.
_QUIET_S = 600.0


#: multiprocessing's exit code for a process whose fork server is gone; our children never exit with it.
_LOST = 255


_CRASHED = (
    "a native library crashed, and most crashes recur with the same model; another precision or "
    "runtime may avoid it. The end of the job's log shows where"
)


_TAMPERED = (
    "no stage of the farm does that: if the worker's packages are intact (pip check), treat the model as "
    "hostile"
)


#: What to do about a signal that isn't a crash.
_HINTS: dict[int, str] = {
    signal.SIGBUS: "look for a full disk under the worker's FARM_HOME or in /dev/shm, then: farm retry",
    signal.SIGILL: "a library uses instructions that the worker's CPU lacks: install a build for it",
    signal.SIGXCPU: "raise the limit of CPU time that the worker runs under (ulimit -t)",
    signal.SIGXFSZ: "raise the limit of a file's size that the worker runs under (ulimit -f)",
}


@cache
def await_preload() -> None:
    """Wait, once, until the fork server has imported its modules and can start a child."""
    with Child(_nothing, None, timeout_s=_PRELOAD_S):
        pass  # its start waits for the fork server


def _no_forks() -> StageInterrupted:
    """The fork server is gone: the next child starts another, which has to import everything again."""
    await_preload.cache_clear()
    return StageInterrupted("the process that jobs are forked from was killed from outside")


def _nothing(_argument: None, _link: Link) -> None:
    return None


class Child:
    """A function that runs in its own process.

    Parameters:
        function: module-level; takes ``argument`` and the link to its worker, returns JSON.
        memory_bytes: limit of its address space's data, or None.
        siblings: the children it shares the CPU with; none by default.
        sandbox: what it may do; by default, all that its worker may.
        log_bytes: how much of its output is kept.
    """

    def __init__(
        self,
        function: Callable[[Any, Link], Any],
        argument: Any,
        *,
        timeout_s: float,
        memory_bytes: int | None = None,
        siblings: Siblings | None = None,
        sandbox: Sandbox | None = None,
        log_bytes: int = 8 * 2**20,
    ) -> None:
        self._timeout_s = timeout_s
        self._siblings = siblings or Siblings()
        self._wants_quiet = False
        self._quiet_since: float | None = None
        self._quiet_left_s = _QUIET_S
        self._log, log = processes.Pipe(duplex=False)
        self._messages, messages_end = processes.Pipe()
        self._told, told = processes.Pipe(duplex=False)
        self._process = processes.Process(
            target=main,
            args=(
                *(function, argument, log, messages_end, told, memory_bytes, sandbox),
                logs.handled(),
            ),
            daemon=False,
        )
        try:
            self._process.start()
        except (EOFError, ConnectionError) as err:  # it was killed while it forked this child
            for end in (self._log, log, self._messages, messages_end, self._told, told):
                end.close()
            raise _no_forks() from err
        assert self._process.pid is not None
        self._pid, self._born = self._process.pid, tree.born(self._process.pid)
        for end in (log, messages_end, told):
            end.close()
        self._inbox = messages.Inbox()
        self._printed = Printed(log_bytes)
        self._result: tuple[str, Any] | None = None
        self._guard_said: dict[str, str | None] = {}
        self._siblings.enter(self)

    @property
    def pid(self) -> int:
        """Its guard's, whose descendants do the work."""
        return self._pid

    def events(self) -> Iterator[ChildEvent]:
        """Yield what the child prints and reports until it has ended, and a tick at least every 100 ms.

        Raises:
            ChildTimedOut: the child took too long and was killed.
            StageFault: the child sent what no stage sends and was killed.
        """
        deadline = time.monotonic() + self._timeout_s
        sources = [self._log, self._messages]
        # A child that has closed its pipes may still run forever.
        while sources or self._process.is_alive():
            # Before its pipes: whoever follows may take long over a tick, and it says its last meanwhile.
            has_ended = not self._process.is_alive()
            # Past its rate limit, output waits in the pipe and blocks the child.
            heard = [one for one in sources if self._may_read(one)]
            awaited = [one.fileno() for one in heard] if sources else [self._process.sentinel]
            readable, _, _ = select.select(awaited, [], [], _TICK_S)
            ready = [one for one in heard if one.fileno() in readable]
            for source in ready:
                news = self._read(source)
                if news is None:
                    sources.remove(source)
                else:
                    yield from news
            self._give_quiet()
            self._siblings.keep_quiet(self)
            yield Tick()
            if time.monotonic() > deadline:
                self.end()
                yield from self._last_printed()
                raise ChildTimedOut(
                    f"the stage ran longer than {durations.told(self._timeout_s)} and was killed"
                )
            if has_ended and not ready and heard == sources:
                break  # only an escaped process could still hold the pipe open
        yield from self._last_printed()
        self._hear_guard()

    def _last_printed(self) -> Iterator[Line]:
        last = self._printed.end()
        if last:
            yield Line(text=last)

    def _may_read(self, source: Connection) -> bool:
        return (self._printed if source is self._log else self._inbox).may_read()

    def _give_quiet(self) -> None:
        """Pause the others when this child asks for it, within its total allowance."""
        at = time.monotonic()
        if self._wants_quiet and (self._quiet_left_s <= 0 or self._siblings.pause_others(self)):
            self._wants_quiet = False
            self._quiet_since = at
            # A child that doesn't listen must not block its worker.
            if select.select([], [self._messages], [], 0)[1]:
                with suppress(OSError):  # it died waiting
                    self._messages.send_bytes(b"quiet")
        if self._quiet_since is not None and at - self._quiet_since > self._quiet_left_s:
            self._end_quiet()

    def _end_quiet(self) -> None:
        if self._quiet_since is not None:
            self._quiet_left_s -= time.monotonic() - self._quiet_since
            self._quiet_since = None
        self._siblings.resume(self)

    def _read(self, source: Connection) -> list[ChildEvent] | None:
        """The events from a source, or None at its end."""
        try:
            data = os.read(source.fileno(), _PIPE_BYTES)
        except OSError:
            return None
        if not data:
            return None
        if source is self._log:
            text = self._printed.take(data)
            return [Line(text=text)] if text else []
        try:
            return [self._heard(*message) for message in self._inbox.take(data)]
        except messages.Malformed as err:
            self.end()
            raise StageFault(f"the stage's process sent {err}", hint=_TAMPERED) from err

    def _heard(self, kind: str, value: Any) -> ChildEvent:
        """Raises: Malformed"""
        if kind == "progress":
            phase, share = messages.progress_of(value)
            return StageProgressed(phase=phase, share=share)
        if kind == "quiet" and isinstance(value, bool):
            self._wants_quiet = value
            if not value:
                self._end_quiet()
            return Tick()
        if kind not in ("result", "error") or self._result is not None:
            raise messages.Malformed("a message of no kind")
        self._result = (kind, messages.error_of(value) if kind == "error" else value)
        return Tick()

    def _hear_guard(self) -> None:
        """Read why the job ended, as reported by the guard or by the child before it read any input."""
        if self._told.poll():
            for line in os.read(self._told.fileno(), _PIPE_BYTES).splitlines():
                self._guard_said |= json.loads(line)

    def result(self) -> Any:
        """What the function returned.

        Raises:
            FarmError: what the function raised, or how the process died.
        """
        if self._result is None or any(self._guard_said.values()):
            raise self._death()
        kind, value = self._result
        if kind == "error":
            raise value
        return value

    def wait(self) -> Any:
        """Wait for its end; return what the function returned.

        Raises:
            FarmError: what the function raised, or how the process died.
        """
        for _ in self.events():
            pass
        return self.result()

    def _death(self) -> FarmError:
        if self._guard_said.get("lacks"):
            return SandboxMissing(f"this worker can't enforce {self._guard_said['lacks']}")
        ended_for = self._guard_said.get("ended")
        if ended_for == guard.MEMORY:
            return ChildOutOfMemory("the stage exceeded the memory limit of a job and was killed")
        if ended_for == guard.DISK:
            return ChildFilledDisk()
        code = self._process.exitcode
        assert code is not None  # its events are over
        if code == _LOST:
            return _no_forks()
        name = signals.name_of(-code) if code < 0 else f"exit code {code}"
        if code < 0 and "ended" not in self._guard_said:
            return StageInterrupted(f"the process that watches the stage was killed ({name})")
        if ended_for == guard.OUTSIDE or -code in guard.ENDS:
            return StageInterrupted("the stage was ended from outside of the farm")
        if code == -signal.SIGKILL:
            return ChildOutOfMemory(
                "the stage's process was killed from outside, most likely for lack of memory"
            )
        return ChildDied(f"the stage's process died ({name})", hint=_HINTS.get(-code, _CRASHED))

    def pause(self) -> None:
        """Stop the child and its descendants; its guard keeps watching."""
        if self._is_there():
            tree.stop(self._pid)

    def resume(self) -> None:
        """Continue the child and its descendants."""
        if self._is_there():
            tree.resume(self._pid)

    def _is_there(self) -> bool:
        # For another thread's child: only the thread that started it may ask multiprocessing.
        return tree.born(self._pid) == self._born != ""

    def end(self) -> None:
        """Kill the child and its descendants."""
        # The guard knows the descendants. It may have been stopped: continue it.
        for sig in (signal.SIGTERM, signal.SIGCONT):
            with suppress(ProcessLookupError):
                os.kill(self._pid, sig)
        self._process.join(_END_S)
        if self._process.is_alive():
            left = tree.below(self._pid)
            self._process.kill()
            self._process.join(_END_S)  # with a limit: the kernel may hold it
            for one in left:  # reparented by now
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)

    def close(self) -> None:
        """Kill the child if it is alive, and free the worker's resources for it."""
        self._siblings.leave(self)
        if self._process.is_alive():
            self.end()
        for end in (self._log, self._messages, self._told):
            end.close()
        with suppress(ValueError):  # it is still alive
            self._process.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
