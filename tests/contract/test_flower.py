"""Flower answers its users, and no page of another site."""

from __future__ import annotations

import html
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
import pytest

from farm.database import migrate
from farm.database.session import Database
from farm.database.tables import Artifact
from farm.errors import CastFailed
from farm.local.up import free_port
from farm.queue import shown
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.trust import credentials, keys
from farm.trust.callers import THE_FARM
from tests import chromium
from tests.keys import a_key, bearer, key_of
from tests.ledger import SOURCE, Ledger

_PATIENCE_S = 180.0


@contextmanager
def running(settings: Settings, **more: str) -> Iterator[str]:
    """Flower without a broker, at this address: it shows what the database tells."""
    port, home = free_port(), settings.home
    environment = {
        "FARM_DATABASE_URL": settings.database_url,
        "FARM_HOME": str(home),
        "FARM_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "farm", "flower", "--port", str(port)],
            env=os.environ | environment | more,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            httpx2.get(f"{url}/healthcheck", timeout=_PATIENCE_S)
            break
        except httpx2.TransportError:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
    try:
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    home = tmp_path_factory.mktemp("flower")
    settings = Settings(home=home, database_url=f"sqlite:///{home / 'farm.db'}")
    migrate.upgrade(settings)
    with (
        running(settings, FARM_HOSTS="farm.example.com") as url,
        httpx2.Client(
            base_url=url, headers=bearer(key_of(settings)), timeout=_PATIENCE_S
        ) as client,
    ):
        client.database_url = settings.database_url
        yield client


@pytest.mark.parametrize("path", ["/api/tasks", "/healthcheck", "/tasks", "/static/css/flower.css"])
def test_no_page_of_another_site_may_read_it(flower, path):
    answer = flower.get(path, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 200, answer.text
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/api/tasks", "/", "/static/css/flower.css", "/none"])
def test_a_name_that_was_made_to_lead_here_is_refused(flower, path):
    answer = flower.get(path, headers={"Host": "evil.example"})
    assert answer.status_code == 421
    assert "FARM_HOSTS" in answer.text


def test_it_is_reached_by_the_names_of_the_setting(flower):
    headers = {"Host": "farm.example.com"}
    assert flower.get("/healthcheck", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
@pytest.mark.parametrize("call", ["task/async-apply/farm.run", "worker/shutdown/w", "none"])
def test_a_page_of_another_site_changes_nothing(flower, call, headers):
    answer = flower.post(f"/api/{call}", headers=headers, json={})
    assert answer.status_code == 403
    assert "the request comes from" in answer.text


def test_its_pages_are_in_no_frame(flower):
    answer = flower.get("/tasks")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


# Its login


def a_key_of(flower) -> str:
    """A new key that Flower has come to know: it looks for unknown ones ten times a second."""
    database = Database(flower.database_url)
    made = a_key(database, Scope.READ)
    database.dispose()
    deadline = time.monotonic() + _PATIENCE_S
    while flower.get("/api/workers", headers=bearer(made)).status_code == 401:
        assert time.monotonic() < deadline, "it never knows the key"
        time.sleep(0.05)
    return made


def revoke(flower, key: str) -> None:
    database = Database(flower.database_url)
    with database.write() as session:
        keys.revoke(session, credentials.id_of(key), by=THE_FARM)
    database.dispose()


PAGE = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def browser(flower):
    """Somebody without a key."""
    with httpx2.Client(base_url=flower.base_url, timeout=120, headers=PAGE) as client:
        yield client


@pytest.fixture
def key(flower) -> str:
    return flower.headers["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize(
    "path", ["/", "/tasks", "/api/tasks", "/api/workers", "/static/css/flower.css", "/none"]
)
def test_without_a_key_it_shows_nothing(flower, path):
    wrong = ("Bearer x", "Basic eDp5", "Basic ?", "x", "Bearer")
    for headers in ({}, {"Cookie": "farm_flower=x"}, *({"Authorization": one} for one in wrong)):
        answer = httpx2.get(f"{flower.base_url}{path}", headers=headers, timeout=_PATIENCE_S)
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_it_says_without_a_key_that_it_is_well(flower):
    assert httpx2.get(f"{flower.base_url}/healthcheck", timeout=_PATIENCE_S).status_code == 200


def test_a_program_shows_the_key_as_a_bearer_or_as_a_password(flower, key):
    for headers in (bearer(key), {}):
        auth = None if headers else ("", key)
        answer = httpx2.get(
            f"{flower.base_url}/api/workers", headers=headers, auth=auth, timeout=_PATIENCE_S
        )
        assert answer.status_code == 200


def test_a_browser_logs_in_by_a_form_and_comes_where_it_wanted(browser, key):
    asked = browser.get("/tasks?limit=5")
    assert asked.status_code == 303
    form = browser.get(asked.headers["location"])
    assert 'value="/tasks?limit=5"' in form.text
    assert form.headers["content-security-policy"].startswith("default-src 'none'")
    wrong = browser.post("/login", data={"key": "farm_wrong", "next": "/tasks"})
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    right = browser.post("/login", data={"key": f" {key}\n", "next": "/tasks?limit=5"})
    assert (right.status_code, right.headers["location"]) == (303, "/tasks?limit=5")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert key not in cookie
    assert browser.get("/tasks").status_code == 200
    browser.post("/logout")
    assert browser.get("/tasks").status_code == 303


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "/\\\\evil.example", "evil", "/a\tb"]
)
def test_nobody_is_sent_elsewhere_after_the_login(browser, key, where):
    answer = browser.post("/login", data={"key": key, "next": where})
    assert urlsplit(answer.headers["location"]).netloc == ""
    assert answer.headers["location"] == "/"


def test_a_page_of_another_site_logs_nobody_in(browser, key):
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
        answer = browser.post("/login", data={"key": key}, headers=headers)
        assert answer.status_code == 403


def test_a_session_ends_with_its_key(flower, browser, key):
    made = a_key_of(flower)
    assert browser.post("/login", data={"key": made}).status_code == 303
    assert browser.get("/tasks").status_code == 200
    revoke(flower, made)
    deadline = time.monotonic() + _PATIENCE_S
    while browser.get("/tasks").status_code == 200:
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.05)
    assert browser.get("/tasks").status_code == 303


def test_nobody_can_fill_its_memory(flower):
    url = urlsplit(str(flower.base_url))
    with socket.create_connection((url.hostname, url.port), timeout=_PATIENCE_S) as raw:
        raw.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")


# In a browser

#: As a broken stage's process, or a library that repeats a file's words, might say it.
HOSTILE = '<img src=x onerror="document.title=1"> javascript:alert(1) http://evil.example/jobs/1'


@pytest.mark.heavy
def test_a_browser_is_led_from_a_row_to_the_farms_pages(tmp_path):
    program = chromium.program()
    settings = Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path / 'farm.db'}")
    migrate.upgrade(settings)
    ledger = Ledger(Database(settings.database))
    with ledger.db.write() as session:
        session.add(Artifact(digest=SOURCE, bytes=1))
    build = ledger.submit()
    claim = ledger.claim_next()
    ledger.fail(claim, CastFailed(HOSTILE))
    ledger.db.dispose()
    uuid = shown.task_id(claim.job_id, 1)
    more = {"FARM_KEYS_REQUIRED": "false", "FARM_PUBLIC_URL": "https://farm.example/at/"}
    with running(settings, **more) as url:
        deadline = time.monotonic() + _PATIENCE_S
        while uuid not in httpx2.get(f"{url}/api/tasks", timeout=_PATIENCE_S).json():
            assert time.monotonic() < deadline, "it never has the attempt"
            time.sleep(0.05)
        rows, page = (
            seen(program, f"{url}/{path}", tmp_path) for path in ("tasks", f"task/{uuid}")
        )
    job, its_build = (
        f"https://farm.example/at/jobs/{claim.job_id}",
        f"https://farm.example/at/builds/{build}",
    )
    assert f'<a href="{job}">job {claim.job_id}</a>' in rows
    assert f'<a href="{its_build}">{build}</a>' in rows
    for address in (job, its_build):
        assert f'<a href="{address}">{address}</a>' in page
    for shown_page in (rows, page):
        assert "<img src=x" not in shown_page
        assert HOSTILE in html.unescape(shown_page)
        assert 'href="http://evil' not in shown_page
        assert not re.search("<title>1</title>", shown_page)


def seen(program: str, url: str, folder) -> str:
    """A page as a browser has made it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    command = [program, *options, f"--user-data-dir={folder / 'chromium'}", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
