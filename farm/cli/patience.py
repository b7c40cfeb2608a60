"""How long a command watches a build: a time limit on its events."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from farm.cli.options import again
from farm.errors import InvalidRequest, WaitTimedOut
from farm.specs import durations

if TYPE_CHECKING:
    from farm.client import Build
    from farm.schemas.events import Event


class Patience:
    """Follows a build's events until a deadline.

    Parameters:
        timeout: a duration such as ``30m``; None for no limit.

    Raises:
        InvalidRequest: it isn't a duration.
    """

    def __init__(self, build: Build, timeout: str | None, url: str | None = None) -> None:
        self._build, self._timeout, self._url = build, timeout, url
        self._until = None if timeout is None else time.monotonic() + durations.parse(timeout)

    def check(self) -> None:
        """Raise WaitTimedOut once the time is up."""
        if self._until is not None and time.monotonic() >= self._until:
            raise WaitTimedOut(
                f"build {self._build.id} hadn't ended after {self._timeout}; it continues",
                hint=f"to watch it again: {again(f'farm watch {self._build.id}', self._url)}",
            )

    def events(self) -> Iterator[Event]:
        """The build's events until it ends.

        Raises:
            WaitTimedOut
        """
        if self._until is None:
            yield from self._build.events()
            return
        told: queue.Queue[Event | Exception | None] = queue.Queue()

        def listen() -> None:
            try:
                for event in self._build.events():
                    told.put(event)
            except Exception as err:
                told.put(err)  # raised in the thread that shows it
            told.put(None)

        # A daemon: it may wait for the next event much longer than the command does.
        threading.Thread(target=listen, daemon=True, name="events").start()
        while True:
            try:
                event = told.get(timeout=max(self._until - time.monotonic(), 0))
            except queue.Empty:
                self.check()
                continue
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event


def check_timeout(timeout: str | None, *, waits: bool) -> None:
    """Refuse a time limit that isn't one, or that nothing waits for.

    Raises:
        InvalidRequest
    """
    if timeout is None:
        return
    if not waits:
        raise InvalidRequest("--timeout limits the wait", hint="add --wait")
    durations.parse(timeout)
