"""No answer of a server's makes a client of it large."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import httpx2
import pytest

from farm.client import Backoff, answers
from farm.client.events import follow, payloads
from farm.client.http import Http
from farm.errors import FarmError, Unavailable

MIB = 2**20
BUILD = "01m7y8mb9kssegkq"
EVENT = (
    '{"id":1,"at":"2026-05-01T12:00:00Z","kind":"build","build":"a","job":null,'
    '"title":null,"state":"failed","data":{"text":"ä"}}'
)


class Body(httpx2.SyncByteStream):
    """As many chunks as are asked for, and how many were."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.sent += len(chunk)
            yield chunk


def endless(start: bytes = b"", chunk: bytes = b" " * MIB) -> Body:
    def chunks() -> Iterator[bytes]:
        yield start
        while True:
            yield chunk

    return Body(chunks())


def bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * MIB) for _ in range(40)) + packer.flush()


def http(answer: Callable[[httpx2.Request], httpx2.Response]) -> Http:
    backoff = Backoff(attempts=2, first_s=0)
    url = "http://farm.example"
    transport = httpx2.MockTransport(answer)
    return Http(url, timeout_s=5, backoff=backoff, key="farm_a", transport=transport)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "X-None"])
def test_an_answer_that_is_compressed_is_refused_unread(encoding: str) -> None:
    body = Body(iter([bomb()]))
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers["Accept-Encoding"])
        return httpx2.Response(200, headers={"Content-Encoding": encoding}, stream=body)

    with pytest.raises(FarmError, match="is compressed") as caught:
        http(answer).request("GET", "/v1/models")
    assert (asked, body.sent) == (["identity"], 0)
    assert "engine farm's address" in str(caught.value.hint)


def test_an_event_stream_or_a_download_that_is_compressed_is_refused_unread() -> None:
    body = Body(iter([bomb()]))

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Encoding": "gzip"}, stream=body)

    with pytest.raises(FarmError, match="is compressed"):
        list(follow(http(answer), BUILD))
    with (
        http(answer).stream("/v1/engines/a/content", headers={}, read_timeout_s=1) as response,
        pytest.raises(FarmError, match="is compressed"),
    ):
        list(answers.chunks(response))
    assert body.sent == 0


def test_an_answer_without_end_is_read_to_the_limit() -> None:
    body = endless(b"[")
    with pytest.raises(FarmError, match=r"GET .*/v1/models is longer than 64 MiB") as caught:
        http(lambda _: httpx2.Response(200, stream=body)).request("GET", "/v1/models")
    assert body.sent <= answers.MOST_BYTES + 2 * MIB
    assert caught.value.hint


def test_an_error_that_is_compressed_or_without_end_is_told_by_its_status() -> None:
    body = endless(b"{")
    with pytest.raises(FarmError, match="answered 500"):
        http(lambda _: httpx2.Response(500, stream=body)).request("GET", "/v1/models")
    assert body.sent <= 4 * MIB

    headers = {"Content-Encoding": "gzip"}
    gateway = httpx2.Response(503, headers=headers, stream=Body(iter([bomb()])))
    with pytest.raises(Unavailable, match="answered 503"):
        http(lambda _: gateway).request("GET", "/v1/models", repeatable=False)
    stream = endless()
    with (
        pytest.raises(FarmError, match="answered 500"),
        http(lambda _: httpx2.Response(500, stream=stream)).stream(
            "/v1/builds/a/events", headers={}, read_timeout_s=1
        ),
    ):
        pass
    assert stream.sent <= 4 * MIB


@pytest.mark.parametrize(
    ("start", "chunk"),
    [
        (b"data: ", b"x" * MIB),
        (b": ", b"x" * MIB),
        (b"", b"data: x\n" * 100_000),
        (b"", b"data:\n" * 100_000),
    ],
)
def test_an_event_without_end_is_read_to_the_limit(start: bytes, chunk: bytes) -> None:
    body = endless(start, chunk)
    with pytest.raises(FarmError, match="event is longer than 8 MiB"):
        list(follow(http(lambda _: httpx2.Response(200, stream=body)), BUILD))
    assert body.sent <= 2 * answers.MOST_EVENT_BYTES


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_events_are_read_however_they_are_cut(end: str, size: int) -> None:
    text = end.join([": ping", "", "event: build", "id: 1", f"data: {EVENT}", "", ""]).encode()
    cut = (text[at : at + size] for at in range(0, len(text), size))
    response = httpx2.Response(200, stream=Body(cut), request=httpx2.Request("GET", "http://a"))
    assert list(payloads(answers.lines(response))) == [EVENT]


def test_an_answer_keeps_its_status_headers_and_content() -> None:
    answer = httpx2.Response(201, headers={"ETag": '"a"'}, json={"a": "ä"})
    found = http(lambda _: answer).request("POST", "/v1/builds", json={})
    assert (found.status_code, found.headers["etag"], found.json()) == (201, '"a"', {"a": "ä"})
