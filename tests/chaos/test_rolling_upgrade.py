"""A fleet is upgraded while it works: the schema first, then an API or a worker at a time."""

from __future__ import annotations

import random
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from farm.database import migrate
from tests.chaos.crowd import ENDED, tiny_model
from tests.chaos.part import Part
from tests.chaos.site import Site
from tests.conftest import POSTGRES
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import ROOT, wait_until
from tests.keys import bearer

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(POSTGRES is None, reason="SQLite has one machine, which stops meanwhile"),
]

_CALLERS, _BUILDS = 4, 6
_PATHS = ("/v1/builds", "/v1/models", "/v1/workers", "/v1/now", "/v1/queues", "/readyz")
_NEWER = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{before}"
branch_labels = depends_on = None
expands = True


def upgrade():
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
    op.add_column("builds", sa.Column("later", sa.Integer(), server_default="0", nullable=False))
"""


class Front:
    """What stands before the APIs: it sends a request to one that takes part, and waits for the answer."""

    def __init__(self) -> None:
        self._serving: Counter[str] = Counter()  #: URL to requests that it answers just now
        self._draining: dict[str, int] = {}
        self._changed = threading.Condition()

    def add(self, url: str) -> None:
        with self._changed:
            self._serving[url] = 0

    def drain(self, url: str) -> None:
        """Send it nothing more, and wait for its answers."""
        with self._changed:
            self._draining[url] = self._serving.pop(url)
            assert self._changed.wait_for(lambda: not self._draining[url], 60)

    @contextmanager
    def one(self):
        with self._changed:
            url = random.choice(list(self._serving))
            self._serving[url] += 1
        try:
            yield url
        finally:
            with self._changed:
                of = self._serving if url in self._serving else self._draining
                of[url] -= 1
                self._changed.notify_all()


def test_no_request_fails_and_no_build_is_lost_while_apis_and_workers_are_replaced(tmp_path: Path):
    newer = _newer_farm(tmp_path / "newer farm")
    with fresh_settings(tmp_path / "farm") as settings:
        site = Site(settings)
        started: list[Part] = []
        try:
            site.start()
            second, second_url = site.an_api("api 2")
            second.start()
            started.append(second)
            wait_until("the second API is ready", lambda: _ready(second_url), 60)
            front, over = Front(), threading.Event()
            front.add(site.url)
            front.add(second_url)
            with ThreadPoolExecutor(_CALLERS + _BUILDS) as pool:
                try:
                    callers = [pool.submit(_ask, front, site.key, over) for _ in range(_CALLERS)]
                    builds = [pool.submit(_build, front, site.key, n) for n in range(_BUILDS)]
                    site.upgrade(newer)
                    for old, url in ((site.api, site.url), (second, second_url)):
                        new, new_url = site.an_api(f"newer {old.name}", newer)
                        new.start()
                        started.append(new)
                        wait_until("the new API is ready", lambda: _ready(new_url), 60)  # noqa: B023
                        front.add(new_url)
                        front.drain(url)
                        old.kill(signal.SIGTERM)
                    for old in site.supervisors:
                        old.kill(signal.SIGTERM)
                        new = site.a_worker(f"newer {old.name}", newer)
                        new.start()
                        started.append(new)
                    assert {one.result() for one in builds} == {"succeeded"}
                finally:
                    over.set()
                answers = sum((one.result() for one in callers), Counter())
        finally:
            for part in started:
                part.kill(signal.SIGTERM)
            site.stop()
    assert {status for _, status in answers} <= {200, 201}, answers
    assert sum(answers.values()) > 100


def _newer_farm(folder: Path) -> Path:
    """A copy of this farm with one more migration."""
    for part in ("farm", "workers", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    text = _NEWER.format(before=migrate.newest_schema())
    (folder / "migrations" / "versions" / "9999_later.py").write_text(text)
    return folder


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


def _ask(front: Front, key: str, over: threading.Event) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    number = 0
    while not over.is_set():
        number += 1
        with front.one() as url:
            path = _PATHS[number % len(_PATHS)]
            if number % 5:
                answer = httpx2.get(f"{url}{path}", headers=bearer(key), timeout=60)
            else:
                path = "POST /v1/blobs"
                answer = httpx2.post(
                    f"{url}/v1/blobs", content=random.randbytes(64), headers=bearer(key), timeout=60
                )
        found[path, answer.status_code] += 1
    return found


def _build(front: Front, key: str, number: int) -> str:
    def ask(method: str, path: str, **more):
        with front.one() as url:
            answer = httpx2.request(method, f"{url}{path}", headers=bearer(key), timeout=60, **more)
        assert answer.status_code < 300, answer.text
        return answer.json()

    digest = ask("POST", "/v1/blobs", content=tiny_model(number))["digest"]
    request = {
        "model": f"tiny-{number}",
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp32"],
        "targets": ["onnxruntime:cpu"],
    }
    build = ask("POST", "/v1/builds", json=request)
    states: list[str] = []

    def ended() -> bool:
        states.append(ask("GET", f"/v1/builds/{build['id']}")["state"])
        return states[-1] in ENDED

    wait_until("the build has ended", ended, 300)
    return states[-1]
