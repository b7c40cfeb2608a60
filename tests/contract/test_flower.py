"""Flower answers its users, and no page of another site."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx
import pytest

from farm.up import free_port

pytestmark = pytest.mark.xdist_group("live-api")


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    """Flower without a broker: it shows nothing, and says so to the same callers."""
    port, home = free_port(), tmp_path_factory.mktemp("flower")
    environment = {"FARM_HOME": str(home), "FARM_BROKER_URL": "redis://127.0.0.1:1/0"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "farm", "flower", "--port", str(port)],
            env=os.environ | environment | {"FARM_HOSTS": "farm.example.com"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/healthcheck", timeout=30)
            break
        except httpx.TransportError:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
    yield url
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.parametrize("path", ["/api/tasks", "/healthcheck", "/tasks", "/static/css/flower.css"])
def test_no_page_of_another_site_may_read_it(flower, path):
    answer = httpx.get(f"{flower}{path}", headers={"Origin": "http://evil.example"}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/api/tasks", "/", "/static/css/flower.css", "/none"])
def test_a_name_that_was_made_to_lead_here_is_refused(flower, path):
    answer = httpx.get(f"{flower}{path}", headers={"Host": "evil.example"}, timeout=30)
    assert answer.status_code == 421
    assert "FARM_HOSTS" in answer.text


def test_it_is_reached_by_the_names_of_the_setting(flower):
    headers = {"Host": "farm.example.com"}
    assert httpx.get(f"{flower}/healthcheck", headers=headers, timeout=30).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
@pytest.mark.parametrize("call", ["task/async-apply/farm.run", "worker/shutdown/w", "none"])
def test_a_page_of_another_site_changes_nothing(flower, call, headers):
    answer = httpx.post(f"{flower}/api/{call}", headers=headers, json={}, timeout=30)
    assert answer.status_code == 403
    assert "another site" in answer.text or "asked for this" in answer.text


def test_its_pages_are_in_no_frame(flower):
    answer = httpx.get(f"{flower}/tasks", timeout=30)
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
