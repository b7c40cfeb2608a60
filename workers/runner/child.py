"""One child process a job, forked from a preloaded parent that has never touched CUDA.

The child has its own process group and session, dies with its parent and with all that it started, writes
what it prints to a pipe (the job's log), and sends its result through another. It may do what its
:class:`Sandbox` says, and what it sends is taken as a stranger's word: nothing that it does can harm the
worker. Between the two is a guard, which has read nothing of a stranger's (``workers.sandbox.guard``).

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
from typing import Any, NoReturn

from farm.errors import (
    ChildDied,
    ChildFilledDisk,
    ChildOutOfMemory,
    ChildTimedOut,
    FarmError,
    SandboxMissing,
    StageFault,
    Unavailable,
)
from farm.processes import die_with_parent
from workers.runner.printed import Printed
from workers.sandbox import Mode, Sandbox, environment, guard, messages, tree
from workers.sandbox.features import Found, missing
from workers.sandbox.guard import Surroundings

_context = multiprocessing.get_context("forkserver")
_TICK_S = 0.1
_PRELOAD_S = 600.0
_PIPE_BYTES = 65536
_END_S = 2.0  #: for the guard to end all that a job has started, before it is ended itself
#: So long may one child have the others stopped, all in all.
_QUIET_S = 600.0
#: Imported first where jobs are forked from.
_FIRST = "workers.sandbox.server"
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
_TAMPERED = (
    "no stage of the farm does that: if the worker's packages are whole (pip check), take the model for "
    "hostile"
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
        text = json.dumps([kind, value]).encode()
        if len(text) > messages.MAX_BYTES:
            raise StageFault(f"the stage has {len(text)} bytes to say, of {kind}")
        self._messages.send_bytes(text)


class Room:
    """The children of one worker that run side by side on one CPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._quiet_for: Child | None = None

    def enter(self, child: Child) -> None:
        with self._lock:
            self._children.add(child)
            self._keep_quiet(child)

    def leave(self, child: Child) -> None:
        with self._lock:
            self._children.discard(child)
            self._end_quiet(child)

    def hush(self, child: Child) -> bool:
        """Stop the others, and return True; or False while another child has quiet."""
        with self._lock:
            if self._quiet_for is None:
                self._quiet_for = child
                for other in self._children:
                    self._keep_quiet(other)
            return self._quiet_for is child

    def resume(self, child: Child) -> None:
        """Let the others go on, if it was this child that had quiet."""
        with self._lock:
            self._end_quiet(child)

    def keep_quiet(self, child: Child) -> None:
        """Stop what this child has started since it was stopped: its guard goes on, and may have been
        about to start it."""
        with self._lock:
            self._keep_quiet(child)

    def _keep_quiet(self, child: Child) -> None:
        if self._quiet_for not in (None, child):
            child.pause()

    def _end_quiet(self, child: Child) -> None:
        if self._quiet_for is child:
            self._quiet_for = None
            for other in self._children - {child}:
                other.resume()


def preload(modules: list[str]) -> None:
    """Start the fork server with these modules imported; children then start in milliseconds."""
    os.environ.setdefault("GLIBC_TUNABLES", _MALLOC)
    _context.set_forkserver_preload([_FIRST, *modules])
    with environment.allowed_only(environment.more()):
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
        sandbox: what it may do; by default whatever its worker may.
        log_bytes: what is kept of what it prints.
    """

    def __init__(
        self,
        function: Callable[[Any, Link], Any],
        argument: Any,
        *,
        timeout_s: float,
        memory_bytes: int | None = None,
        room: Room | None = None,
        sandbox: Sandbox | None = None,
        log_bytes: int = 8 * 2**20,
    ) -> None:
        self._timeout_s = timeout_s
        self._room = room or Room()
        self._wants_quiet = False
        self._quiet_since: float | None = None
        self._quiet_left_s = _QUIET_S
        self._log, log = _context.Pipe(duplex=False)
        self._messages, messages_end = _context.Pipe()
        self._told, told = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_main,
            args=(function, argument, log, messages_end, told, memory_bytes, sandbox),
            daemon=False,
        )
        self._process.start()
        assert self._process.pid is not None
        self._pid, self._born = self._process.pid, tree.born(self._process.pid)
        for end in (log, messages_end, told):
            end.close()
        self._inbox = messages.Inbox()
        self._printed = Printed(log_bytes)
        self._result: tuple[str, Any] | None = None
        self._guard_said: dict[str, str | None] = {}
        self._room.enter(self)

    def happenings(self) -> Iterator[Happening]:
        """What the child prints and reports, as it comes, until it has ended; a tick at least every
        100 ms.

        Raises:
            ChildTimedOut: after the child was ended.
            StageFault: it sent what no stage sends, and was ended.
        """
        deadline = time.monotonic() + self._timeout_s
        sources = [self._log, self._messages]
        # One that has closed its pipes may go on for ever.
        while sources or self._process.is_alive():
            # What it says faster than it may waits in the pipe, and the child with it.
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
            self._room.keep_quiet(self)
            yield Tick()
            if time.monotonic() > deadline:
                self.end()
                yield from self._last_printed()
                raise ChildTimedOut(
                    f"the stage ran longer than {self._timeout_s:g} s and was ended"
                )
            if not self._process.is_alive() and not ready and heard == sources:
                break  # nobody is left who could hold the pipe open, but one that got away
        yield from self._last_printed()
        self._hear_guard()

    def _last_printed(self) -> Iterator[Line]:
        last = self._printed.end()
        if last:
            yield Line(text=last)

    def _may_read(self, source: Connection) -> bool:
        return (self._printed if source is self._log else self._inbox).may_read()

    def _give_quiet(self) -> None:
        """Stop the others when this child asks for it; all in all not for long."""
        at = time.monotonic()
        if self._wants_quiet and (self._quiet_left_s <= 0 or self._room.hush(self)):
            self._wants_quiet = False
            self._quiet_since = at
            # One that doesn't listen must not keep its worker waiting.
            if select.select([], [self._messages], [], 0)[1]:
                with suppress(OSError):  # it died while it waited
                    self._messages.send_bytes(b"quiet")
        if self._quiet_since is not None and at - self._quiet_since > self._quiet_left_s:
            self._end_quiet()

    def _end_quiet(self) -> None:
        if self._quiet_since is not None:
            self._quiet_left_s -= time.monotonic() - self._quiet_since
            self._quiet_since = None
        self._room.resume(self)

    def _read(self, source: Connection) -> list[Happening] | None:
        """The news from a source, or None at its end."""
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

    def _heard(self, kind: str, value: Any) -> Happening:
        """Raises: Malformed"""
        if kind == "progress":
            phase, share = messages.progress_of(value)
            return Progress(phase=phase, share=share)
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
        """What the guard, or the child before it had read anything, has told of how it ended."""
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

    def _death(self) -> FarmError:
        if self._guard_said.get("lacks"):
            return SandboxMissing(f"this worker can't enforce {self._guard_said['lacks']}")
        ended_for = self._guard_said.get("ended")
        if ended_for == guard.MEMORY:
            return ChildOutOfMemory("the stage took more memory than a job may have, and was ended")
        if ended_for == guard.DISK:
            return ChildFilledDisk()
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

    def pause(self) -> None:
        """Stop the child and all that it has started; its guard watches on."""
        if self._is_there():
            tree.stop(self._pid)

    def resume(self) -> None:
        """Let them go on."""
        if self._is_there():
            tree.resume(self._pid)

    def _is_there(self) -> bool:
        # Of another thread's child: only its own may ask multiprocessing.
        return tree.born(self._pid) == self._born != ""

    def end(self) -> None:
        """Kill the child and all that it has started."""
        # The guard knows who they are. Somebody may have stopped it.
        for sig in (signal.SIGTERM, signal.SIGCONT):
            with suppress(ProcessLookupError):
                os.kill(self._pid, sig)
        self._process.join(_END_S)
        if self._process.is_alive():
            left = tree.below(self._pid)
            self._process.kill()
            self._process.join(_END_S)  # not for ever: the kernel may hold it
            for one in left:  # that have a new parent now
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)

    def close(self) -> None:
        """End the child if it is alive, and free what the worker held of it."""
        self._room.leave(self)
        if self._process.is_alive():
            self.end()
        for end in (self._log, self._messages, self._told):
            end.close()
        with suppress(ValueError):  # it is there still
            self._process.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
    messages_end: Connection,
    told: Connection,
    memory_bytes: int | None,
    sandbox: Sandbox | None,
) -> None:
    """The guard, of whom the child is forked."""
    os.setsid()
    # Every child holds the fork server's lifeline for children of its own. Let go of it: so the fork
    # server ends when the worker does, however it does, and this child with the fork server.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    die_with_parent()

    def job(around: Surroundings) -> NoReturn:
        die_with_parent()
        _print_to(log.fileno())
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        if sandbox is not None and sandbox.mode is not Mode.OFF:
            _confine(sandbox, around, messages_end.fileno(), told)
        told.close()
        _run(function, argument, Link(messages_end))

    guard.follow(job, sandbox, told.fileno(), close=(log.fileno(), messages_end.fileno()))


def _run(function: Callable[[Any, Link], Any], argument: Any, link: Link) -> NoReturn:
    """The child."""
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


#: What of its sandbox holds in this process, which is a job's.
FOUND: list[Found] = []


def _confine(sandbox: Sandbox, around: Surroundings, messages_fd: int, told: Connection) -> None:
    """Confine this process; end it, and tell, when it can't be as it has to."""
    from workers.sandbox.confine import confine

    keep = {messages_fd, told.fileno()}
    try:
        FOUND[:] = confine(sandbox, keep, around)
        lacking = missing(FOUND) if sandbox.mode is Mode.REQUIRED else []
    except OSError as err:
        lacking = [f"anything: {err}"]
    # The kernel forgot it with the user that this process was.
    die_with_parent()
    if lacking:
        text = json.dumps({"lacks": "; ".join(lacking)[:2000]})
        os.write(told.fileno(), text.encode() + b"\n")
        os._exit(1)


def _print_to(fd: int) -> None:
    # At the level of descriptors, so that native libraries' output is caught too.
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _portable(err: FarmError) -> dict[str, str | None]:
    # Not a pickle: the child has run a stranger's model.
    return {"code": err.code, "detail": err.detail, "hint": err.hint}
