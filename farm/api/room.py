"""Room: a limited number of requests run at once; one that finds no room is told to try again.

A call runs in a thread. Without a limit, requests would queue for threads endlessly, and health checks behind
them. Each client gets at most a share of the room, which leaves the rest to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.errors import Busy, TooMany

#: Fewer than there are threads, some of which file downloads and uploads need.
_PLACES = 24
_WAIT_S = 0.5
_SHARE_HINT = (
    "wait for some of your requests to finish; the limit is FARM_MAX_CLIENT_SHARE on the API"
)


class Shares:
    """Tracks how much of something each client holds, and limits it to a share.

    Parameters:
        most: how much there is in total.
        share: the fraction one client may hold, 0 to 1; at least one piece.
    """

    def __init__(self, most: int, share: float) -> None:
        self.most = max(1, int(most * share))
        self._held: Counter[str] = Counter()

    def take(self, client: str, refusal: str, count: int = 1) -> None:
        """Hold more.

        Raises:
            TooMany
        """
        if self._held[client] + count > self.most:
            raise TooMany(refusal, hint=_SHARE_HINT)
        self._held[client] += count

    def give_back(self, client: str, count: int = 1) -> None:
        self._held[client] -= count
        if not self._held[client]:
            del self._held[client]


class Places:
    """A limited number of places; a request that finds none is refused immediately.

    Parameters:
        what: describes what holds them, as in "64 uploads are already in progress".
        share: the fraction one client may hold, 0 to 1.
    """

    def __init__(self, most: int, share: float, what: str, *, hint: str | None = None) -> None:
        self._left = most
        self._refusal = f"{most} {what}"
        self._hint = hint
        self._shares = Shares(most, share)
        self._too_many = f"{self._shares.most} {what} for this client alone"

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Hold a place.

        Raises:
            Busy: none is left.
            TooMany: the client already has its share.
        """
        if not self._left:
            raise Busy(self._refusal, hint=self._hint)
        self._shares.take(client, self._too_many)
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1
            self._shares.give_back(client)


class Room:
    """Places for requests, held until the response begins."""

    def __init__(self, share: float) -> None:
        self._waiting: anyio.Semaphore | None = None
        self._most = max(1, int(_PLACES * share))
        #: For clients that hold or await a place: their own places, and how many requests want one.
        self._own: dict[str, tuple[anyio.Semaphore, int]] = {}

    def _places(self) -> anyio.Semaphore:
        # Created in the event loop that serves requests.
        if self._waiting is None:
            self._waiting = anyio.Semaphore(_PLACES)
        return self._waiting

    @contextmanager
    def _of(self, client: str) -> Iterator[anyio.Semaphore]:
        own, wanting = self._own.get(client) or (anyio.Semaphore(self._most), 0)
        self._own[client] = own, wanting + 1
        try:
            yield own
        finally:
            own, wanting = self._own[client]
            self._own[client] = own, wanting - 1
            if wanting == 1:
                del self._own[client]

    async def within(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, client: str
    ) -> None:
        """Run a call when there is room.

        Raises:
            TooMany: the client's share stayed used up for half a second.
            Busy: no room for half a second.
        """
        with self._of(client) as own:
            told = f"{self._most} requests from this client are already in progress"
            await _wait(own, TooMany(told, hint=_SHARE_HINT))
            try:
                places = self._places()
                await _wait(places, Busy("the farm is at its limit of concurrent requests"))
            except BaseException:
                own.release()
                raise
            held = True

            def leave() -> None:
                nonlocal held
                if held:
                    held = False
                    places.release()
                    own.release()

            async def sent(message: Message) -> None:
                # A client that reads slowly holds no place.
                leave()
                await send(message)

            try:
                await app(scope, receive, sent)
            finally:
                leave()


async def _wait(places: anyio.Semaphore, refusal: Busy | TooMany) -> None:
    with anyio.move_on_after(_WAIT_S) as waiting:
        await places.acquire()
    if waiting.cancelled_caught:
        raise refusal
