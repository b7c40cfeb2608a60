"""The API in this process: no server, no broker; what a request does to the database is real."""

from __future__ import annotations

import anyio
import httpx2
import pytest

from farm.api.app import create_app
from farm.settings import Settings
from farm.trust.ring import Ring
from tests.keys import a_key, bearer
from tests.ledger import TTL_S, Ledger


class Api:
    """A synchronous face on the ASGI application. The lifespan doesn't run, so nothing sweeps.

    It has a key with all scopes, unless it is given another, or None.
    """

    def __init__(self, app, key="") -> None:
        self.app = app
        self.key = a_key(app.state.services.db) if key == "" else key
        # It may be new: the API would look for it a tenth of a second after its last look.
        app.state.services.ring.forget()

    def request(self, method, path, **options) -> httpx2.Response:
        async def go():
            transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(
                transport=transport, base_url="http://localhost", headers=bearer(self.key)
            ) as client:
                return await client.request(method, path, **options)

        return anyio.run(go)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)

    def upload(self, content: bytes) -> str:
        answer = self.post("/v1/blobs", content=content)
        assert answer.status_code == 201, answer.text
        return answer.json()["digest"]


@pytest.fixture
def patient(monkeypatch) -> None:
    """The API waits for its database for as long as a slow machine's other threads may hold it."""
    monkeypatch.setattr("farm.api.services._PATIENCE_S", 60.0)


@pytest.fixture
def settings(database_url, tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, worker_ttl_s=TTL_S)


@pytest.fixture
def api(settings) -> Api:
    app = create_app(settings)
    yield Api(app)
    app.state.services.db.dispose()


REQUEST = {
    "model": "digits",
    "precisions": ["fp16"],
    "targets": ["tensorrt-rtx:sm_89"],
}


@pytest.fixture
def db(api):
    return api.app.state.services.db


@pytest.fixture
def ring(api) -> Ring:
    return api.app.state.services.ring


def with_key(api: Api, key: str | None) -> Api:
    return Api(api.app, key)


def request(api: Api, **changes):
    source = {"digest": api.upload(b"a model"), "format": "onnx"}
    return REQUEST | {"source": source} | changes


class OverTheApi(httpx2.BaseTransport):
    """Carries a client's requests to the application in this process."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def handle_request(self, asked: httpx2.Request) -> httpx2.Response:
        answer = self._api.request(
            asked.method, str(asked.url), content=asked.read(), headers=asked.headers
        )
        return httpx2.Response(
            answer.status_code, headers=answer.headers, content=answer.content, request=asked
        )


@pytest.fixture
def store(api):
    return api.app.state.services.store


@pytest.fixture
def made(api, db, store, tmp_path):
    """A version of ``digits`` whose jobs' outputs lie in the store; returns its engine's id."""

    def make(**changes) -> str:
        ledger = Ledger(db)
        # With one worker online, and known to the API, equal work has equal keys however long this takes.
        ledger.worker()
        api.app.state.services._known_fleet = None
        assert api.post("/v1/builds", json=request(api, **changes)).status_code == 202
        while queued := ledger.queued():
            claim = ledger.claim(queued[0])
            file = tmp_path / "output"
            file.write_bytes(f"{claim.job_id:07d}".encode())  # as long as the ledger says
            ledger.succeed(claim, digest=store.take(file).digest)
        items = api.get(f"/v1/models/{changes.get('model', 'digits')}/engines").json()["items"]
        return items[0]["id"]

    return make
