"""The door: by which name, from whose page and with what a request may come, and what answers carry."""

from __future__ import annotations

import re

import httpx2
import pytest

from farm.api.app import create_app
from farm.errors import CrossSite, WrongHost
from farm.settings import Settings
from farm.trust.hosts import Hosts
from tests.contract.conftest import Api

JSON = {"Content-Type": "application/json"}
#: Each call that changes something, with a body that it could take.
CHANGES = [
    ("/v1/blobs", b"bytes"),
    ("/v1/builds", b"{}"),
    ("/v1/builds/none/cancel", b""),
    ("/v1/builds/none/retry", b""),
    ("/v1/gc", b'{"dry_run": true}'),
    ("/v1/plugins", b"{}"),
]


def problem(answer: httpx2.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["hint"]
    return answer.json()


# By which name


@pytest.mark.parametrize(
    "host",
    "localhost LOCALHOST localhost:8000 farm.localhost 127.0.0.1:8000 127.1.2.3 [::1] [::1]:8000 "
    "192.168.1.7 10.0.0.1:80 [fe80::1]:8000 localhost.".split(),
)
def test_the_farm_is_reached_by_localhost_and_by_any_address(api, host):
    assert api.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    "evil.example evil.example:8000 127.0.0.1.evil.example localhost.evil.example evil-localhost "
    "localhost@evil.example 127.0.0.1.nip.io 2130706433.evil.example farm".split(),
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/builds", "/docs", "/openapi.json", "/none"])
def test_a_name_that_was_made_to_lead_here_is_refused(api, host, path):
    found = problem(api.get(path, headers={"Host": host}), 421)
    assert found["code"] == "wrong-host"
    assert "FARM_HOSTS" in found["hint"]


def test_a_host_that_makes_no_sense_is_refused(api):
    problem(api.get("/healthz", headers={"Host": "[::1"}), 422)


def test_this_machines_own_name_is_taken(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "GPU-Box")
    hosts = Hosts()
    for name in ("gpu-box", "gpu-box:8000", "GPU-BOX.local"):
        hosts.check("GET", {"host": [name]})
    with pytest.raises(WrongHost):
        hosts.check("GET", {"host": ["gpu-box.evil.example"]})


def test_each_of_several_hosts_must_be_the_farms():
    with pytest.raises(WrongHost):
        Hosts().check("GET", {"host": ["localhost", "evil.example"]})


def test_the_setting_names_others():
    hosts = Hosts(("farm.example.com", "*.lan"))
    for name in ("farm.example.com", "FARM.example.com:443", "gpu.lan", "localhost", "10.1.1.1"):
        hosts.check("GET", {"host": [name]})
    for name in ("example.com", "lan", "farm.example.com.evil.example"):
        with pytest.raises(WrongHost):
            hosts.check("GET", {"host": [name]})
    Hosts(("*",)).check("GET", {"host": ["whatever.example"]})


# From whose page


@pytest.mark.parametrize(("path", "content"), CHANGES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another program's page on this machine
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(api, path, content, headers):
    found = problem(api.post(path, content=content, headers=headers), 403)
    assert found["code"] == "cross-site"
    assert api.get("/v1/builds").json()["items"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost"},
        {},
    ],
)
def test_the_farms_own_pages_and_programs_may_change_things(api, headers):
    assert api.post("/v1/blobs", content=b"bytes", headers=headers).status_code == 201


def test_behind_a_proxy_the_name_that_browsers_see_counts():
    hosts = Hosts(("farm.example.com",))
    seen = {"host": ["127.0.0.1:8000"], "origin": ["https://farm.example.com"]}
    hosts.check("POST", seen)
    with pytest.raises(CrossSite):
        Hosts(("*",)).check("POST", seen)


def test_another_page_may_link_to_the_farm_and_no_more(api):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert api.get("/v1/builds", headers=link).status_code == 200
    for mode in ("no-cors", "cors"):
        problem(api.get("/v1/builds", headers=link | {"Sec-Fetch-Mode": mode}), 403)


def test_no_page_of_another_site_may_read_an_answer(api):
    answer = api.get("/v1/builds", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = api.request("OPTIONS", "/v1/builds", headers=asked)
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


# With what


@pytest.mark.parametrize(("path", "content"), CHANGES)
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/html",
        "application/jsonp",
        "text/plain; application/json",
        "",
    ],
)
def test_a_content_type_that_any_page_may_send_is_refused(api, path, content, kind):
    found = problem(api.post(path, content=content, headers={"Content-Type": kind}), 415)
    assert found["code"] == "wrong-content-type"


@pytest.mark.parametrize("path", [path for path, content in CHANGES if path != "/v1/blobs"])
def test_a_body_without_a_content_type_is_refused_but_for_uploads(api, path):
    found = problem(api.post(path, content=b"{}"), 415)
    assert "application/json" in found["hint"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_json_is_taken_as_json(api, kind):
    headers = {"Content-Type": kind}
    answer = api.post("/v1/gc", content=b'{"dry_run": true}', headers=headers)
    assert answer.status_code == 200


def test_an_upload_is_bytes_or_says_nothing(api):
    for headers in ({}, {"Content-Type": "application/octet-stream"}):
        assert api.post("/v1/blobs", content=b"bytes", headers=headers).status_code == 201


@pytest.mark.parametrize("call", ["cancel", "retry"])
def test_a_call_without_a_body_needs_no_content_type(api, call):
    problem(api.post(f"/v1/builds/none/{call}"), 404)


@pytest.mark.parametrize(
    "wrong",
    [
        {"older_than_s": True},
        {"older_than_s": "0"},
        {"dry_run": 1},
        {"dry_run": "true"},
        {"older_than_s": None},
    ],
)
def test_what_is_of_another_type_is_refused_and_not_guessed(api, wrong):
    digest = api.upload(b"stays")
    answer = api.post("/v1/gc", json={"older_than_s": 0} | wrong)
    assert answer.status_code == 422, answer.text
    assert api.request("HEAD", f"/v1/blobs/{digest}").status_code == 200


@pytest.mark.parametrize(("sent", "taken"), [("3600.0", 201), ("36e2", 201), ("3600.5", 422)])
def test_a_whole_number_is_an_integer_however_it_is_written(api, sent, taken):
    body = f'{{"name": "ci", "scopes": ["read"], "expires_in_s": {sent}}}'
    answer = api.post("/v1/keys", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == taken, answer.text


# What answers carry


@pytest.mark.parametrize("path", ["/healthz", "/v1/builds", "/v1/none", "/docs", "/openapi.json"])
def test_every_answer_says_what_a_browser_may_do_with_it(api, path):
    headers = api.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'self';" in policy if path == "/docs" else "script-src" not in policy


def test_a_bug_carries_them_too(api, monkeypatch):
    monkeypatch.setattr("farm.builds.views.builds", lambda *_, **__: 1 / 0)
    answer = api.get("/v1/builds")
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_documentation_is_made_of_the_farms_own_files(api):
    page = api.get("/docs").text
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(named) == 4
    for path in named:
        answer = api.get(path)
        assert answer.status_code == 200, path
        assert len(answer.content) > 100
    assert "<script>" not in page
    assert "//" not in page.replace("<!doctype html>", "")
    problem(api.get("/docs/none.js"), 404)
    problem(api.get("/docs/..%2f..%2fcore.py"), 404)


def test_a_method_that_a_path_has_not_is_told_with_those_that_it_has(api):
    for path, allowed in (("/v1/builds", "GET, POST"), ("/v1/builds/x/cancel", "POST")):
        answer = api.request("PUT", path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed


def test_a_range_past_the_end_is_a_problem_with_the_size(api, settings):
    from farm.api.files import BlobResponse

    digest = api.upload(b"0123456789")

    @api.app.get("/a-file")
    async def a_file() -> BlobResponse:
        store = api.app.state.services.store
        return BlobResponse(store.place(digest), etag='"x"')

    answer = api.get("/a-file", headers={"Range": "bytes=10-"})
    assert answer.status_code == 416
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-range"] == "bytes */10"
    many = ",".join(f"{n}-{n}" for n in range(0, 10, 2)) + ",0-0" * 20
    assert api.get("/a-file", headers={"Range": f"bytes={many}"}).status_code in (200, 206)


def test_a_farm_of_another_name_says_so_in_one_setting(tmp_path, database_url):
    made = Settings(home=tmp_path, database_url=database_url, hosts="farm.example.com, *.lan")
    assert made.hosts == ("farm.example.com", "*.lan")
    assert made.environment()["FARM_HOSTS"] == "farm.example.com,*.lan"
    app = create_app(made)
    other = Api(app)
    assert other.get("/healthz", headers={"Host": "farm.example.com"}).status_code == 200
    app.state.services.db.dispose()


@pytest.mark.parametrize("wrong", ["http://farm", "farm:8000", "a b", "-x"])
def test_a_setting_that_is_no_name_is_refused(wrong):
    with pytest.raises(ValueError, match="isn't a host name"):
        Settings(hosts=wrong)
