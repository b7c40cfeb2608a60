"""Room: so many requests are worked at side by side; one that finds no room is told to come again.

A call runs in a thread. Without this, requests would queue for threads without end, and behind them those
that ask whether the farm is well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.errors import Busy

#: Fewer than there are threads, of which file downloads and uploads need some.
_PLACES = 24
_WAIT_S = 0.5


class Places:
    """So many at once, and whoever finds none is told so at once."""

    def __init__(self, most: int, refusal: str, *, hint: str | None = None) -> None:
        self._left = most
        self._refusal = refusal
        self._hint = hint

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Busy
        """
        if not self._left:
            raise Busy(self._refusal, hint=self._hint)
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


class Room:
    """Places for requests, held until the answer begins."""

    def __init__(self) -> None:
        self._waiting: anyio.Semaphore | None = None

    def _places(self) -> anyio.Semaphore:
        # Made in the event loop that serves.
        if self._waiting is None:
            self._waiting = anyio.Semaphore(_PLACES)
        return self._waiting

    async def within(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a call when there is room.

        Raises:
            Busy: there is none for half a second.
        """
        places = self._places()
        with anyio.move_on_after(_WAIT_S) as waiting:
            await places.acquire()
        if waiting.cancelled_caught:
            raise Busy("the farm works at as many requests as it can")
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                places.release()

        async def sent(message: Message) -> None:
            # A client that reads slowly holds no place.
            leave()
            await send(message)

        try:
            await app(scope, receive, sent)
        finally:
            leave()
