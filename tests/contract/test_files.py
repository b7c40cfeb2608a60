"""Large files leave in large chunks, as long as that needs little memory."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest

from farm.api import files
from farm.api.files import BlobResponse

LARGE, SMALL = 1 << 20, 1 << 16
CONTENT = random.Random(5).randbytes(16 * LARGE + 12_345)


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "blob"
    path.write_bytes(CONTENT)
    return path


def sent(path: Path, method: str = "GET", **headers: str) -> list[dict[str, Any]]:
    """What a server like granian is told to send."""
    scope = {
        "type": "http",
        "method": method,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "extensions": {"http.response.pathsend": {}},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Any) -> None:
        messages.append(message)

    anyio.run(BlobResponse(path, etag='"x"'), scope, receive, send)
    return messages


def bodies(messages: list[dict[str, Any]]) -> list[bytes]:
    assert messages[0]["type"] == "http.response.start"
    assert {one["type"] for one in messages[1:]} == {"http.response.body"}
    assert [one["more_body"] for one in messages[1:]] == [True] * (len(messages) - 2) + [False]
    return [one["body"] for one in messages[1:]]


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ({}, CONTENT),
        ({"range": "bytes=7-"}, CONTENT[7:]),
        ({"range": f"bytes=0-{8 * LARGE - 1}"}, CONTENT[: 8 * LARGE]),
    ],
)
def test_a_large_file_leaves_in_large_chunks_and_ends_in_small_ones(
    blob: Path, asked: dict[str, str], content: bytes
) -> None:
    chunks = bodies(sent(blob, **asked))
    assert b"".join(chunks) == content
    sizes = [len(chunk) for chunk in chunks]
    large = sizes.count(LARGE)
    assert sizes[:large] == [LARGE] * large
    assert large >= len(content) // LARGE - 2
    # Enough of them that no large one is left in the server's queue, which holds four.
    assert max(sizes[large:]) <= SMALL
    assert sum(size > 0 for size in sizes[large:]) >= 16


def test_a_short_range_of_a_large_file_leaves_in_small_chunks(blob: Path) -> None:
    chunks = bodies(sent(blob, range="bytes=100-300099"))
    assert b"".join(chunks) == CONTENT[100:300_100]
    assert max(map(len, chunks)) <= SMALL


def test_several_ranges_of_a_large_file_come_whole(blob: Path) -> None:
    whole = b"".join(bodies(sent(blob, range="bytes=0-9,2000000-4999999")))
    assert CONTENT[:10] in whole
    assert CONTENT[2_000_000:5_000_000] in whole


def test_only_headers_of_a_large_file_are_sent_if_only_they_are_asked_for(blob: Path) -> None:
    messages = sent(blob, "HEAD")
    assert dict(messages[0]["headers"])[b"content-length"] == str(len(CONTENT)).encode()
    assert bodies(messages) == [b""]


def test_a_small_file_is_left_to_the_server(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"a small engine")
    assert sent(path)[1:] == [{"type": "http.response.pathsend", "path": str(path)}]


def test_beyond_so_many_at_once_files_are_left_to_the_server(blob: Path) -> None:
    held = 0
    while files._large.acquire(blocking=False):
        held += 1
    try:
        assert held == 8
        assert sent(blob)[1:] == [{"type": "http.response.pathsend", "path": str(blob)}]
        ranged = bodies(sent(blob, range="bytes=7-"))
        assert b"".join(ranged) == CONTENT[7:]
        assert max(map(len, ranged)) <= SMALL
    finally:
        files._large.release(held)
    assert bodies(sent(blob))[0] == CONTENT[:LARGE]
