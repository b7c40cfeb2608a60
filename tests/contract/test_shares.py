"""One client can't hold all of what the API has for everybody."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from farm.api.room import Places, Room, Shares
from farm.errors import Busy, TooMany
from farm.specs.scopes import Scope
from tests.contract.live_api import live_api
from tests.keys import bearer


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    limits = {"FARM_MAX_EVENT_STREAMS": "8", "FARM_MAX_UPLOADS": "8", "FARM_BODY_IDLE_S": "60"}
    with live_api(tmp_path_factory.mktemp("api"), limits) as live:
        yield live


@pytest.fixture(scope="module")
def others(api) -> bytes:
    """The head of another client's requests."""
    key = api.new_key(Scope.SUBMIT)
    return f"Host: localhost\r\nAuthorization: {bearer(key)['Authorization']}\r\n".encode()


def first_line(raw: socket.socket) -> bytes:
    return raw.recv(65536).split(b"\r\n")[0]


def begin(api, head: bytes, request: bytes) -> socket.socket:
    raw = api.connect()
    raw.sendall(request.replace(b"\r\n", b" HTTP/1.1\r\n" + head, 1))
    return raw


def a_build(api) -> str:
    wanted = {
        "model": "digits",
        "source": {"digest": api.upload(b"followed"), "format": "onnx"},
        "precisions": ["fp16"],
        "targets": ["tensorrt:t4"],
    }
    return api.http.post("/v1/builds", json=wanted).json()["id"]


def test_one_client_follows_builds_in_its_share_of_the_streams(api, others) -> None:
    request = f"GET /v1/builds/{a_build(api)}/events\r\n\r\n".encode()
    open_ = [begin(api, api.head, request) for _ in range(4)]
    try:
        assert all(b" 200 " in first_line(raw) for raw in open_)
        refused = api.http.get(request.split()[1].decode())
        assert refused.status_code == 429
        assert refused.headers["Retry-After"]
        assert refused.json()["code"] == "too-many"
        assert "FARM_MAX_CLIENT_SHARE" in refused.json()["hint"]
        assert "4 event streams" in refused.json()["detail"]
        theirs = [begin(api, others, request) for _ in range(4)]
        open_ += theirs
        assert all(b" 200 " in first_line(raw) for raw in theirs)
    finally:
        for raw in open_:
            raw.close()
    _until(lambda: _follows(api, request))


def _until(comes: Callable[[], bool]) -> None:
    """Wait for the farm to see that others have gone."""
    deadline = time.monotonic() + 180
    while not comes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _follows(api, request: bytes) -> bool:
    raw = begin(api, api.head, request)
    try:
        return b" 200 " in first_line(raw)
    finally:
        raw.close()


def test_one_client_uploads_in_its_share_of_the_places(api, others) -> None:
    stalled = b"POST /v1/blobs\r\nContent-Length: 1000\r\n\r\nabc"
    # Whoever has a place is waited for; who has none is told at once.
    mine = [begin(api, api.head, stalled) for _ in range(5)]
    try:
        told = _answered(mine)
        assert [b" 429 " in line for line in told] == [True]
        theirs = begin(api, others, b"POST /v1/blobs\r\nContent-Length: 3\r\n\r\nabc")
        mine.append(theirs)
        assert b" 201 " in first_line(theirs)
    finally:
        for raw in mine:
            raw.close()
    _until(lambda: api.http.post("/v1/blobs", content=b"room again").status_code == 201)


def _answered(connections: list[socket.socket]) -> list[bytes]:
    """What the first of them was told, when one was."""
    ready, _, _ = select.select(connections, [], [], 50)
    return [first_line(raw) for raw in ready]


def test_bodies_that_one_client_sends_slowly_leave_memory_for_others() -> None:
    memory = Shares(100, 0.5)
    memory.take("a", "too much", 30)
    memory.take("a", "too much", 20)
    memory.take("b", "too much", 50)
    with pytest.raises(TooMany, match="too much") as caught:
        memory.take("a", "too much", 1)
    assert caught.value.hint
    memory.give_back("a", 20)
    memory.take("a", "too much", 20)


def test_a_place_that_is_refused_is_no_place_that_is_held() -> None:
    places = Places(4, 0.5, "uploads")
    with places.one("a"), places.one("a"):
        for _ in range(3):
            with pytest.raises(TooMany, match="2 uploads for this client alone"), places.one("a"):
                pass
        with places.one("b"), places.one("b"):
            with pytest.raises(Busy, match="4 uploads") as caught, places.one("c"):
                pass
            assert not isinstance(caught.value, TooMany)
    with places.one("a"), places.one("c"):
        assert places._shares._held == {"a": 1, "c": 1}
    assert not places._shares._held


def test_a_share_is_one_place_at_least() -> None:
    with Places(1, 0.1, "uploads").one("a"):
        pass


def test_calls_of_one_client_leave_room_for_others(monkeypatch) -> None:
    monkeypatch.setattr("farm.api.room._PLACES", 4)
    monkeypatch.setattr("farm.api.room._WAIT_S", 0.05)

    async def go() -> None:
        room, ended = Room(0.5), anyio.Event()
        working = 0

        async def slow(_scope, _receive, _send) -> None:
            nonlocal working
            working += 1
            await ended.wait()

        async def at_once(_scope, _receive, send) -> None:
            await send({"type": "http.response.start"})

        async def send(_message) -> None:
            pass

        async def one(app, client: str) -> None:
            await room.within(app, {}, None, send, client=client)

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(one, slow, "a")
            while working < 2:
                await anyio.sleep(0)
            with pytest.raises(TooMany):
                await one(at_once, "a")
            await one(at_once, "b")
            for _ in range(2):
                group.start_soon(one, slow, "b")
            while working < 4:
                await anyio.sleep(0)
            with pytest.raises(Busy):
                await one(at_once, "c")
            ended.set()
        for _ in range(5):
            await one(at_once, "a")
        assert not room._own

    anyio.run(go)


def test_a_client_of_python_comes_again_when_it_has_had_its_share(api) -> None:
    bodies = [json.dumps({"model": f"m{n}"}).encode() for n in range(60)]

    def post(body: bytes) -> int:
        json_ = {"Content-Type": "application/json"}
        return api.http.post("/v1/builds", content=body, headers=json_).status_code

    with api.staying_well(), ThreadPoolExecutor(60) as pool:
        assert set(pool.map(post, bodies)) <= {422, 429, 503}
    assert post(bodies[0]) == 422
