"""Clumsy and hostile users of a live farm: nobody else notices them."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.again import until_served
from tests.e2e.live import LiveFarm, processes, wait_until
from tests.keys import bearer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("tidy"),
]


def connected(farm: LiveFarm, text: str) -> socket.socket:
    address = urlsplit(farm.addresses.api)
    connection = socket.create_connection((address.hostname or "", address.port or 0))
    connection.sendall(text.encode())
    return connection


def body(farm: LiveFarm, files: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": "hostile",
        "source": {"digest": farm.upload(files / "small.onnx"), "format": "onnx"},
        "precisions": ["fp16"],
        "targets": ["tensorrt:sm_90"],
    } | changes


def test_a_refused_submission_does_not_spoil_the_next_one(farm: LiveFarm, files: Path) -> None:
    for _ in range(5):
        assert (
            farm.http.post("/v1/builds", json=body(farm, files, targets=["t5"])).status_code == 422
        )
        answer = farm.http.post("/v1/builds", json=body(farm, files))
        assert answer.status_code == 202, answer.text
        farm.http.post(f"/v1/builds/{answer.json()['id']}/cancel").raise_for_status()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"a": "x\0y"}},
        {"labels": {"a\0": "x"}},
        {"labels": {"a": "\ud800"}},
        {"profiles": [{"ima\0ge": {"min": [1], "opt": [1], "max": [1]}}]},
        {"profiles": [{"\udfff": {"min": [1], "opt": [1], "max": [1]}}]},
        {"targets": ["sm_90\0"]},
        {"targets": ["\udfff"]},
        {"priority": float("inf")},
        {"evaluation": {"max_drop": float("nan")}},
    ],
)
def test_odd_texts_and_numbers_are_taken_or_refused_but_break_nothing(
    changes: dict[str, Any], farm: LiveFarm, files: Path
) -> None:
    content = json.dumps(body(farm, files, **changes))
    headers = {"Content-Type": "application/json"}
    answer = farm.http.post("/v1/builds", content=content, headers=headers)
    assert answer.status_code in (202, 400, 422), answer.text
    if answer.status_code == 202:
        farm.http.post(f"/v1/builds/{answer.json()['id']}/cancel").raise_for_status()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/builds/%00",
        "/v1/builds/%00/events",
        "/v1/builds?cursor=%00",
        "/v1/builds/%ff",
        "/v1/models/%00/engines",
        "/v1/models/%ed%a0%80",
        "/v1/engines/%00/content",
        f"/v1/models/hostile/engines?version={10**20}",
        f"/v1/models/hostile/engines/sm_90?version={2**31}",
    ],
)
def test_odd_paths_are_answered_and_not_by_a_server_error(path: str, farm: LiveFarm) -> None:
    assert farm.http.get(path).status_code < 500


@pytest.mark.parametrize("last", [str(2**63), "9" * 30, "-1", "x"])
def test_an_event_id_that_cannot_be_is_refused(last: str, farm: LiveFarm, files: Path) -> None:
    build = farm.http.post("/v1/builds", json=body(farm, files)).json()["id"]
    farm.http.post(f"/v1/builds/{build}/cancel")
    path = f"/v1/builds/{build}/events"
    assert farm.http.get(path, headers={"Last-Event-ID": last}).status_code == 422


@pytest.mark.parametrize("rest", [b"ZZ\r\n", b""])
def test_a_chunked_upload_that_breaks_off_is_refused_and_leaves_nothing(
    rest: bytes, farm: LiveFarm
) -> None:
    incoming = farm.settings.store_dir / "incoming"
    host, port = httpx2.URL(farm.addresses.api).host, httpx2.URL(farm.addresses.api).port
    with socket.create_connection((host, port), timeout=120) as line:
        line.sendall(
            f"POST /v1/blobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {farm.key}\r\n".encode()
            + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
            + rest
        )
        line.shutdown(socket.SHUT_WR)
        answer = line.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"nothing was stored" in answer
    assert list(incoming.iterdir()) == []


def test_the_same_file_uploaded_by_many_at_once_is_kept_once(farm: LiveFarm) -> None:
    content = b"the same bytes" * 1000

    def upload(_: int) -> str:
        answer = until_served(lambda: farm.http.post("/v1/blobs", content=content))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["digest"])

    with ThreadPoolExecutor(12) as pool:
        digests = set(pool.map(upload, range(24)))
    assert len(digests) == 1


def test_identical_submissions_at_once_share_their_jobs(farm: LiveFarm, files: Path) -> None:
    request = body(farm, files, model="at-once", targets=["tensorrt-rtx:sm_75"])

    def submit(_: int) -> Any:
        url, headers = f"{farm.addresses.api}/v1/builds", bearer(farm.key)
        return until_served(lambda: httpx2.post(url, json=request, timeout=60, headers=headers))

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(submit, range(24)))
    assert {answer.status_code for answer in answers} == {202}
    views = [farm.ended(answer.json()["id"]) for answer in answers]
    assert {view["state"] for view in views} == {"succeeded"}
    assert len({job["id"] for view in views for job in view["jobs"]}) == 4
    assert len({want["engine"] for view in views for want in view["engines"]}) == 1


def test_cancels_and_retries_that_race_leave_a_build_that_can_be_finished(
    farm: LiveFarm, files: Path
) -> None:
    build = farm.submit("race", files / "small.onnx", targets=["tensorrt-rtx:sm_80"])["id"]

    def poke(turn: int) -> int:
        verb = "cancel" if turn % 2 else "retry"
        url = f"{farm.addresses.api}/v1/builds/{build}/{verb}"
        # They wait for each other, and on a busy machine one may be asked to come again.
        ask = partial(httpx2.post, url, timeout=60, headers=bearer(farm.key))
        return until_served(ask).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(poke, range(32))) == {200}
    farm.http.post(f"/v1/builds/{build}/retry").raise_for_status()
    assert farm.ended(build)["state"] == "succeeded"


def test_an_upload_that_breaks_off_leaves_nothing(farm: LiveFarm) -> None:
    head = f"POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {farm.key}\r\n"
    head += "Content-Length: 10000000\r\n\r\n"
    for _ in range(10):
        connected(farm, head + "x" * 100_000).close()
    incoming = farm.settings.store_dir / "incoming"
    wait_until("nothing is on its way in", lambda: not any(incoming.iterdir()))


def test_listeners_that_vanish_are_forgotten(farm: LiveFarm, files: Path) -> None:
    build = farm.submit("listened-to", files / "small.onnx", targets=["tensorrt:sm_90"])["id"]

    def descriptors() -> int:
        api = [p for p in processes(farm.home) if "-m farm api" in p.command]
        return sum(len(list(Path(f"/proc/{p.pid}/fd").iterdir())) for p in api)

    get = f"GET /v1/builds/{build}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    listeners = [connected(farm, get) for _ in range(40)]
    for listener in listeners:
        listener.recv(100)
    farm.get(f"/v1/builds/{build}")  # while they all listen
    held = descriptors()
    for listener in listeners:
        listener.close()
    wait_until("their connections are closed", lambda: descriptors() <= held - 35)
    farm.http.post(f"/v1/builds/{build}/cancel").raise_for_status()
