"""Event streams: however many clients follow builds, one look into the database serves all of them.

A client first reads past events, then what the shared poller finds from then on. It looks when something
has been committed. A client that falls behind reads from the database again; nothing is buffered for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy.orm import Session
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from farm.builds import events
from farm.builds.events import News
from farm.database.commits import Watch
from farm.database.session import Database
from farm.errors import Busy, Unavailable
from farm.schemas.events import Event
from farm.specs.states import BUILD_ENDED

T = TypeVar("T")
log = logging.getLogger(__name__)

_APART_S = 0.02  #: between two looks
_AWAY_S = 1.0  #: before an unreachable database is tried again
#: Something is sent at least this often, so that neither side takes the other for dead.
_PING_S = 15.0
#: A client that reads nothing for this long is gone.
_STALLED_S = 60.0
#: Size of the recent events kept per build for its followers.
_RECENT_BYTES = 2**20
#: Limits on what is read from the database and sent at once.
_PAGE, _PAGE_BYTES = 100, 2**19
#: Per connection. The server silently buffers what a client doesn't read, so a connection is ended here; #:
#: the client reconnects and resumes after the last event it saw.
_MOST_BYTES = 2 * 2**20
#: Clients that read from the database at once.
_READERS = 4


class _Feed:
    """The events of one build, for all its followers."""

    def __init__(self, floor: int) -> None:
        self.followers = 0
        self.recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        self.start = floor
        self.floor = floor  #: ``recent`` has every event after this one
        self.end: int | None = None  #: the event with which the build ended
        self.heard = False  #: whether an event of the build itself has arrived since the start
        self.is_known = False  #: whether the build has been looked up
        self.looking = anyio.Lock()
        self.changed = asyncio.Event()

    def add(self, event: Event, rendered: bytes) -> None:
        self.recent.append((event.id, rendered))
        self._recent_bytes += len(rendered)
        while self._recent_bytes > _RECENT_BYTES:
            self.floor, dropped = self.recent.popleft()
            self._recent_bytes -= len(dropped)

    def since(self, last: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for one in reversed(self.recent):
            if one[0] <= last:
                break
            found.append(one)
        return found[::-1]

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class _Hub:
    """The feeds of one event loop, and the poller that fills them."""

    def __init__(self, db: Database) -> None:
        self.loop = asyncio.get_running_loop()
        self._reading = CapacityLimiter(_READERS)
        self._waiting = CapacityLimiter(1)
        self._db = db
        self._feeds: dict[str, _Feed] = {}
        self._upto = 0
        self._polling: asyncio.Task[None] | None = None
        self._joining = anyio.Lock()

    async def join(self, build_id: str) -> _Feed:
        """The build's feed, filled from now on until the block ends.

        Raises:
            NotFound, DatabaseUnavailable, Busy
        """
        async with self._joining:
            if self._polling is None or self._polling.done():
                upto = await self._run(events.settled)
                if upto is None:
                    raise Busy("timed out waiting for an event that is being written")
                self._upto = upto
                self._polling = asyncio.create_task(self._poll())
            feed = self._feeds.setdefault(build_id, _Feed(self._upto))
            feed.followers += 1
        try:
            async with feed.looking:
                if not feed.is_known:
                    await self._look_for(build_id, feed)
        except BaseException:
            self.leave(build_id, feed)
            raise
        return feed

    async def _look_for(self, build_id: str, feed: _Feed) -> None:
        end = await self._run(events.end, build_id)
        if end is not None and end <= feed.start and not feed.heard:
            feed.end = end
        feed.is_known = True

    def leave(self, build_id: str, feed: _Feed) -> None:
        feed.followers -= 1
        if not feed.followers:
            self._feeds.pop(build_id, None)

    async def history(self, build_id: str, last: int, upto: int) -> list[tuple[int, bytes]]:
        """Some of a build's events after ``last``, up to a feed's floor."""
        return await self._run(_history, build_id, last, upto)

    async def _run(self, look: Callable[..., T], *values: object) -> T:
        def within() -> T:
            with self._db.read() as session:
                return look(session, *values)

        return await to_thread.run_sync(within, limiter=self._reading)

    async def _poll(self) -> None:
        watch = self._db.watch()
        try:
            while self._feeds:
                await self._round(watch)
        finally:
            watch.close()

    async def _round(self, watch: Watch) -> None:
        """Publish what is new, and if that is all, wait for more."""
        try:
            if await self._look():
                await anyio.sleep(_APART_S)
                await to_thread.run_sync(watch.wait, limiter=self._waiting, abandon_on_cancel=True)
        except Unavailable as err:
            log.warning("%s; event streams are paused", err.detail)
            await anyio.sleep(_AWAY_S)
        except Exception:
            # The only poller: a bug may cost a round, but must not end it.
            log.exception("the event poller hit a bug; it continues")
            await anyio.sleep(_AWAY_S)

    async def _look(self) -> bool:
        """Publish what is new; return whether that is all."""
        async with self._joining:  # who joins meanwhile would miss what was found without it
            news, rendered = await self._run(_news, frozenset(self._feeds), self._upto)
            self._publish(news, rendered)
        return len(news.builds) < _PAGE

    def _publish(self, news: News, rendered: Sequence[bytes]) -> None:
        self._upto = news.upto
        woken: set[str] = set()
        for event, text in zip(news.events, rendered, strict=True):
            for build_id in news.builds[event.id]:
                feed = self._feeds.get(build_id)
                if feed is None or event.id <= feed.start:
                    continue
                feed.add(event, text)
                woken.add(build_id)
                if event.build == build_id and event.kind == "build":
                    feed.heard = True
                    feed.end = event.id if event.state in BUILD_ENDED else None
        for build_id in woken:
            self._feeds[build_id].wake()


class Streams:
    """The clients that follow builds; the door limits how many there are."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._hub: _Hub | None = None

    async def follow(self, build_id: str, after: int) -> EventStream:
        """A response with a build's events after ``after``, which ends when the build has.

        Raises:
            NotFound, DatabaseUnavailable, Busy
        """
        # One per event loop: the API has one, tests have many.
        if self._hub is None or self._hub.loop is not asyncio.get_running_loop():
            self._hub = _Hub(self._db)
        feed = await self._hub.join(build_id)
        return EventStream(self._hub, build_id, feed, after)


class EventStream(Response):
    """Server-sent events of one build, for one client."""

    media_type = "text/event-stream"

    def __init__(self, hub: _Hub, build_id: str, feed: _Feed, after: int) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub = hub
        self._build_id = build_id
        self._feed = feed
        self._last = after

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            async with anyio.create_task_group() as group:
                group.start_soon(_until_gone, receive, group.cancel_scope)
                await self._send_all(send)
                group.cancel_scope.cancel()
        finally:
            self._hub.leave(self._build_id, self._feed)

    async def _send_all(self, send: Send) -> None:
        sent = 0
        try:
            async for piece in self._pieces():
                with anyio.move_on_after(_STALLED_S) as stalled:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if stalled.cancelled_caught:
                    log.info("a client following %s stopped reading", self._build_id)
                    return
                sent += len(piece)
                if sent > _MOST_BYTES:
                    break
        except Unavailable as err:
            # The client sees that the build hasn't ended, and reconnects.
            log.warning("%s; a stream of %s ends", err.detail, self._build_id)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncIterator[bytes]:
        feed = self._feed
        while True:
            changed, floor = feed.changed, feed.floor
            if self._last < floor:
                found = await self._hub.history(self._build_id, self._last, floor)
                self._last = found[-1][0] if found else floor
                if not found:
                    continue
            else:
                found = feed.since(self._last)
                self._last = found[-1][0] if found else self._last
                if not found and feed.end is not None and feed.end <= self._last:
                    return
            if found:
                yield b"".join(rendered for _, rendered in found)
            else:
                with anyio.move_on_after(_PING_S) as silence:
                    await changed.wait()
                if silence.cancelled_caught:
                    yield KEEPALIVE_COMMENT


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _history(session: Session, build_id: str, last: int, upto: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    size = 0
    for event in events.history(session, build_id, last, upto, limit=_PAGE):
        found.append((event.id, _rendered(event)))
        size += len(found[-1][1])
        if size > _PAGE_BYTES:
            break
    return found


def _news(session: Session, builds: frozenset[str], after: int) -> tuple[News, list[bytes]]:
    news = events.news(session, builds, after, limit=_PAGE)
    return news, [_rendered(event) for event in news.events]


def _rendered(event: Event) -> bytes:
    return format_sse_event(data_str=event.model_dump_json(), event=event.kind, id=str(event.id))
