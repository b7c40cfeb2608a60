"""The API in this process: no server, no broker; what a request does to the database is real."""

from __future__ import annotations

import anyio
import httpx2
import pytest

from farm.api.app import create_app
from farm.settings import Settings
from farm.trust.ring import Ring
from tests.keys import a_key, bearer


class Api:
    """A synchronous face on the ASGI application. The lifespan doesn't run, so nothing sweeps.

    It has a key with all scopes, unless it is given another, or None.
    """

    def __init__(self, app, key="") -> None:
        self.app = app
        self.key = a_key(app.state.services.db) if key == "" else key

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
def settings(database_url, tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url)


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
