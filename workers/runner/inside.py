"""A job's process: confined, then given to its stage."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, NoReturn

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
    """What a child has of its worker."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages

    def progress(self, phase: str, share: float | None) -> None:
        """Tell where the job is."""
        self.send("progress", [phase, share])

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Have its siblings stopped, to time something."""
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


def peak_memory_bytes() -> int:
    """The most memory that this process, or one that it ran, has had resident.

    A job's process starts with what it shares with the one that it was forked from.
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
