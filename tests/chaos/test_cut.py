"""A Postgres that cuts its connections again and again: the API answers 503, and never 500."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import make_url

from tests.conftest import POSTGRES, _admin
from tests.contract.live_api import LiveApi, live_api

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(POSTGRES is None, reason="SQLite has no connections to cut"),
]

_REQUESTS, _CALLERS = 3000, 6
_PATHS = (
    *("/v1/builds", "/v1/builds/last", "/v1/models", "/v1/models/none", "/v1/workers", "/v1/keys"),
    *("/v1/audit", "/v1/search?q=tiny", "/v1/usage", "/v1/models/none/engines/t4", "/readyz"),
)


def test_no_request_fails_as_a_bug_of_the_farm_while_connections_are_cut(
    tmp_path: Path, database_url: str
) -> None:
    answers: Counter[tuple[str, int]] = Counter()
    with live_api(tmp_path, database_url=database_url) as api:
        name = make_url(database_url).database
        over = threading.Event()
        with ThreadPoolExecutor(_CALLERS + 1) as pool:
            cuts = pool.submit(_cut, f"datname = '{name}'", over)
            try:
                for one in pool.map(lambda n: _ask(api, n), range(_CALLERS)):
                    answers += one
            finally:
                over.set()
            assert cuts.result() > 5
    statuses = {status for _, status in answers}
    assert {200, 503} <= statuses, answers
    assert not {one for one in answers if one[1] >= 500 and one[1] != 503}


def _ask(api: LiveApi, caller: int) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    with httpx2.Client(base_url=api.url, timeout=60, headers=api.http.headers) as client:
        for n in range(caller, _REQUESTS, _CALLERS):
            if n % 4:
                path, answer = (path := _PATHS[n % len(_PATHS)]), client.get(path)
            else:
                path, answer = "POST /v1/blobs", client.post("/v1/blobs", content=str(n).encode())
            found[path, answer.status_code] += 1
    return found


def _cut(which: str, over: threading.Event) -> int:
    done = 0
    while not over.wait(0.1):
        _admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}")
        done += 1
    return done
