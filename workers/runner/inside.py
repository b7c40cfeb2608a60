"""Inside a job's process: confine it, then run its stage."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from farm import logs
from farm.errors import (
    ChildOutOfMemory,
    FarmError,
    StageFault,
)
from farm.processes import die_with_parent
from workers.sandbox import Mode, Sandbox, guard, messages
from workers.sandbox.features import Found, missing
from workers.sandbox.guard import Surroundings


class Link:
    """A child's connection to its worker."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages

    def progress(self, phase: str, share: float | None) -> None:
        """Report the job's progress."""
        self.send("progress", [phase, share])

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Have the siblings paused while the child measures."""
        self.send("quiet", True)
        self._messages.recv_bytes()  # the worker confirms
        try:
            yield
        finally:
            self.send("quiet", False)

    def send(self, kind: str, value: Any) -> None:
        text = json.dumps([kind, value]).encode()
        if len(text) > messages.MAX_BYTES:
            raise StageFault(f"the stage has {len(text)} bytes to say, of {kind}")
        self._messages.send_bytes(text)


def peak_memory_bytes() -> int:
    """Peak resident memory of this process or of a child it waited for.

    A job's process starts with the pages it shares with the fork server.
    """
    ran = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in ran) * 1024


def main(
    function: Callable[[Any, Link], Any],
    argument: Any,
    log: Connection,
    messages_end: Connection,
    told: Connection,
    memory_bytes: int | None,
    sandbox: Sandbox | None,
    handled: Mapping[str, object],
) -> None:
    """Run the guard, which forks the child."""
    os.setsid()
    # Every child inherits the fork server's lifeline, for its own children. Close it: then the fork server
    # ends when the worker does, however that happens, and this child ends with the fork server.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    die_with_parent()

    def job(around: Surroundings) -> NoReturn:
        die_with_parent()
        _print_to(log.fileno())
        logs.inherit(handled)
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        if sandbox is not None and sandbox.mode is not Mode.OFF:
            _confine(sandbox, around, messages_end.fileno(), told)
        told.close()
        _run(function, argument, Link(messages_end))

    guard.follow(job, sandbox, told.fileno(), close=(log.fileno(), messages_end.fileno()))


def _run(function: Callable[[Any, Link], Any], argument: Any, link: Link) -> NoReturn:
    """Run the function in the child."""
    try:
        link.send("result", function(argument, link))
    except MemoryError:
        link.send("error", _portable(ChildOutOfMemory("the stage reached its memory limit")))
    except FarmError as err:
        print(f"{err.code}: {err.detail}", file=sys.stderr)
        link.send("error", _portable(err))
    except BaseException as err:
        traceback.print_exc()
        link.send("error", _portable(StageFault(f"{type(err).__name__}: {err}")))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Native libraries may hang or crash in their destructors; the result has been sent.
        os._exit(0)


#: Which parts of the sandbox are enforced in this (a job's) process.
FOUND: list[Found] = []


def _confine(sandbox: Sandbox, around: Surroundings, messages_fd: int, told: Connection) -> None:
    """Confine this process; if a required part fails, report it and exit."""
    from workers.sandbox.confine import confine

    keep = {messages_fd, told.fileno()}
    try:
        FOUND[:] = confine(sandbox, keep, around)
        lacking = missing(FOUND) if sandbox.mode is Mode.REQUIRED else []
    except OSError as err:
        lacking = [f"anything: {err}"]
    # The kernel drops this setting when a process changes its user.
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
    # Not a pickle: the child has run an untrusted model.
    return {"code": err.code, "detail": err.detail, "hint": err.hint}
