"""Submissions per second of the API over a bare FastAPI handler that inserts two rows.

Both run on the same server, with the same number of processes, on databases of the same kind made in
this run, under the same load from the same client.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from bench.table import Row, row
from farm.database import migrate
from farm.local import up
from farm.settings import Settings

CLIENTS = 8
SECONDS = 6.0
ROUNDS = 3


def ratio() -> Iterator[Row]:
    """Median over the rounds of the ratio; the two take turns."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        migrate.upgrade(Settings(home=home))
        farm, bare = Server("farm.api.server:app", home), Server("bench.bare:app", home)
        try:
            digest = prepare(farm.url)
            rates = [
                (
                    load(farm.url, "/v1/builds", lambda n: build(digest, n)),
                    load(bare.url, "/", item),
                )
                for _ in range(ROUNDS)
            ]
        finally:
            farm.stop()
            bare.stop()
    ours, theirs = sorted(rates, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
    yield row(
        f"submissions/s, {CLIENTS} clients, over a handler of two inserts",
        ours,
        theirs,
        "/s",
        digits=0,
        least=0.6,
    )


class Server:
    """One granian process; without a URL its database is SQLite in the home."""

    def __init__(self, target: str, home: Path, *, database_url: str = "") -> None:
        port = up.free_port()
        self.url = f"http://127.0.0.1:{port}"
        code = (
            "from granian import Granian; from granian.constants import Interfaces;"
            f"Granian({target!r}, factory=True, port={port}, interface=Interfaces.ASGI,"
            "websockets=False, log_access=False).serve()"
        )
        environment = os.environ | {
            "FARM_HOME": str(home),
            "FARM_LOG_LEVEL": "ERROR",
            "FARM_DATABASE_URL": database_url,
            "FARM_KEYS_REQUIRED": "false",  # the handler beside it asks for none either
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx2.get(f"{self.url}/healthz")
                return
            except httpx2.TransportError:
                time.sleep(0.05)
        sys.exit(f"{target} didn't start")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def prepare(url: str, authorization: str = "") -> str:
    headers = {"Authorization": authorization} if authorization else {}
    answer = httpx2.post(f"{url}/v1/blobs", content=b"a model", timeout=30, headers=headers)
    return str(answer.raise_for_status().json()["digest"])


def build(digest: str, number: int) -> dict[str, Any]:
    """A build of one target; of every ten submissions one is of new work, the others reuse it."""
    return {
        "model": f"model-{number // 10 % 50}",
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp32"],
        "targets": ["tensorrt-rtx:sm_89"],
        "profiles": [{"x": {"min": [1], "opt": [1], "max": [1 + number // 10]}}],
    }


def item(number: int) -> dict[str, Any]:
    return {"name": f"item-{number}", "amount": number}


def load(url: str, path: str, body: Any) -> float:
    """Requests per second."""
    return asyncio.run(_load(url, path, body))


_counter = iter(range(10**9))


async def _load(url: str, path: str, body: Any) -> float:
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:

        async def one() -> int:
            done = 0
            while time.perf_counter() < end:
                answer = await client.post(path, json=body(next(_counter)))
                answer.raise_for_status()
                done += 1
            return done

        start = time.perf_counter()
        end = start + SECONDS
        counts = await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return sum(counts) / (time.perf_counter() - start)
