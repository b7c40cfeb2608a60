"""The 99th percentile of a submission's time, under 16 clients, over that of a handler of two inserts, and
over its own median.

The API runs as ``farm up`` starts it, with its broker: the sweep announces the jobs meanwhile, and
no worker takes them. The peer is ``bench.bare`` on the same server; on Postgres it uses the same
database. Each client sends its next request when it has the answer to the last one, over one
connection and with no library between, which would take the clients' one process longer than the
server takes. Of ten submissions one is of new work, as in ``bench.submissions``.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench import submissions
from bench.processes import api_without_worker, fresh_database, kinds
from bench.submissions import Server
from bench.table import Row, row
from farm.settings import Settings

CLIENTS = 16
SECONDS = 5.0
ROUNDS = 3


def p99() -> Iterator[Row]:
    """Over all rounds; the two take turns, the first second of each turn doesn't count."""
    for kind in kinds():
        with (
            tempfile.TemporaryDirectory() as folder,
            fresh_database(kind, Path(folder)) as url,
        ):
            # All these clients have one key, and an API that is slow would send some away.
            settings = Settings(home=Path(folder), database_url=url, max_client_share=1.0)
            ours, theirs = _measure(settings, "" if kind == "SQLite" else url)
        yield row(
            f"POST /v1/builds, p99 under {CLIENTS} clients, {kind}",
            _p99(ours) * 1000,
            _p99(theirs) * 1000,
            " ms",
        )
        yield row(
            f"POST /v1/builds, p99 over the median under {CLIENTS} clients, {kind}",
            _p99(ours) * 1000,
            median(ours) * 1000,
            " ms",
            most=3,
        )


def _measure(settings: Settings, bare_url: str) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    theirs: list[float] = []
    with api_without_worker(settings) as client:
        bare = Server("bench.bare:app", settings.home, database_url=bare_url)
        try:
            key = client.headers["Authorization"]
            digest = submissions.prepare(str(client.base_url), key)
            numbers = iter(range(10**9))
            for _ in range(ROUNDS):
                ours += asyncio.run(
                    _load(
                        client.base_url.port or 0,
                        "/v1/builds",
                        lambda: submissions.build(digest, next(numbers)),
                        key,
                    )
                )
                theirs += asyncio.run(
                    _load(int(bare.url.rpartition(":")[2]), "/", lambda: submissions.item(1))
                )
        finally:
            bare.stop()
    return ours, theirs


def _p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98]


async def _load(
    port: int, path: str, body: Callable[[], dict[str, Any]], key: str = ""
) -> list[float]:
    """Seconds of each request."""
    start = time.perf_counter()
    clients = [
        _client(port, path, body, key, start + 1, start + 1 + SECONDS) for _ in range(CLIENTS)
    ]
    return [second for times in await asyncio.gather(*clients) for second in times]


async def _client(
    port: int, path: str, body: Callable[[], dict[str, Any]], key: str, begin: float, end: float
) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    while (start := time.perf_counter()) < end:
        content = json.dumps(body()).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"authorization: {key}\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await _answer(reader)
        if start > begin:
            times.append(time.perf_counter() - start)
    writer.close()
    return times


async def _answer(reader: asyncio.StreamReader) -> None:
    status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    lengths = [int(f.partition(":")[2]) for f in fields if f.startswith("content-length:")]
    content = await reader.readexactly(lengths[0])
    if " 20" not in status:
        raise RuntimeError(f"{status}: {content!r}")
