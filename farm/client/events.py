"""Server-sent events, followed across lost connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import httpx2
from pydantic import TypeAdapter

from farm.client import answers
from farm.client.http import Http
from farm.errors import Unavailable
from farm.schemas.builds import BuildView
from farm.schemas.events import Event
from farm.specs.states import BUILD_ENDED

#: The server sends something, if only a comment, at least every 15 s.
_SILENCE_S = 60.0
#: Lost connections in a row; about a minute with the client's backoff.
_LOSSES = 15
_EVENT = TypeAdapter(Event)


def follow(http: Http, build_id: str, *, after: int = 0) -> Iterator[Event]:
    """A build's events after ``after``, until it has ended; by default from its submission.

    Reconnects after a lost connection, and resumes after the last event seen.

    Raises:
        NotFound: there is no such build.
        Unavailable: the farm stayed unreachable.
    """
    for attempt in http.backoff.in_a_row(_LOSSES):
        last: Event | None = None
        with attempt:
            try:
                for event in _connection(http, build_id, after):
                    after, last, attempt.got_on = event.id, event, True
                    yield event
            except httpx2.TransportError as err:
                raise http.unreachable(err) from err
            # The server ends a long stream before the build has ended: reconnect for the rest.
            if _is_the_end(last) and _has_ended(http, build_id):
                return
            if last is None:
                raise Unavailable(f"the event stream of build {build_id} keeps ending")


def _is_the_end(last: Event | None) -> bool:
    """Whether a connection brought nothing, or ended with the build's last event."""
    return last is None or (last.kind == "build" and last.state in BUILD_ENDED)


def _connection(http: Http, build_id: str, after: int) -> Iterator[Event]:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    path = f"/v1/builds/{build_id}/events"
    with http.stream(path, headers=headers, read_timeout_s=_SILENCE_S) as response:
        for data in payloads(answers.lines(response)):
            yield http.understand(_EVENT, data.encode(), "an event")


def payloads(lines: Iterable[str]) -> Iterator[str]:
    """The ``data`` of each event; comments and truncated events are dropped.

    Raises:
        FarmError: an event is longer than any farm's.
    """
    data: list[str] = []
    held = 0
    for line in lines:
        held = held + len(line) if line else 0
        if held > answers.MOST_EVENT_BYTES:
            raise answers.too_long("an event", answers.MOST_EVENT_BYTES)
        if line == "":
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))


def _has_ended(http: Http, build_id: str) -> bool:
    """Whether the stream ended because the build did, rather than because of a proxy or a restart."""
    return http.read(BuildView, "GET", f"/v1/builds/{build_id}").state in BUILD_ENDED
