"""What a key may hold in uploads that no build has used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx2
import pytest

from farm.api.app import create_app
from farm.errors import UploadsUnused
from farm.settings import Settings
from farm.store.held import Hold
from tests.contract.conftest import Api, request, with_key
from tests.contract.registry import Registry, code, digest_of
from tests.contract.test_api import problem
from tests.keys import a_key, bearer
from tests.ledger import Ledger

MOST = 100


@pytest.fixture
def settings(database_url, tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, max_unused_bytes=MOST)


@pytest.fixture
def mine(api) -> Api:
    return with_key(api, a_key(api.app.state.services.db, "submit"))


@pytest.fixture
def other(api) -> Api:
    return with_key(api, a_key(api.app.state.services.db, "submit"))


def upload(api, content):
    return api.post("/v1/blobs", content=content)


def unused(api) -> tuple[int, int]:
    found = api.get("/v1/usage").json()["unused_uploads"]
    return found["files"], found["bytes"]


def test_a_key_uploads_no_more_than_it_may_hold(api, mine, other):
    large = upload(mine, b"x" * 60).json()["digest"]
    assert upload(mine, b"y" * 40).status_code == 201
    told = problem(upload(mine, b"z"), 413)
    assert told["code"] == "uploads-unused"
    assert "with this one you would hold 1 more" in told["detail"]
    assert f"farm delete {large}" in told["hint"]
    assert "FARM_MAX_UNUSED_BYTES" in told["hint"]
    assert not api.app.state.services.store.has(digest_of(b"z"))
    assert unused(api) == (2, MOST)
    assert upload(other, b"z").status_code == 201


def test_what_a_build_uses_counts_no_longer(api, mine, db):
    Ledger(db).worker()
    digest = upload(mine, b"x" * MOST).json()["digest"]
    problem(upload(mine, b"z"), 413)
    body = request(api, source={"digest": digest, "format": "onnx"})
    assert mine.post("/v1/builds", json=body).status_code == 202
    assert upload(mine, b"y" * MOST).status_code == 201
    # Once more, it takes no more of the disk.
    assert upload(mine, b"x" * MOST).status_code == 413  # though while it arrives it does
    assert mine.request("DELETE", f"/v1/blobs/{digest_of(b'y' * MOST)}").status_code == 200
    assert upload(mine, b"x" * MOST).status_code == 201
    # Of the admin's key, the model that `request` uploads counts for nobody.
    assert unused(api) == (0, 0)


def test_what_is_deleted_and_what_comes_twice_counts_once_or_no_longer(api, mine):
    digest = upload(mine, b"x" * 60).json()["digest"]
    assert mine.request("DELETE", f"/v1/blobs/{digest}").status_code == 200
    assert upload(mine, b"y" * 50).status_code == 201
    assert upload(mine, b"y" * 50).status_code == 201
    assert unused(api) == (1, 50)


def test_an_upload_that_fails_gives_its_room_back(api, mine):
    wrong = {"Repr-Digest": f"sha-256=:{'A' * 43}=:"}
    answer = mine.post("/v1/blobs", content=b"x" * MOST, headers=wrong)
    problem(answer, 400)
    assert unused(api) == (0, 0)
    assert upload(mine, b"x" * MOST).status_code == 201


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_counts_while_it_arrives(api, mine, announced):
    async def go() -> tuple[int, int, int]:
        begun, resumed = anyio.Event(), anyio.Event()

        async def slowly():
            yield b"x" * 10
            begun.set()
            await resumed.wait()
            yield b"x" * 50

        transport = httpx2.ASGITransport(api.app, raise_app_exceptions=False)
        client = httpx2.AsyncClient(
            transport=transport, base_url="http://localhost", headers=bearer(mine.key)
        )
        first: list[httpx2.Response] = []
        headers = {"Content-Length": "60"} if announced else {}

        async def send() -> None:
            first.append(await client.post("/v1/blobs", content=slowly(), headers=headers))

        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            # The application reads the body when it asks for it: by then the room is taken.
            await begun.wait()
            second = await client.post("/v1/blobs", content=b"y" * 60)
            resumed.set()
        third = await anyio.to_thread.run_sync(upload, mine, b"z" * 40)
        return first[0].status_code, second.status_code, third.status_code

    assert anyio.run(go) == (201, 413, 201)
    assert unused(api) == (2, MOST)


@pytest.mark.usefixtures("patient")
def test_of_many_uploads_at_once_no_more_get_room_than_fit(db):
    def take(_: int) -> bool:
        try:
            Hold(db, "key", MOST)._granted(30, 30)
        except UploadsUnused:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take, range(12))) == 3


def test_blobs_pushed_by_oci_count_from_their_first_bytes(api, mine):
    registry = Registry(mine, "mine")
    location = registry.begin()
    assert registry.patch(location, b"x" * 60).status_code == 202
    assert unused(api) == (1, 60)
    refused = registry.patch(location, b"x" * 60)
    assert (refused.status_code, code(refused)) == (413, "DENIED")
    assert unused(api) == (1, 60)
    problem(upload(mine, b"y" * 41), 413)
    finished = registry.finish(location, digest_of(b"x" * 100), b"x" * 40)
    assert finished.status_code == 201, finished.text
    assert unused(api) == (1, MOST)
    assert code(
        registry.call("POST", f"blobs/uploads/?digest={digest_of(b'z')}", content=b"z")
    ) == ("DENIED")


def test_an_upload_that_is_dropped_or_wrong_gives_its_room_back(api, mine):
    registry = Registry(mine, "mine")
    location = registry.begin()
    registry.patch(location, b"x" * 60)
    assert mine.request("DELETE", location).status_code == 204
    assert unused(api) == (0, 0)
    wrong = registry.finish(registry.begin(), digest_of(b"other"), b"x" * 60)
    assert wrong.status_code == 400
    assert unused(api) == (0, 0)


def test_a_manifest_keeps_its_blobs_counted(api, mine):
    Registry(mine, "mine").push_image("latest", b"x" * 90)
    assert unused(api) == (2, 92)
    problem(upload(mine, b"y" * 9), 413)


def test_administrators_have_no_limit(api):
    assert upload(api, b"x" * 2 * MOST).status_code == 201
    assert unused(api) == (0, 0)


def test_no_limit_is_kept_where_it_is_zero(database_url, tmp_path):
    settings = Settings(home=tmp_path / "home", database_url=database_url, max_unused_bytes=0)
    app = create_app(settings)
    mine = Api(app, a_key(app.state.services.db, "submit"))
    assert upload(mine, b"x" * 2 * MOST).status_code == 201
    assert mine.get("/v1/usage").json()["unused_limit_bytes"] is None
    app.state.services.db.dispose()
