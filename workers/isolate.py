"""One child process a job, forked from a preloaded parent that has never touched CUDA.

The child has its own process group and session, dies with its parent, writes what it prints to a
pipe (the job's log), and leaves its result as a file. Nothing that it does can harm the worker.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import AuthenticationString, BaseProcess  # type: ignore[attr-defined]
from typing import Any

from farm import errors
from farm.errors import ChildDied, ChildOutOfMemory, ChildTimedOut, FarmError
from farm.processes import die_with_parent

_context = multiprocessing.get_context("forkserver")
_TICK_S = 0.1
_PRELOAD_S = 600.0
_PIPE_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a child printed."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a child is."""

    phase: str
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Nothing happened for a moment: time to look at the clock and the lease."""


Happening = Line | Progress | Tick
Report = Callable[[str, float | None], None]


def preload(modules: list[str]) -> None:
    """Start the fork server with these modules imported; children then start in milliseconds."""
    _context.set_forkserver_preload(modules)
    forkserver.ensure_running()


@cache
def await_preload() -> None:
    """Wait, once, until the fork server has imported its modules and can start a child."""
    with Child(_nothing, None, timeout_s=_PRELOAD_S):
        pass  # its start waits for the fork server


def _nothing(_argument: None, _report: Report) -> None:
    return None


def _be_ordinary() -> None:
    """Undo what Celery's pool (billiard) does to the standard library's idea of the current process:
    a daemon, which may have no children, with a key that can't be handed on. Our children die with
    their parent by the kernel's hand.
    """
    ordinary = BaseProcess(name="worker")
    key = AuthenticationString(os.urandom(32))
    ordinary._config = {"authkey": key, "semprefix": "/mp"}  # type: ignore[attr-defined]
    multiprocessing.process._current_process = ordinary  # type: ignore[attr-defined]


class Child:
    """A function that runs in a process of its own.

    Parameters:
        function: module-level; takes ``argument`` and a callback for progress, returns JSON.
        memory_bytes: limit of its address space's data, or None.
    """

    def __init__(
        self,
        function: Callable[[Any, Report], Any],
        argument: Any,
        *,
        timeout_s: float,
        memory_bytes: int | None = None,
    ) -> None:
        _be_ordinary()
        self._timeout_s = timeout_s
        self._log, log = _context.Pipe(duplex=False)
        self._messages, messages = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_main,
            args=(function, argument, log, messages, memory_bytes),
            daemon=False,
        )
        self._process.start()
        log.close()
        messages.close()
        self._result: tuple[str, Any] | None = None

    def happenings(self) -> Iterator[Happening]:
        """What the child prints and reports, as it comes, until it has ended; a tick at least every
        100 ms.

        Raises:
            ChildTimedOut: after the child was ended.
        """
        deadline = time.monotonic() + self._timeout_s
        sources = [self._log, self._messages]
        while sources:
            ready, _, _ = select.select(sources, [], [], _TICK_S)
            for source in ready:
                happening = self._read(source)
                if happening is None:
                    sources.remove(source)
                else:
                    yield happening
            yield Tick()
            if time.monotonic() > deadline:
                self.end()
                raise ChildTimedOut(
                    f"the stage ran longer than {self._timeout_s:g} s and was ended"
                )
            if not self._process.is_alive() and not ready:
                break  # a grandchild may hold the pipe open
        self._process.join()

    def _read(self, source: Connection) -> Happening | None:
        """One piece of news, or None at the end of this source."""
        if source is self._log:
            text = os.read(source.fileno(), _PIPE_BYTES)
            # Postgres keeps no NUL in a text.
            printed = text.decode(errors="replace").replace("\0", "\ufffd")
            return Line(text=printed) if text else None
        try:
            kind, value = json.loads(source.recv_bytes())
        except (EOFError, OSError):
            return None
        if kind == "progress":
            return Progress(phase=value[0], share=value[1])
        self._result = (kind, value)
        return Tick()

    def result(self) -> Any:
        """What the function returned.

        Raises:
            FarmError: what the function raised, or how the process died.
        """
        if self._result is None:
            raise self._death()
        kind, value = self._result
        if kind == "error":
            raise errors.from_code(**value)
        return value

    def _death(self) -> FarmError:
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return ChildOutOfMemory(
                "the stage's process was killed from outside, most likely for memory"
            )
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ChildDied(
            f"the stage's process died ({name})", hint="the end of the job's log says where"
        )

    def end(self) -> None:
        """Kill the child and its whole process group."""
        if self._process.pid is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End the child if it is alive, and free what the worker held of it."""
        if self._process.is_alive():
            self.end()
        self._log.close()
        self._messages.close()
        self._process.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _main(
    function: Callable[[Any, Report], Any],
    argument: Any,
    log: Connection,
    messages: Connection,
    memory_bytes: int | None,
) -> None:
    """The child."""
    os.setsid()
    # Every child holds the fork server's lifeline for children of its own. Let go of it: so the fork
    # server ends when the worker does, however it does, and this child with the fork server.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    die_with_parent()
    _print_to(log.fileno())
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))

    def send(kind: str, value: Any) -> None:
        messages.send_bytes(json.dumps([kind, value]).encode())

    try:
        result = function(argument, lambda phase, share: send("progress", [phase, share]))
        send("result", result)
    except MemoryError:
        send("error", _portable(ChildOutOfMemory("the stage ran out of its memory limit")))
    except FarmError as err:
        print(f"{err.code}: {err.detail}", file=sys.stderr)
        send("error", _portable(err))
    except BaseException as err:
        traceback.print_exc()
        died = ChildDied(f"{type(err).__name__}: {err}", hint="the job's log has the traceback")
        send("error", _portable(died))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Native libraries may hang or crash in their destructors; the result is out already.
        os._exit(0)


def _print_to(fd: int) -> None:
    # At the level of descriptors, so that native libraries' output is caught too.
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _portable(err: FarmError) -> dict[str, str | None]:
    # Not a pickle: the child has run a stranger's model.
    return {"code": err.code, "detail": err.detail, "hint": err.hint}
