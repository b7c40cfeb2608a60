"""Who may call what: scopes, and what an operation without one does."""

from __future__ import annotations

from urllib.parse import quote

import anyio
import pytest
from fastapi import Response

from farm.api import access
from farm.api.app import create_app
from farm.api.web.render import is_page
from farm.errors import InternalError
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.trust.callers import allows
from tests.contract.conftest import Api, request, with_key
from tests.keys import a_key

OPEN = (
    "/healthz",
    "/readyz",
    "/docs",
    "/docs/swagger-ui.css",
    "/openapi.json",
    "/login",
    "/static/farm.css",
)


def operations(api: Api) -> list[tuple[str, str]]:
    return access.operations(api.app.routes)


def locked(api: Api) -> list[tuple[str, str]]:
    settings = api.app.state.services.settings
    return [(m, p) for m, p in operations(api) if not access.is_open(p, settings)]


def filled(path: str) -> str:
    """A path with something that isn't there for each parameter."""
    return "/".join("none" if part.startswith("{") else part for part in path.split("/"))


def test_every_operation_has_a_scope_and_every_scope_an_operation(api):
    assert set(locked(api)) | {("GET", access.METRICS)} == set(access.SCOPES)


def test_an_operation_without_a_scope_keeps_the_api_from_starting(api, monkeypatch):
    @api.app.get("/v1/new")
    def new() -> None: ...

    with pytest.raises(InternalError, match="GET /v1/new has no scope"):
        access.Access(api.app.routes, api.app.state.services.ring, Settings())
    kept = {one: scope for one, scope in access.SCOPES.items() if one != ("POST", "/v1/gc")}
    monkeypatch.setattr(access, "SCOPES", kept)
    with pytest.raises(InternalError, match="POST /v1/gc has no scope"):
        create_app(api.app.state.services.settings)


def test_what_has_no_methods_keeps_the_api_from_starting(api):
    api.app.mount("/files", Response("anything"))
    with pytest.raises(InternalError, match="/files has no methods"):
        access.Access(api.app.routes, api.app.state.services.ring, Settings())


def test_no_websocket_is_opened(api):
    said = []

    async def go():
        async def send(message):
            said.append(message["type"])

        await api.app({"type": "websocket", "path": "/v1/builds", "headers": []}, None, send)

    anyio.run(go)
    assert said == ["websocket.close"]


#: HEAD protects a blob; any file is read only by workers; an upload is seen by whoever may upload.
_OF_UPLOADERS = ("/v1/blobs/{digest}", "/v1/uploads/{upload}")
_OF_ADMINS = ("/v1/keys", "/v1/tokens", "/v1/audit", "/keys", "/audit")


def test_what_only_reads_needs_no_more_than_reading_but_for_keys_and_the_audit():
    for (method, path), scope in access.SCOPES.items():
        if path == "/v1/login/links":  # what it leads to can do no more than the key
            assert scope is Scope.READ
        elif method in ("GET", "HEAD") and not path.startswith(_OF_ADMINS):
            assert scope is Scope.READ or path in _OF_UPLOADERS, path
        else:
            assert scope is not Scope.READ, path


def test_a_worker_elsewhere_stores_and_reads_files_and_does_nothing_else(api):
    worker = with_key(api, a_key(api.app.state.services.db, Scope.WORK))
    digest = worker.upload(b"made by a job")
    assert worker.get(f"/v1/blobs/{digest}").content == b"made by a job"
    assert worker.request("HEAD", f"/v1/blobs/{digest}").status_code == 200
    path = worker.post("/v1/uploads").headers["location"]
    assert worker.get(path).json()["bytes"] == 0
    assert worker.post(f"/v1/blobs/{digest}/check").json()["right"] is True
    assert worker.post("/v1/builds", json={}).status_code == 403
    assert worker.request("DELETE", f"/v1/blobs/{digest}").status_code == 403
    for scope in (Scope.READ, Scope.SUBMIT, Scope.PROMOTE):
        other = with_key(api, a_key(api.app.state.services.db, scope))
        assert other.get(f"/v1/blobs/{digest}").status_code == 403


def test_a_scope_allows_reading_and_itself_and_admin_allows_all():
    assert all(allows([held], Scope.READ) for held in Scope)
    assert all(allows([Scope.ADMIN], wanted) for wanted in Scope)
    assert not allows([Scope.SUBMIT], Scope.PROMOTE)
    assert not allows([Scope.PROMOTE], Scope.SUBMIT)
    assert not allows([Scope.SUBMIT, Scope.PROMOTE], Scope.ADMIN)
    assert not allows([], Scope.READ)


def said(answer) -> tuple[str, str, str]:
    """An error's code, detail and hint, in whichever of the API's two forms."""
    body = answer.json()
    if "errors" in body:
        [error] = body["errors"]
        return error["detail"]["code"], error["message"], error["detail"]["hint"]
    return body["code"], body["detail"], body["hint"]


def test_without_a_key_nothing_is_answered_but_what_is_open(api):
    nobody = with_key(api, None)
    for path in OPEN:
        assert nobody.get(path).status_code != 401, path
    for method, path in [*locked(api), ("GET", "/none"), ("GET", "/v1"), ("PATCH", "/v1/builds")]:
        answer = nobody.request(method, filled(path), follow_redirects=False)
        if is_page(path):
            assert answer.status_code == 303, (method, path)
            assert answer.headers["location"] == f"/login?next={quote(filled(path))}"
            continue
        assert answer.status_code == 401, (method, path)
        scheme = "Basic" if path.startswith("/v2") else "Bearer"
        assert answer.headers["www-authenticate"] == f'{scheme} realm="engine farm"'
        if method != "HEAD":
            code, _, hint = said(answer)
            assert code == "key-needed"
            assert "farm keys create" in hint


@pytest.mark.parametrize("scope", Scope)
def test_a_key_may_call_what_its_scope_allows_and_is_told_what_it_lacks(api, db, scope):
    caller = with_key(api, a_key(db, scope))
    for method, path in locked(api):
        answer = caller.request(method, filled(path))
        needed = access.SCOPES[method, path]
        is_works = scope is Scope.WORK and (method, path) in access.OF_WORKERS
        if allows([scope], needed) or is_works:
            assert answer.status_code not in (401, 403), (method, path)
            continue
        assert answer.status_code == 403, (method, path)
        if is_page(path):
            assert f"requires the scope {needed}" in answer.text
            continue
        if not path.startswith("/v2"):  # OCI's clients would ask for another password
            challenge = answer.headers["www-authenticate"]
            assert f'error="insufficient_scope", scope="{needed}"' in challenge
        if method != "HEAD":
            code, detail, hint = said(answer)
            assert code == "scope-missing"
            assert f"requires the scope {needed}" in detail
            assert f"--scope {needed}" in hint


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} {key}",
        "Bearer {upper}",
        "Bearer farm_0000000000_" + "0" * 64,
        "Bearer \N{LATIN SMALL LETTER SHARP S}",
    ],
)
def test_what_isnt_a_key_of_the_farm_opens_nothing(api, sent):
    text = sent.format(key=api.key, upper=api.key.upper()).encode("latin-1")
    answer = with_key(api, None).get("/v1/builds", headers=[(b"authorization", text)])
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_the_right_id_with_another_secret_opens_nothing(api):
    forged = api.key[:-64] + "0" * 64
    assert with_key(api, forged).get("/v1/builds").status_code == 401


def test_two_keys_at_once_are_none(api):
    pair = [(b"authorization", f"Bearer {api.key}".encode())] * 2
    assert with_key(api, None).get("/v1/builds", headers=pair).status_code == 401


def test_the_scheme_is_known_however_it_is_written(api):
    headers = {"Authorization": f"bearer {api.key}"}
    assert with_key(api, None).get("/v1/builds", headers=headers).status_code == 200


def test_another_site_is_refused_before_any_key_is_looked_at(api):
    headers = {"Origin": "http://evil.example"}
    assert with_key(api, None).post("/v1/builds", headers=headers).status_code == 403


def test_metrics_ask_for_a_key_where_the_setting_says_so(api, settings):
    assert with_key(api, None).get("/metrics").status_code == 200
    app = create_app(settings.model_copy(update={"metrics_need_key": True}))
    assert Api(app, None).get("/metrics").status_code == 401
    assert Api(app).get("/metrics").status_code == 200
    app.state.services.db.dispose()


def test_where_no_keys_are_required_anybody_may_do_everything_but_not_with_a_wrong_key(settings):
    app = create_app(settings.model_copy(update={"keys_required": False}))
    anybody = Api(app, None)
    assert anybody.post("/v1/builds", json=request(anybody)).status_code == 202
    assert anybody.get("/v1/keys").status_code == 200
    assert Api(app, "farm_wrong").get("/v1/builds").status_code == 401
    assert anybody.get("/v1/audit").json()["items"][0]["who"] == "anonymous"
    app.state.services.db.dispose()


def test_the_document_says_what_each_operation_needs(api):
    paths = api.get("/openapi.json").json()["paths"]
    assert paths["/v1/gc"]["post"]["security"] == [{"key": ["admin"]}]
    assert paths["/v1/builds"]["get"]["security"] == [{"key": ["read"]}]
    assert "401" in paths["/v1/builds"]["get"]["responses"]
    assert "security" not in paths["/healthz"]["get"]
