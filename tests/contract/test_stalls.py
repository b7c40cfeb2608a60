"""Nothing that a caller sends keeps the API from answering others."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import socket
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import func, select

from farm.client import Farm
from farm.database.session import Database
from farm.database.tables import Build, Job, SharedParameter
from farm.queue import jobs
from tests.contract.live_api import live_api
from tests.keys import bearer

TARGETS = [
    f"{runtime}:{gpu}"
    for runtime in ("tensorrt", "tensorrt-rtx", "onnxruntime")
    for gpu in "t4 a30 a100 a2 a10 a16 a40 rtx-3060 rtx-3070 rtx-3080 rtx-3090 l4 l40 l40s rtx-4060 "
    "rtx-4070 rtx-4080 rtx-4090 h100 h200 b200 rtx-5070 rtx-5080 rtx-5090".split()
    if not (runtime == "tensorrt-rtx" and gpu in ("h100", "h200", "b200", "a30", "a100"))
][:64]

JSON = {"Content-Type": "application/json"}
NO_ROOM = b"HTTP/1.1 503 Service Unavailable"
AMPERE = [target for target in TARGETS if not target.endswith(":t4")]


@pytest.fixture(scope="module", autouse=True)
def _many_connections():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and may have {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    limits = {
        "FARM_BODY_IDLE_S": "120",
        "FARM_MAX_EVENT_STREAMS": "200",
        "FARM_MAX_CLIENT_SHARE": "1",
        "FARM_MAX_PLUGIN_BYTES": "1048576",
        "FARM_PLUGIN_KEYS": "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    }
    with live_api(tmp_path_factory.mktemp("api"), limits) as live:
        yield live


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """An API that waits a second for the rest of an upload."""
    limits = {"FARM_BODY_IDLE_S": "1", "FARM_MAX_UPLOADS": "4", "FARM_MAX_CLIENT_SHARE": "1"}
    with live_api(tmp_path_factory.mktemp("hasty"), limits) as live:
        yield live


def uploaded(hasty, content: bytes) -> None:
    """Upload this, again if this machine took a second between the head and the body."""
    while (answer := hasty.http.post("/v1/blobs", content=content)).status_code == 408:
        pass
    assert answer.status_code == 201, answer.text


def asking(api, path: str, more: bytes = b"") -> socket.socket:
    """A connection that has asked for this: one that says nothing for a while is ended."""
    raw = api.connect()
    raw.sendall(f"GET {path} HTTP/1.1\r\n".encode() + api.head + more + b"\r\n")
    return raw


def ranges(inputs: int) -> list[dict]:
    sizes = {"min": [1, 3, 8, 8], "opt": [8, 3, 8, 8], "max": [64, 3, 8, 8]}
    return [{f"input_{n}": sizes for n in range(inputs)}]


def request(digest: str, **changes) -> dict:
    return {
        "model": "digits",
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp16"],
        "targets": TARGETS,
    } | changes


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


#: Four megabytes of the smallest fields there are, by where they lie.
SMALL_FIELDS = {
    "numbers": b"\x08\x01" * 2_000_000,
    "nodes": field(7, b"\x0a\x00" * 2_000_000),
    "kinds of a node": field(7, field(1, b"\x22\x00" * 2_000_000)),
    "data of a tensor": field(7, field(5, b"\x6a\x00" * 2_000_000)),
}


def test_a_build_of_ten_thousand_inputs_is_refused_at_once(api):
    digest = api.upload(b"ten thousand inputs")
    sent = request(digest, precisions=["fp32", "fp16", "bf16"], profiles=ranges(10_000))
    body = json.dumps(sent).encode()
    with api.staying_well():
        answers = [api.http.post("/v1/builds", content=body, headers=JSON) for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {413, 422}
    few = api.http.post("/v1/builds", json=sent | {"profiles": ranges(1025)})
    assert few.status_code == 422
    assert "the limit is 512" in few.json()["detail"]


def test_the_largest_build_that_is_taken_keeps_its_profiles_once(api):
    digest = api.upload(b"five hundred inputs")
    sent = request(digest, profiles=ranges(512), precisions=["fp16", "bf16"], targets=AMPERE)
    size = (api.settings.home / "farm.db").stat().st_size
    with api.staying_well():
        answer = api.http.post("/v1/builds", json=sent)
    assert answer.status_code == 202, answer.text
    database = Database(api.settings.database)
    with database.read() as session:
        jobs = session.scalars(select(Job)).all()
        assert len(jobs) > 100
        assert max(len(json.dumps(job.recipe)) for job in jobs) < 5000
        assert session.scalar(select(func.count()).select_from(SharedParameter)) == 1
    database.dispose()
    assert (api.settings.home / "farm.db").stat().st_size - size < 10 * 2**20


@pytest.mark.parametrize("place", SMALL_FIELDS)
def test_a_model_of_the_smallest_fields_is_looked_at_once_and_not_for_long(api, place):
    digest = api.upload(SMALL_FIELDS[place])
    sent = request(digest, targets=["tensorrt:t4"], precisions=["fp32"])
    took = []
    with api.staying_well():
        for _ in range(3):
            began = time.monotonic()
            assert api.http.post("/v1/builds", json=sent).status_code in (202, 422)
            took.append(time.monotonic() - began)
    # The first has looked; another that knows nothing of it takes as long as these.
    other = request(api.upload(b"another model"), targets=["tensorrt:t4"], precisions=["fp32"])
    began = time.monotonic()
    api.http.post("/v1/builds", json=other)
    assert min(took[1:]) < 0.5 + 5 * (time.monotonic() - began)


def test_a_refusal_is_remembered(api, monkeypatch):
    pickle = api.upload(b"\x80\x04 a pickle")
    sent = request(pickle, targets=["tensorrt:t4"], precisions=["fp32"])
    first, second = (api.http.post("/v1/builds", json=sent) for _ in range(2))
    assert first.status_code == second.status_code == 422
    assert first.json() == second.json()


def test_three_hundred_megabytes_of_json_are_refused_unread(api):
    with api.staying_well(), api.connect() as raw:
        raw.sendall(
            b"POST /v1/builds HTTP/1.1\r\n" + api.head + b"Content-Type: application/json\r\n"
            b"Content-Length: 314572800\r\n\r\n["
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_json_that_says_no_length_is_read_up_to_the_limit_and_no_further(api):
    with api.staying_well(), api.connect() as raw:
        raw.sendall(
            b"POST /v1/builds HTTP/1.1\r\n" + api.head + b"Content-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
        sent = 0
        try:
            while sent < 250 * 2**20:
                raw.sendall(piece)
                sent += 0x10000
        except OSError:
            pass  # it hung up
        assert sent < 50 * 2**20


@pytest.mark.parametrize("nested", ["[" * 400_000, '{"a":' * 150_000, "[" * 150 + "]" * 150])
def test_json_that_is_nested_deep_is_refused(api, nested):
    with api.staying_well():
        headers = {"Content-Type": "application/json"}
        deep = api.http.post("/v1/builds", content=nested, headers=headers)
        within = json.dumps(request("sha256:" + "0" * 64)).replace('"onnx"', nested, 1)
        inner = api.http.post("/v1/builds", content=within, headers=headers)
    assert (deep.status_code, inner.status_code) == (422, 422)


def test_a_database_that_others_write_to_is_told_within_two_seconds(api):
    digest = api.upload(b"while others write")
    holder = sqlite3.connect(api.settings.home / "farm.db", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        sent = request(digest, targets=["tensorrt:t4"], precisions=["fp32"])

        def post(_n: int = 0) -> httpx2.Response:
            return httpx2.post(
                f"{api.url}/v1/builds", json=sent, timeout=180, headers=api.http.headers
            )

        with api.staying_well(), ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(post, range(40)))
            took, alone = api.took_s(post)
        assert api.http.get("/v1/builds").status_code == 200
    finally:
        holder.rollback()
        holder.close()
    # One client has its share of the places, and no more.
    assert {answer.status_code for answer in answers} <= {429, 503}
    assert alone.status_code == 503
    assert all(answer.headers["Retry-After"] for answer in answers)
    assert took < 2.0 + 10 * api.health_s()
    assert api.http.post("/v1/builds", json=sent).status_code == 202


def test_a_large_blob_is_not_read_to_find_that_it_is_no_plugin(api):
    large = api.upload(b"\x7fELF" + bytes(8 * 2**20))
    asked = {"digest": large, "name": "libfoo.so", "signature": "x"}
    with api.staying_well():
        answer = api.http.post("/v1/plugins", json=asked)
    assert answer.status_code == 422
    assert "FARM_MAX_PLUGIN_BYTES" in answer.json()["hint"]


def test_an_upload_that_stops_is_ended_and_leaves_nothing(hasty):
    uploaded(hasty, b"makes the folders")
    before = sorted(hasty.settings.store_dir.rglob("*"))
    with hasty.staying_well(), hasty.connect() as raw:
        raw.sendall(
            b"POST /v1/blobs HTTP/1.1\r\n" + hasty.head + b"Content-Length: 1000\r\n\r\nabc"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert sorted(hasty.settings.store_dir.rglob("*")) == before


def test_uploads_that_stop_keep_nobody_from_asking_and_make_room_again(hasty):
    def begin() -> socket.socket:
        raw = hasty.connect()
        raw.sendall(
            b"POST /v1/blobs HTTP/1.1\r\n" + hasty.head + b"Content-Length: 1000\r\n\r\nabc"
        )
        return raw

    said, began = Counter[bytes](), time.monotonic()
    idle = [begin() for _ in range(100)]
    try:
        with hasty.staying_well():
            for raw in reversed(idle):  # those that are refused at once, first
                told = raw.recv(65536).split(b"\r\n")[0]
                said[told] += 1
                if told == NO_ROOM:
                    refused_s = time.monotonic() - began
    finally:
        for raw in idle:
            raw.close()
    assert said.keys() == {NO_ROOM, b"HTTP/1.1 408 Request Timeout"}
    # Four have a place, and four more for each second that the last took to come.
    assert 96 - 4 * int(refused_s) <= said[NO_ROOM] <= 96
    uploaded(hasty, b"there is room again")


def test_connections_that_send_no_request_keep_nobody_from_asking_and_are_ended(api):
    silent = [api.connect() for _ in range(1500)]
    try:
        with api.staying_well():
            for raw in silent[::2]:
                raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
            assert api.http.get("/v1/models").status_code == 200
        assert silent[1].recv(100) == b""
        assert b" 200 " not in silent[0].recv(100)
    finally:
        for raw in silent:
            raw.close()


def test_a_thousand_readers_of_events_are_served_or_asked_to_wait(api):
    digest = api.upload(b"followed")
    build = api.http.post("/v1/builds", json=request(digest, targets=["tensorrt:t4"])).json()
    path = f"/v1/builds/{build['id']}/events"
    readers: list[socket.socket] = []
    try:
        with api.staying_well():
            for _ in range(1000):
                readers.append(asking(api, path))
            first = [raw.recv(1 << 16) for raw in readers]
            served = [
                raw for raw, told in zip(readers, first, strict=True) if b" 200 " in told[:15]
            ]
            asked = [told for told in first if told.startswith(b"HTTP/1.1 503 ")]
            assert len(served) == 200
            assert len(asked) == 800
            assert all(b"retry-after:" in told.lower() for told in asked)
            assert api.http.post(f"/v1/builds/{build['id']}/cancel").status_code == 200
            for raw in served:
                told = b""
                while b'"state":"cancelled"' not in told:
                    piece = raw.recv(1 << 16)
                    assert piece, told
                    told += piece
    finally:
        for raw in readers:
            raw.close()
    assert api.http.get(path).text.count("event: build") >= 2


def test_a_resumed_reader_is_told_all_that_the_first_was_and_nothing_twice(api):
    digest = api.upload(b"resumed")
    build = api.http.post("/v1/builds", json=request(digest, targets=["tensorrt:t4"])).json()["id"]
    numbers: list[int] = []
    started = threading.Event()

    def follow() -> None:
        with api.http.stream("GET", f"/v1/builds/{build}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    numbers.append(int(line[4:]))
                    started.set()

    reader = threading.Thread(target=follow)
    reader.start()
    assert started.wait(120)
    database = Database(api.settings.database)
    with database.read() as session:
        job = session.scalars(select(Job).order_by(Job.id.desc())).first()
    for n in range(1200):  # more than are kept for those who follow
        with database.write() as session:
            jobs.report(session, job.id, job.attempt, text=f"{n}\n")
    api.http.post(f"/v1/builds/{build}/cancel")
    reader.join(180)
    assert not reader.is_alive()
    assert len(numbers) > 1200
    assert numbers == sorted(set(numbers))
    headers = {"Last-Event-ID": str(numbers[700])}
    rest = api.http.get(f"/v1/builds/{build}/events", headers=headers).text
    assert [int(line[4:]) for line in rest.splitlines() if line.startswith("id: ")] == numbers[701:]
    with database.read() as session:
        assert session.get(Build, build).state == "cancelled"
    database.dispose()


def test_readers_that_read_nothing_are_kept_little_for_and_others_are_told_all(api):
    digest = api.upload(b"a long log")
    build = api.http.post("/v1/builds", json=request(digest, targets=["tensorrt:t4"])).json()["id"]
    database = Database(api.settings.database)
    with database.read() as session:
        job = session.scalars(select(Job).order_by(Job.id.desc())).first()
    for _ in range(20):
        with database.write() as session:
            for _ in range(10):
                jobs.report(session, job.id, job.attempt, text="x" * 60_000)
    database.dispose()
    api.http.post(f"/v1/builds/{build}/cancel")
    deaf: list[socket.socket] = []
    try:
        before = api.memory_bytes()
        with api.staying_well():
            for _ in range(50):
                deaf.append(asking(api, f"/v1/builds/{build}/events"))
            with Farm(api.url, key=api.key) as farm:
                told = list(farm.build(build).events())
        assert sum(len(event.data.get("text", "")) for event in told) == 200 * 60_000
        assert "cancelled" in {event.state for event in told if event.kind == "build"}
        assert api.memory_bytes() - before < 50 * 4 * 2**20 + 100 * 2**20
    finally:
        for raw in deaf:
            raw.close()


def test_many_at_once_are_served_or_asked_to_come_again(tmp_path):
    with live_api(tmp_path / "busy") as api:
        digest = api.upload(b"many at once")
        bodies = [
            json.dumps(request(digest, profiles=ranges(500), model=f"m{n}")).encode()
            for n in range(16)
        ]

        def post(n: int) -> int:
            answer = httpx2.post(
                f"{api.url}/v1/builds",
                content=bodies[n],
                headers=bearer(api.key) | JSON,
                timeout=120,
            )
            return answer.status_code

        with api.staying_well(), ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(post, range(16)))
        assert set(statuses) <= {202, 429, 503}
        assert 202 in statuses


def test_downloads_that_nobody_reads_are_kept_little_for_and_others_come_whole(api):
    content = random.Random(3).randbytes(24 * 2**20)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blobs = "/v2/stalls/blobs/"
    pushed = api.http.post(
        f"{blobs}uploads/",
        params={"digest": digest},
        content=content,
        headers={"Content-Type": "application/octet-stream"},
    )
    assert pushed.status_code == 201, pushed.text
    deaf: list[socket.socket] = []
    try:
        before = api.memory_bytes()
        # One after the other: of many at once some would be asked to come again.
        for number in range(120):
            part = b"" if number < 60 else b"Range: bytes=-6000000\r\n"
            deaf.append(raw := asking(api, f"{blobs}{digest}", part))
            assert raw.recv(13).startswith(b"HTTP/1.1 20")
        assert api.http.get(f"{blobs}{digest}").content == content
        resumed = api.http.get(f"{blobs}{digest}", headers={"Range": "bytes=9-"})
        assert resumed.content == content[9:]
        # Six megabytes for each of 8, one for each of the others; of all of them it would be 720.
        assert api.memory_bytes() - before < 250 * 2**20
    finally:
        for raw in deaf:
            raw.close()
