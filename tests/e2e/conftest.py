"""Farms of real processes: one that the tests share, and as many of their own as they like.

With ``FARM_TEST_DATABASE_URL`` and ``FARM_TEST_BROKER_URL`` each farm has a fresh Postgres database
and a Redis database number of its own, so that sessions side by side don't mix.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from farm.local import up
from farm.settings import Settings
from tests.conftest import POSTGRES, _admin, _postgres_url
from tests.e2e.live import ROOT, LiveFarm, wait_until

BROKER = os.environ.get("FARM_TEST_BROKER_URL")
#: Short leases, so that what a crash interrupted goes on soon; long enough for a busy machine. What engines
#: are timed at is another test's affair.
QUICK = {
    "lease_ttl_s": 8.0,
    "sweep_interval_s": 0.5,
    "ring_again_s": 10.0,
    "retry_first_s": 2.5,
    "retry_longest_s": 10.0,
    "cpu_timing_share": 0.05,
}


@contextmanager
def fresh_settings(home: Path, **more: Any) -> Iterator[Settings]:
    """Settings of a farm that has nothing yet."""
    with ExitStack() as stack:
        if POSTGRES is not None:
            more["database_url"] = stack.enter_context(_database())
        if BROKER is not None:
            more["broker_url"] = stack.enter_context(_broker(BROKER))
        yield Settings(home=home, **(QUICK | more))


@contextmanager
def _database() -> Iterator[str]:
    name = f"farm_e2e_{uuid.uuid4().hex[:12]}"
    _admin(f"CREATE DATABASE {name}")
    yield _postgres_url(name)
    _admin(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _broker(url: str) -> Iterator[str]:
    """A Redis database that no other session uses.

    Who uses which is written in database 0, since a storm flushes the one it uses.
    """
    with Redis.from_url(urlsplit(url)._replace(path="/0").geturl()) as claims:
        for number in range(1, 16):
            claim = f"farm-test-uses-{number}"
            if claims.set(claim, "1", nx=True, ex=1800):
                numbered = urlsplit(url)._replace(path=f"/{number}").geturl()
                try:
                    yield numbered
                finally:
                    with Redis.from_url(numbered) as redis:
                        redis.flushdb()
                    claims.delete(claim)
                return
    pytest.fail("every Redis database is taken: FLUSHALL it")


#: A file beside the others, once they are all there.
ALL_THERE = "all there"


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes the files, while the farm starts."""

    folder: Path
    process: subprocess.Popen[bytes] | None  #: none where another process of the tests has it

    def made(self) -> bool:
        assert self.process is None or not self.process.poll()
        return (self.folder / ALL_THERE).exists()


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tmp_path_factory.mktemp("files")
    else:
        folder = tmp_path_factory.getbasetemp().with_name("files")
        try:
            folder.mkdir()
        except FileExistsError:
            return Maker(folder=folder, process=None)
    command = [sys.executable, "-m", "tests.e2e.files", str(folder), ALL_THERE]
    return Maker(folder=folder, process=subprocess.Popen(command, cwd=ROOT))


@pytest.fixture(scope="session")
def files(maker: Maker) -> Path:
    """A folder with what is submitted; ``tests.e2e.files`` says what."""
    wait_until("the files are made", maker.made, 400)
    return maker.folder


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory, maker: object) -> Iterator[LiveFarm]:
    home = tmp_path_factory.mktemp("e2e") / "a home"
    with fresh_settings(home) as settings, up.embedded(settings) as running:
        yield LiveFarm(running.addresses, settings)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory, maker: object) -> Iterator[LiveFarm]:
    """Another farm, for what counts what there is; each module has models of its own there."""
    home = tmp_path_factory.mktemp("pages") / "a home"
    with fresh_settings(home) as settings, up.embedded(settings) as running:
        yield LiveFarm(running.addresses, settings)


@pytest.fixture
def tidy(farm: LiveFarm) -> Iterator[None]:
    """Afterwards no child and no work folder is left."""
    yield
    wait_until("nothing is left behind", farm.is_tidy)
