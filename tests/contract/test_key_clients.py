"""Keys from outside: the client, the commands, and a served API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import httpx2
import pytest
from typer.testing import CliRunner

from farm.cli import app as commands
from farm.client import Farm
from farm.errors import Conflict, KeyNeeded, ScopeMissing
from farm.specs.scopes import Scope
from farm.trust import credentials
from tests.contract.conftest import Api, with_key
from tests.contract.live_api import live_api
from tests.keys import a_key, bearer


class Bridge(httpx2.BaseTransport):
    """Carries a client's requests to the API in this process."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = [(k, v) for k, v in request.headers.raw if k.lower() != b"host"]
        path = request.url.raw_path.decode()
        answer = self._api.request(request.method, path, headers=headers, content=request.read())
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


def client(api: Api, key: str) -> Farm:
    return Farm("http://localhost", key=key, transport=Bridge(with_key(api, None)))


@pytest.fixture
def farm(api) -> Farm:
    return client(api, api.key)


def test_the_client_makes_lists_and_revokes_keys_and_reads_the_audit(api, farm):
    made = farm.create_key("ci", ["submit"], expires_in_s=3600)
    theirs = client(api, made.key)
    assert theirs.builds() == []
    with pytest.raises(ScopeMissing):
        theirs.keys()
    listed = farm.keys()
    assert [one.name for one in listed] == ["ci", "tests"]
    assert farm.revoke_key(made.id).revoked_at
    with pytest.raises(KeyNeeded, match="expired, or was revoked"):
        theirs.builds()
    assert [one.action for one in farm.audit(limit=2)] == ["key.revoke", "key.create"]
    assert farm.audit(action="key.revoke")[0].object == made.id
    with pytest.raises(Conflict):
        farm.revoke_key(credentials.id_of(api.key))


def test_the_commands_show_the_keys_and_the_audit(api, monkeypatch):
    monkeypatch.setattr("farm.cli.keys.connect", lambda _url: client(api, api.key))

    def run(*words: str):
        result = CliRunner().invoke(commands, list(words))
        assert result.exit_code == 0, result.output
        return result

    key = run("keys", "create", "--name", "ci", "--scope", "submit", "--expires", "12h").stdout
    key_id = credentials.id_of(key.strip())
    table = run("keys", "list").stdout
    assert key_id in table
    assert "submit" in table
    run("keys", "revoke", key_id)
    assert "revoked" in run("keys", "list").stdout
    shown = run("audit", "--wide").stdout
    assert "key.revoke" in shown
    assert "name ci" in shown
    [row] = json.loads(run("audit", "--action", "key.revoke", "--json").stdout)
    assert (row["object"], row["who"]) == (key_id, "tests")


def test_a_served_api_writes_down_uses_and_hears_of_what_the_machines_owner_revokes(tmp_path):
    with live_api(tmp_path / "api") as live:
        made = live.http.post("/v1/keys", json={"name": "ci", "scopes": ["read"]}).json()
        theirs = bearer(made["key"])
        assert httpx2.get(f"{live.url}/v1/builds", headers=theirs, timeout=60).status_code == 200
        until(lambda: live.http.get(f"/v1/keys/{made['id']}").json()["last_used_at"])
        subprocess.run(
            [sys.executable, "-m", "farm", "keys", "revoke", made["id"], "--local"],
            env=os.environ | live.settings.environment(),
            check=True,
        )
        until(lambda: httpx2.get(f"{live.url}/v1/builds", headers=theirs).status_code == 401)
        [row] = live.http.get("/v1/audit", params={"action": "key.revoke"}).json()["items"]
        assert (row["key_id"], row["address"]) == (None, "this machine")


def until(condition) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_creating_a_key_without_being_allowed_to_points_elsewhere(api, monkeypatch):
    for key, said in (
        (a_key(api.app.state.services.db, Scope.READ), "this requires the scope admin"),
        ("farm_unknown", "unknown key"),
    ):
        monkeypatch.setattr("farm.cli.keys.connect", lambda _url, key=key: client(api, key))
        monkeypatch.setattr("farm.cli.keys._is_first", lambda: False)
        result = CliRunner().invoke(commands, ["keys", "create", "--scope", "admin", "--name", "x"])
        assert said in result.stderr, result.stderr
        assert "set FARM_KEY to an administrator's key; or, where" in result.stderr
        assert result.stderr.rstrip().endswith("farm keys create --local")
