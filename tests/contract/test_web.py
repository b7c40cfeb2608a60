"""The page: who gets in, what *Now* shows, and that what people type stays text."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

import anyio
import httpx2
import pytest
from sqlalchemy import select, update

from farm.api.web.render import POLICY, STATIC, is_page
from farm.database.base import now
from farm.database.tables import ApiKey, Login
from farm.specs.scopes import Scope
from tests.contract.conftest import Api, request, with_key
from tests.keys import a_key

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def browser(api: Api, *, cookie: str = "", path: str = "/", method: str = "GET", **options):
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"} | options.pop("headers", {})
    if cookie:
        headers["Cookie"] = cookie
    return with_key(api, None).request(method, path, headers=headers, **options)


def logged_in(api: Api, key: str) -> str:
    answer = browser(api, method="POST", path="/v1/login", json={"key": key})
    assert answer.status_code == 204, answer.text
    return answer.headers["set-cookie"].partition(";")[0]


def submitted(api: Api, **changes) -> dict:
    answer = api.post("/v1/builds", json=request(api) | changes)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_browser_without_a_login_is_led_to_it_and_back(api: Api) -> None:
    answer = browser(api, path="/builds")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/builds")
    page = browser(api, path="/login?next=/builds").text
    assert 'data-call="POST /v1/login"' in page
    assert 'data-then="/builds"' in page


def test_a_key_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(api: Api) -> None:
    answer = browser(api, method="POST", path="/v1/login", json={"key": f" {api.key}\n"})
    said = answer.headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict"} <= {part.strip() for part in said.split(";")}
    assert api.key not in answer.headers["set-cookie"]
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert browser(api, path="/", cookie=cookie).status_code == 200
    assert browser(api, path="/v1/builds", cookie=cookie).status_code == 200
    secure = browser(
        api,
        method="POST",
        path="/v1/login",
        json={"key": api.key},
        headers={"X-Forwarded-Proto": "https"},
    )
    assert "secure" in secure.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "key", ["", "x", "farm_7k2c9qd4mx_" + "0" * 64, "login_7k2c9qd4mx_" + "0" * 64]
)
def test_another_key_does_not_log_in(api: Api, key: str) -> None:
    answer = browser(api, method="POST", path="/v1/login", json={"key": key})
    assert (answer.status_code, answer.json()["code"]) == (401, "key-needed")
    assert "set-cookie" not in answer.headers


def test_a_login_ends_with_its_key_with_its_time_and_by_logging_out(api: Api, db) -> None:
    key = a_key(db, Scope.READ)
    cookie = logged_in(api, key)
    assert browser(api, cookie=cookie).status_code == 200
    out = browser(api, method="DELETE", path="/v1/login", cookie=cookie)
    assert (out.status_code, "max-age=0" in out.headers["set-cookie"].lower()) == (204, True)
    assert browser(api, cookie=cookie).status_code == 303

    cookie = logged_in(api, key)
    with db.write() as session:
        session.execute(update(Login).values(expires_at=now() - timedelta(seconds=1)))
    api.app.state.services.ring.forget()
    assert browser(api, cookie=cookie).status_code == 303

    cookie = logged_in(api, key)
    with db.write() as session:
        session.execute(
            update(ApiKey).where(ApiKey.id == key.split("_")[1]).values(revoked_at=now())
        )
    api.app.state.services.ring.forget()
    assert browser(api, cookie=cookie).status_code == 303


def test_a_login_may_do_what_its_key_may(api: Api, db) -> None:
    cookie = logged_in(api, a_key(db, Scope.READ))
    page = browser(api, cookie=cookie).text
    assert 'href="/fleet"' in page
    assert 'href="/keys"' not in page
    refused = browser(api, path="/keys", cookie=cookie)
    assert refused.status_code == 403
    assert "requires the scope admin" in refused.text
    build = submitted(api)["id"]
    post = browser(api, method="POST", path=f"/v1/builds/{build}/cancel", cookie=cookie)
    assert (post.status_code, post.json()["code"]) == (403, "scope-missing")


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}]
)
def test_another_site_cannot_use_a_login(api: Api, headers: dict[str, str]) -> None:
    cookie = logged_in(api, api.key)
    build = submitted(api)["id"]
    if "Origin" in headers:
        headers = headers | {"Sec-Fetch-Site": ""}
    answer = browser(
        api, method="POST", path=f"/v1/builds/{build}/cancel", cookie=cookie, headers=headers
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")


def test_a_link_logs_in_once_and_leads_only_within_the_farm(api: Api, db) -> None:
    made = api.post("/v1/login/links?next=/builds").json()
    path = made["url"].removeprefix("http://localhost")
    assert api.key not in path
    first = browser(api, path=path)
    assert (first.status_code, first.headers["location"]) == (303, "/builds")
    cookie = first.headers["set-cookie"].partition(";")[0]
    assert browser(api, cookie=cookie).status_code == 200
    again = browser(api, path=path)
    assert again.status_code == 401
    assert "farm open" in again.text
    assert "set-cookie" not in again.headers
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/%0d%0aX: y"):
        link = api.post("/v1/login/links", params={"next": elsewhere}).json()["url"]
        answer = browser(api, path=link.removeprefix("http://localhost"))
        assert answer.headers["location"] in ("/", "/%0d%0aX:%20y"), elsewhere


def test_a_link_itself_is_no_login_and_grows_old(api: Api, db) -> None:
    link = api.post("/v1/login/links").json()["url"]
    text = re.search(r"link=(login_\w+)", link)[1]
    name = logged_in(api, api.key).partition("=")[0]
    assert browser(api, cookie=f"{name}={text}").status_code == 303
    with db.write() as session:
        session.execute(
            update(Login).where(Login.is_link).values(expires_at=now() - timedelta(seconds=1))
        )
    assert browser(api, path=link.removeprefix("http://localhost")).status_code == 401


def test_of_two_that_follow_a_link_one_gets_in(api: Api) -> None:
    path = api.post("/v1/login/links").json()["url"].removeprefix("http://localhost")

    async def both() -> list[int]:
        transport = httpx2.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = []

            async def one() -> None:
                found.append((await client.get(path)).status_code)

            async with anyio.create_task_group() as group:
                group.start_soon(one)
                group.start_soon(one)
            return found

    assert sorted(anyio.run(both)) == [303, 401]


def test_logins_that_have_ended_are_not_kept(api: Api, db) -> None:
    logged_in(api, api.key)
    with db.write() as session:
        session.execute(update(Login).values(expires_at=now() - timedelta(days=1)))
    logged_in(api, api.key)
    with db.read() as session:
        assert len(session.scalars(select(Login)).all()) == 1


def test_a_farm_that_has_built_nothing_says_how_to_begin_with_its_address(api: Api) -> None:
    page = api.get("/").text
    assert "Nothing has been built yet" in page
    assert "export FARM_URL=http://localhost\n" in page
    assert "farm submit model.onnx" in page


def test_now_shows_what_waits_and_for_which_worker(api: Api, db, ledger) -> None:
    build = submitted(api, targets=["tensorrt:h200"])["id"]
    page = api.get("/").text
    assert f'href="/builds/{build}"' in page
    assert "1 build running or waiting" in page
    assert "Nothing has been built yet" not in page


def test_now_shows_what_runs_before_what_lacks_a_worker_and_what_is_behind_others(
    api: Api, db, ledger
) -> None:
    """However many newer builds wait."""
    from farm.database.tables import Job

    ledger.worker(name="cpu@there")
    names = ("runs", "lacks", *(f"behind{one}" for one in range(12)))
    builds = {
        name: submitted(api, model=name, source=_source(api, name.encode())) for name in names
    }
    first = {name: build["jobs"][0]["id"] for name, build in builds.items()}
    with db.write() as session:
        one = update(Job).where(Job.id == first["runs"])
        session.execute(one.values(state="running", owner="cpu@there", started_at=now()))
        one = update(Job).where(Job.id == first["lacks"])
        session.execute(one.values(queue="tensorrt.h200"))
    page = api.get("/").text
    places = [
        page.index(f'id="build-{builds[name]["id"]}"') for name in ("runs", "lacks", "behind11")
    ]
    assert places == sorted(places)
    assert page.index('id="running"') < places[0] < page.index('id="waiting"') < places[1]
    assert places[1] < page.index('id="queued"') < places[2]
    assert f'id="build-{builds["behind2"]["id"]}"' in page
    assert f'id="build-{builds["behind1"]["id"]}"' not in page
    assert '<a href="/builds?state=queued">2 more wait</a>' in page


def _source(api: Api, content: bytes) -> dict:
    return {"digest": api.upload(content), "format": "onnx"}


def test_now_shows_a_failure_with_its_hint_as_text(api: Api, db) -> None:
    from farm.database.tables import Build, Job

    build = submitted(api)["id"]
    error = {"code": "export-failed", "detail": f"torch said {HOSTILE}", "hint": "read <b>it</b>"}
    with db.write() as session:
        session.execute(update(Job).values(state="failed", error=error, finished_at=now()))
        session.execute(update(Build).values(state="failed", finished_at=now()))
    page = api.get("/").text
    assert "torch said &lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in page
    assert "read &lt;b&gt;it&lt;/b&gt;" in page
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert f'id="build-{build}"' not in page


def test_clients_that_ask_for_json_get_links(api: Api) -> None:
    answer = api.get("/", headers={"Accept": "application/json"})
    assert answer.json()["builds"] == "/v1/builds"


@pytest.mark.parametrize(
    "path", ["/", "/builds", "/fleet", "/search?q=x", "/audit", "/keys", "/login"]
)
def test_pages_run_no_script_but_the_farms_own_and_are_not_read_twice(api: Api, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert not re.search(r"<script(?![^>]* src=\"/static/)[^>]*>(?!</script>)", answer.text)
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", answer.text)
    again = api.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_is_asked_for_appears_as_text(api: Api) -> None:
    page = api.get("/search", params={"q": '"><script>alert(1)</script>'}).text
    assert "<script>alert" not in page
    assert "&#34;&gt;&lt;script&gt;alert(1)" in page
    audit = api.get("/audit", params={"key": '"><img src=x>'}).text
    assert "<img" not in audit


def test_an_error_on_a_page_is_a_page_and_in_the_api_a_problem(api: Api) -> None:
    page = api.get("/builds?state=none")
    assert (page.status_code, page.headers["content-type"]) == (422, "text/html; charset=utf-8")
    assert "<h1>Unprocessable" in page.text
    problem = api.get("/v1/builds?state=none")
    assert problem.headers["content-type"] == "application/problem+json"


def test_static_files_are_the_farms_alone_and_kept_by_browsers(api: Api) -> None:
    answer = api.get("/static/farm.css")
    assert "immutable" in answer.headers["cache-control"]
    for name in ("none.css", "..%2frender.py", "htmx.LICENSE", "%2e%2e"):
        assert api.get(f"/static/{name}").status_code == 404, name


def test_what_comes_from_others_has_its_licence_beside_it() -> None:
    vendored = {one.name for one in (STATIC / "vendor").iterdir()}
    for name in {one.partition("-")[0] for one in vendored if one.endswith((".js", ".css"))}:
        assert f"{name}.LICENSE" in vendored


def test_search_finds_and_links_what_there_is(api: Api) -> None:
    build = submitted(api)["id"]
    page = api.get("/search?q=digits").text
    assert 'href="/models/digits"' in page
    assert f'href="/builds/{build}"' in page
    assert "Nothing has all of these words" in api.get("/search?q=nothing").text


def test_the_fleet_shows_queues_that_nobody_reads(api: Api, db) -> None:
    from farm.database.tables import Job

    submitted(api)
    with db.write() as session:
        session.execute(update(Job).values(state="queued", queue="tensorrt.h200"))
    page = api.get("/fleet").text
    assert "tensorrt.h200" in page
    assert "a worker with a GPU h200 and tensorrt installed" in page
    [queue] = [one for one in api.get("/v1/queues").json() if one["queue"] == "tensorrt.h200"]
    assert queue["workers"] == 0
    assert queue["jobs"] >= 1
    assert queue["oldest_s"] > 0
    assert api.get("/v1/now").json()["queues"][0]["queue"] == "tensorrt.h200"
    assert "files," in api.get("/fleet?part=disk").text
    assert "database" in api.get("/fleet?part=health").text


def test_administrators_see_keys_and_changes(api: Api) -> None:
    build = submitted(api)["id"]
    assert build in api.get("/audit?action=submit").text
    assert build not in api.get("/audit?action=cancel").text
    keys = api.get("/keys").text
    key_id = api.key.split("_")[1]
    assert f'data-call="DELETE /v1/keys/{key_id}"' in keys
    assert api.key not in keys
    assert f'href="/keys/{key_id}"' in keys


def test_administrators_see_and_change_what_a_key_may_use(api: Api, db) -> None:
    key_id = a_key(db, Scope.SUBMIT, name="ci").split("_")[1]
    changes = {"builds": 5, "stored_bytes": "unlimited"}
    assert api.request("PATCH", f"/v1/keys/{key_id}/limits", json=changes).is_success
    page = api.get(f"/keys/{key_id}").text
    assert '<th scope="row">builds</th><td>0</td><td>5</td>' in page
    assert '<th scope="row">stored-bytes</th><td>0 B</td><td>unlimited</td>' in page
    assert f'data-call="PATCH /v1/keys/{key_id}/limits"' in page
    # What the form sends if nothing is changed changes nothing, and an empty field is the default.
    sent = json.loads(html.unescape(re.search(r'data-json="([^"]*)"', page)[1]))
    assert set(sent.values()) == {None}
    fields = dict(re.findall(r'<input name="(\w+)" value="([^"]*)"', page))
    assert set(fields) == set(sent)
    sent |= {name: value for name, value in fields.items() if value}
    answer = api.request("PATCH", f"/v1/keys/{key_id}/limits", json=sent)
    assert answer.json()["own"] == dict.fromkeys(sent) | changes
    assert api.get("/keys/0000000000").status_code == 404


def test_pages_are_told_from_the_api_by_their_paths() -> None:
    assert all(
        map(is_page, ("/", "/builds", "/builds/last", "/models/a", "/login", "/keys", "/keys/a"))
    )
    assert not any(
        map(is_page, ("/v1", "/v2/", "/v1/builds", "/docs", "/static/farm.css", "/none"))
    )


def test_the_audit_says_who_logged_in(api: Api, db) -> None:
    logged_in(api, api.key)
    path = api.post("/v1/login/links").json()["url"].removeprefix("http://localhost")
    browser(api, path=path)
    key_id = api.key.split("_")[1]
    found = [(one["action"], one["key_id"]) for one in api.get("/v1/audit").json()["items"]]
    assert [one for one in found if one[0].startswith("login")] == [
        ("login", key_id),
        ("login.link", key_id),
        ("login", key_id),
    ]
