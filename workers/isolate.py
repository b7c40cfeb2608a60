"""One child process a job, forked from a preloaded parent that has never touched CUDA.

The child has its own process group and session, dies with its parent, writes what it prints to a
pipe (the job's log), and leaves its result as a file. Nothing that it does can harm the worker.

Children that share a CPU share a :class:`Room`, in which one that times something may have quiet:
the others are stopped for these seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from farm import errors
from farm.errors import (
    ChildDied,
    ChildOutOfMemory,
    ChildTimedOut,
    FarmError,
    StageFault,
    Unavailable,
)
from farm.processes import die_with_parent

_context = multiprocessing.get_context("forkserver")
_TICK_S = 0.1
_PRELOAD_S = 600.0
_PIPE_BYTES = 65536
#: multiprocessing's exit code of a process whose fork server has gone; no child of ours exits so.
_LOST = 255
#: Stages make and drop copies of a model all the time. By default glibc gives each back to the kernel,
#: and the next one's pages are faulted in anew, 4 KiB at a time: a third of a calibration's time.
#: Read at a process's start; other C libraries don't know it.
_MALLOC = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_threshold": 2**30,
        "trim_threshold": 2**32,
        "top_pad": 2**26,
    }.items()
)


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


_CRASHED = (
    "a native library crashed, and most crashes come again with the same model; another precision or "
    "runtime may avoid it. The end of the job's log says where it was"
)
#: What to do about a signal that isn't a crash.
_HINTS: dict[int, str] = {
    signal.SIGTERM: "something outside of the farm ended it: farm retry",
    signal.SIGINT: "something outside of the farm ended it: farm retry",
    signal.SIGHUP: "something outside of the farm ended it: farm retry",
    signal.SIGBUS: "look for a full disk under the worker's FARM_HOME or in /dev/shm, then: farm retry",
    signal.SIGILL: "a library uses instructions that the worker's CPU hasn't: install a build for it",
    signal.SIGXCPU: "raise the limit of CPU time that the worker runs under (ulimit -t)",
    signal.SIGXFSZ: "raise the limit of a file's size that the worker runs under (ulimit -f)",
}

Happening = Line | Progress | Tick


class Link:
    """What a child has of its worker."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages

    def progress(self, phase: str, share: float | None) -> None:
        """Tell where the job is."""
        self.send("progress", [phase, share])

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Have the room's other children stopped, to time something."""
        self.send("quiet", True)
        self._messages.recv_bytes()  # the worker's word that it is so
        try:
            yield
        finally:
            self.send("quiet", False)

    def send(self, kind: str, value: Any) -> None:
        self._messages.send_bytes(json.dumps([kind, value]).encode())


class Room:
    """The children of one worker that run side by side on one CPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._quiet_for: Child | None = None

    def enter(self, child: Child) -> None:
        with self._lock:
            self._children.add(child)
            if self._quiet_for is not None:
                child.signal(signal.SIGSTOP)

    def leave(self, child: Child) -> None:
        with self._lock:
            self._children.discard(child)
            self._end_quiet(child)

    def hush(self, child: Child) -> bool:
        """Stop the others, and return True; or False while another child has quiet."""
        with self._lock:
            if self._quiet_for is None:
                self._quiet_for = child
                self._signal_others(signal.SIGSTOP)
            return self._quiet_for is child

    def resume(self, child: Child) -> None:
        """Let the others go on, if it was this child that had quiet."""
        with self._lock:
            self._end_quiet(child)

    def _end_quiet(self, child: Child) -> None:
        if self._quiet_for is child:
            self._signal_others(signal.SIGCONT)
            self._quiet_for = None

    def _signal_others(self, sig: signal.Signals) -> None:
        for other in self._children - {self._quiet_for}:
            other.signal(sig)


def preload(modules: list[str]) -> None:
    """Start the fork server with these modules imported; children then start in milliseconds."""
    os.environ.setdefault("GLIBC_TUNABLES", _MALLOC)
    _context.set_forkserver_preload(modules)
    forkserver.ensure_running()


@cache
def await_preload() -> None:
    """Wait, once, until the fork server has imported its modules and can start a child."""
    with Child(_nothing, None, timeout_s=_PRELOAD_S):
        pass  # its start waits for the fork server


def _nothing(_argument: None, _link: Link) -> None:
    return None


class Child:
    """A function that runs in a process of its own.

    Parameters:
        function: module-level; takes ``argument`` and the link to its worker, returns JSON.
        memory_bytes: limit of its address space's data, or None.
        room: the children that it shares the CPU with; by default it is alone.
    """

    def __init__(
        self,
        function: Callable[[Any, Link], Any],
        argument: Any,
        *,
        timeout_s: float,
        memory_bytes: int | None = None,
        room: Room | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._room = room or Room()
        self._wants_quiet = False
        self._log, log = _context.Pipe(duplex=False)
        self._messages, messages = _context.Pipe()
        self._process = _context.Process(
            target=_main,
            args=(function, argument, log, messages, memory_bytes),
            daemon=False,
        )
        self._process.start()
        log.close()
        messages.close()
        self._result: tuple[str, Any] | None = None
        self._room.enter(self)

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
            if self._wants_quiet and self._room.hush(self):
                self._wants_quiet = False
                with suppress(OSError):  # it died while it waited
                    self._messages.send_bytes(b"quiet")
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
            kind, value = _storable(source.recv_bytes())
        except (EOFError, OSError):
            return None
        if kind == "progress":
            return Progress(phase=value[0], share=value[1])
        if kind == "quiet":
            self._wants_quiet = value
            if not value:
                self._room.resume(self)
            return Tick()
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
        if code == _LOST:
            await_preload.cache_clear()
            return Unavailable("the process that jobs are forked from was killed from outside")
        if code == -signal.SIGKILL:
            return ChildOutOfMemory(
                "the stage's process was killed from outside, most likely for memory"
            )
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ChildDied(f"the stage's process died ({name})", hint=_HINTS.get(-code, _CRASHED))

    def signal(self, sig: signal.Signals) -> None:
        """Send a signal to the child and its whole process group."""
        pid = self._process.pid
        if pid is None:
            return
        try:
            os.killpg(pid, sig)
        except ProcessLookupError:
            with suppress(ProcessLookupError):
                os.kill(pid, sig)  # so young that it has no group yet, or gone

    def end(self) -> None:
        """Kill the child and its whole process group."""
        self.signal(signal.SIGKILL)
        self._process.join()

    def close(self) -> None:
        """End the child if it is alive, and free what the worker held of it."""
        self._room.leave(self)
        if self._process.is_alive():
            self.end()
        self._log.close()
        self._messages.close()
        self._process.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _storable(message: bytes) -> Any:
    """A message's JSON, with what Postgres keeps in no text replaced: a model's own strings may hold it."""
    text = json.dumps(json.loads(message), ensure_ascii=False).encode(errors="replace")
    return json.loads(text.replace(b"\\u0000", b"\\ufffd"))


def peak_memory_bytes() -> int:
    """The most memory that this process, or one that it ran, has had resident.

    A job's process starts with what it shares with the one that it was forked from.
    """
    ran = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in ran) * 1024


def _main(
    function: Callable[[Any, Link], Any],
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

    link = Link(messages)
    try:
        link.send("result", function(argument, link))
    except MemoryError:
        link.send("error", _portable(ChildOutOfMemory("the stage ran out of its memory limit")))
    except FarmError as err:
        print(f"{err.code}: {err.detail}", file=sys.stderr)
        link.send("error", _portable(err))
    except BaseException as err:
        traceback.print_exc()
        link.send("error", _portable(StageFault(f"{type(err).__name__}: {err}")))
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
