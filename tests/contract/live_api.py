"""The API as a process of its own, which attacks can't slow down by sharing the tests' interpreter."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import httpx2

from farm.database import migrate
from farm.database.session import Database
from farm.local.up import free_port
from farm.settings import Settings
from farm.specs.scopes import Scope
from tests.keys import a_key, bearer, key_of
from workers.sandbox import tree

T = TypeVar("T")
_START_S = 180.0


class LiveApi:
    def __init__(self, port: int, settings: Settings, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.settings = settings
        self.process = process
        self.key = key_of(settings)
        #: Of a request that is written by hand.
        self.head = f"Host: localhost\r\nAuthorization: Bearer {self.key}\r\n".encode()
        self.http = httpx2.Client(base_url=self.url, timeout=_START_S, headers=bearer(self.key))

    def new_key(self, *scopes: Scope) -> str:
        """Another client's key, which it has come to know: it looks for unknown ones ten times a second."""
        db = Database(self.settings.database)
        made = a_key(db, *scopes, name="another")
        db.dispose()
        deadline = time.monotonic() + _START_S
        while self.http.get("/v1/builds", headers=bearer(made)).status_code == 401:
            assert time.monotonic() < deadline, "it never knows the key"
            time.sleep(0.05)
        return made

    def upload(self, content: bytes) -> str:
        answer = self.http.post("/v1/blobs", content=content)
        assert answer.status_code == 201, answer.text
        return answer.json()["digest"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=_START_S)

    def health_s(self) -> float:
        """How long it takes to say that it is well, on a connection of its own, but for what the machine's
        other work keeps it waiting."""
        return self.took_s(self._health)[0]

    def _health(self) -> float:
        with self.connect() as raw:
            began = time.monotonic()
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = raw.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        return time.monotonic() - began

    def took_s(self, ask: Callable[[], T]) -> tuple[float, T]:
        """How long an answer takes, but for what the machine's other work keeps it waiting."""
        before, began = self._kept_waiting_s(), time.monotonic()
        answer = ask()
        took = time.monotonic() - began
        # Thread by thread: one that ends meanwhile takes along all that it ever waited.
        after = self._kept_waiting_s().items()
        kept = sum(waited - before.get(thread, 0.0) for thread, waited in after)
        return max(0.0, took - kept), answer

    def _kept_waiting_s(self) -> dict[Path, float]:
        """For how long threads of its own, and of the tests, could have run and had no processor."""
        waited: dict[Path, float] = {}
        for folder in (*self._processes(), Path("/proc/self")):
            for thread in folder.glob("task/*/schedstat"):
                with contextlib.suppress(OSError):
                    waited[thread] = int(thread.read_text().split()[1]) / 1e9
        return waited

    def _processes(self) -> list[Path]:
        """Those that serve, and their supervisor, in `/proc`."""
        own = self.process.pid
        return [Path(f"/proc/{pid}") for pid in (own, *tree.below(own))]

    def memory_bytes(self) -> int:
        """Of the process that serves, and of its supervisor."""
        found = 0
        for process in self._processes():
            said = dict(
                line.split(":", 1) for line in (process / "status").read_text().splitlines()
            )
            found += int(said["VmRSS"].split()[0]) * 1024
        return found

    @contextlib.contextmanager
    def staying_well(self) -> Iterator[None]:
        """Ask for its health all the while; it answers within a second more than when it is idle."""
        idle = max(self._health() for _ in range(5))  # with all that else keeps this machine busy
        took: list[float] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                took.append(self.health_s())
                ended.wait(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield
        finally:
            ended.set()
            asking.join()
        took.append(self.health_s())
        slowest, usual = max(took), statistics.median(took)
        assert slowest < 1.0 + 10 * idle, f"{slowest:.2f} s ({usual:.3f} usually, {idle:.3f} idle)"


@contextlib.contextmanager
def live_api(
    home: Path, environment: Mapping[str, str] | None = None, database_url: str | None = None
) -> Iterator[LiveApi]:
    """A served API on an empty database (by default SQLite's), with these settings."""
    home.mkdir(parents=True, exist_ok=True)
    settings = Settings(home=home, database_url=database_url or f"sqlite:///{home / 'farm.db'}")
    migrate.upgrade(settings)
    port = free_port()
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "farm", "api", "--port", str(port)],
            env=os.environ | settings.environment() | dict(environment or {}),
            stdout=log,
            stderr=log,
        )
        api = LiveApi(port, settings, process)
        try:
            deadline = time.monotonic() + _START_S
            while True:
                with contextlib.suppress(ConnectionError):
                    api.health_s()
                    break
                assert process.poll() is None, (home / "api.log").read_text()
                assert time.monotonic() < deadline, (home / "api.log").read_text()
                time.sleep(0.05)
            yield api
        finally:
            api.http.close()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
