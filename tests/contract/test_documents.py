"""The OpenAPI document costs a request nothing."""

from __future__ import annotations

import json

import anyio
import pytest

from farm.api import documents


def test_the_document_is_written_before_the_first_request_and_only_once(
    api, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents.prepare(api.app)

    def again(*_args: object, **_options: object) -> None:
        raise AssertionError("it is written anew")

    monkeypatch.setattr(documents, "get_openapi", again)
    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", again)
        patched.setattr(json.JSONEncoder, "encode", again)
        answers = [api.get("/openapi.json", headers={"Accept-Encoding": "gzip"}) for _ in range(3)]
    for answer in answers:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == api.app.openapi()
        assert answer.content == answers[0].content


def test_the_lifespan_writes_the_document(api, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(documents, "prepare", written.append)

    async def live() -> None:
        async with api.app.router.lifespan_context(api.app):
            assert written == [api.app]

    anyio.run(live)
