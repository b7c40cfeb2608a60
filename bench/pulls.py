"""A pull of a 1 GB engine over what nginx sends on the same loopback in the same run.

The content alone: the same reader, which throws the bytes away, asks the farm's API, as ``farm api`` runs
it, and nginx for the same file. And the whole pull, ``Farm.pull_engine``, which writes the file through to
the disk and verifies it: beside ``curl`` from nginx, which does neither, and beside ``curl`` followed by
``sha256sum``, as one would do by hand.

The two take turns, every second time the other way round, over new connections without TLS, and the file is
in the page cache. Between turns what was written is deleted and the disk finishes: ``curl`` leaves that to
whoever comes next. The rates are medians. Where something else runs too, the processors' time, here and in
the server, tells more.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from bench import shelf
from bench.processes import ROOT, processor_s, wait_for
from bench.table import Row, row
from farm.client import Farm
from farm.database import migrate
from farm.database.session import Database
from farm.local.up import free_port
from farm.settings import Settings
from farm.store.local import LocalStore
from farm.testing.documents import rtx_plan

BYTES = 10**9
ROUNDS = 6
_READ_BYTES = 1 << 20
_NGINX = """\
daemon off;
{user}
pid {home}/nginx.pid;
error_log {home}/nginx.log;
worker_processes 1;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of processors."""

    clock_s: float
    cpu_s: float

    def __add__(self, other: Took) -> Took:
        return Took(self.clock_s + other.clock_s, self.cpu_s + other.cpu_s)


@dataclass(frozen=True)
class Server:
    """A process that serves at a URL."""

    url: str
    pid: int


@dataclass(frozen=True)
class Side:
    """What one of the two does in its turn."""

    server: Server
    steps: tuple[Callable[[], object], ...]


def ratios() -> Iterator[Row]:
    """The rates, then the processors' time."""
    missing = [name for name in ("nginx", "curl", "sha256sum") if shutil.which(name) is None]
    if missing:
        print(f"  not measured: needs {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        digest, engine, written = _stored(home), f"e{0:015}", home / "written"
        blob = LocalStore(home / "store").place(digest)
        with _api(home) as farm, _nginx(blob, home) as nginx:
            at = f"{nginx.url}/{blob.name}"
            content = _turns(
                written,
                Side(farm, (lambda: _receive(f"{farm.url}/v1/engines/{engine}/content"),)),
                Side(nginx, (lambda: _receive(at),)),
            )
            pull = _turns(
                written,
                Side(farm, (lambda: Farm(farm.url).pull_engine(engine, written),)),
                Side(nginx, (lambda: _curl(at, written), lambda: _verify(written))),
            )
    pairs = {
        "content of a 1 GB engine over nginx": (content[0][0], content[1][0]),
        "pull of a 1 GB engine over curl from nginx": (pull[0][0], pull[1][0]),
        "pull of a 1 GB engine over curl and sha256sum": (pull[0][0], pull[1][0] + pull[1][1]),
    }
    for what, (ours, theirs) in pairs.items():
        yield row(what, _rate(ours), _rate(theirs), " MB/s", digits=0, least=0.8)
    for what, (ours, theirs) in pairs.items():
        yield row(f"processors' time, {what}", ours.cpu_s, theirs.cpu_s, " s", digits=2)


def _rate(took: Took) -> float:
    return BYTES / took.clock_s / 1e6


def _stored(home: Path) -> str:
    """Put an engine of 1 GB into a farm's store and registry; return its digest."""
    settings = Settings(home=home)
    migrate.upgrade(settings)
    file = home / "plan"
    file.write_bytes(rtx_plan(BYTES, capability_bit=0x01))  # for sm_75, as the shelf's first engine
    stored = LocalStore(home / "store").take(file)
    db = Database(settings.database)
    shelf.fill(db, 1, models=1, digest=stored.digest, size=BYTES)
    db.dispose()
    return stored.digest


def _turns(written: Path, *sides: Side) -> list[list[Took]]:
    """The medians of each side's steps, after a round that fills the caches."""
    rounds = []
    for number in range(ROUNDS + 1):
        order = sides[:: -1 if number % 2 else 1]
        took = {id(side): _turn(side, written) for side in order}
        rounds.append([took[id(side)] for side in sides])
    return [
        [
            Took(median(one.clock_s for one in step), median(one.cpu_s for one in step))
            for step in zip(*turns, strict=True)
        ]
        for turns in zip(*rounds[1:], strict=True)
    ]


def _turn(side: Side, written: Path) -> list[Took]:
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    os.sync()
    return [_timed(step, side.server) for step in side.steps]


def _timed(step: Callable[[], object], server: Server) -> Took:
    start, cpu = time.perf_counter(), _cpu_s(server)
    step()
    return Took(time.perf_counter() - start, _cpu_s(server) - cpu)


def _cpu_s(server: Server) -> float:
    return processor_s(server.pid) + sum(os.times()[:4])


def _receive(url: str) -> None:
    """Ask for a file over one connection and throw its bytes away."""
    found = urlsplit(url)
    with socket.create_connection((found.hostname, found.port or 80)) as raw:
        asked = f"GET {found.path} HTTP/1.1\r\nHost: {found.netloc}\r\nConnection: close\r\n\r\n"
        raw.sendall(asked.encode())
        buffer, received = bytearray(_READ_BYTES), 0
        while count := raw.recv_into(buffer):
            received += count
    assert received > BYTES, f"{received} bytes of {url}"


def _curl(url: str, folder: Path) -> None:
    subprocess.run(["curl", "-sf", "-o", folder / "engine", url], check=True)


def _verify(folder: Path) -> None:
    subprocess.run(["sha256sum", folder / "engine"], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _api(home: Path) -> Iterator[Server]:
    """The farm's API on this home."""
    settings = {"FARM_HOME": str(home), "FARM_LOG_LEVEL": "ERROR", "FARM_KEYS_REQUIRED": "false"}
    port = free_port()
    command = [sys.executable, "-m", "farm", "api", "--port", str(port)]
    with _serving(command, port, home / "api.log", settings) as server:
        yield server


@contextmanager
def _nginx(file: Path, home: Path) -> Iterator[Server]:
    """nginx, which serves the files beside this one."""
    port, configuration = free_port(), home / "nginx.conf"
    user = f"user {os.environ.get('USER', 'root')};" if os.geteuid() == 0 else ""
    text = _NGINX.format(home=home, port=port, root=file.parent, user=user)
    configuration.write_text(text)
    command = ["nginx", "-p", str(home), "-c", str(configuration)]
    with _serving(command, port, home / "nginx.log", {}) as server:
        yield server


@contextmanager
def _serving(
    command: list[str], port: int, log: Path, settings: dict[str, str]
) -> Iterator[Server]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output
        )

    def accepts() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as raw:
            return raw.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(accepts)
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        process.wait()
