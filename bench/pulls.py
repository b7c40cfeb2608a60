"""A pull of a 1 GB engine over what nginx sends on the same loopback in the same run.

The content alone: the same reader, which throws the bytes away, asks the farm's API and nginx for the same
file. And the whole pull, ``Farm.pull_engine``, which writes the file through to the disk and verifies it:
beside ``curl`` from nginx, which does neither, and beside ``curl`` followed by ``sha256sum``, as one would do
by hand.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from bench import shelf
from bench.submissions import Server
from bench.table import Row, row
from farm.client import Farm
from farm.database import migrate
from farm.database.session import Database
from farm.local.up import free_port
from farm.settings import Settings
from farm.store.local import LocalStore
from farm.testing.documents import rtx_plan

BYTES = 10**9
ROUNDS = 5
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


def ratios() -> Iterator[Row]:
    """Medians; the two take turns."""
    missing = [name for name in ("nginx", "curl", "sha256sum") if shutil.which(name) is None]
    if missing:
        print(f"  not measured: needs {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        digest = _stored(home)
        farm, engine = Server("farm.api.server:app", home), f"e{0:015}"
        try:
            with _nginx(LocalStore(home / "store").path(digest), home) as url:
                content = _turns(
                    lambda: _receive(f"{farm.url}/v1/engines/{engine}/content"),
                    lambda: _receive(url),
                )
                pulled = _turns(
                    lambda: Farm(farm.url).pull_engine(engine, _empty(home / "pulled")),
                    lambda: _curl(url, home / "curled"),
                    lambda: _verify(home / "curled"),
                )
        finally:
            farm.stop()
    ours, curl, verifying = pulled
    yield _row("content of a 1 GB engine over nginx", *content)
    yield _row("pull of a 1 GB engine over curl from nginx", ours, curl)
    yield _row("pull of a 1 GB engine over curl and sha256sum", ours, curl + verifying)


def _row(what: str, ours_s: float, theirs_s: float) -> Row:
    ours, theirs = (BYTES / seconds / 1e6 for seconds in (ours_s, theirs_s))
    return row(what, ours, theirs, " MB/s", digits=0, least=0.8)


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


def _turns(*calls: Callable[[], object]) -> Iterator[float]:
    """The median seconds of each, after one that fills the caches."""
    times = [[_timed(one) for one in calls] for _ in range(ROUNDS + 1)][1:]
    return (median(side) for side in zip(*times, strict=True))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
    subprocess.run(["curl", "-sf", "-o", _empty(folder) / "engine", url], check=True)


def _verify(folder: Path) -> None:
    subprocess.run(["sha256sum", folder / "engine"], check=True, stdout=subprocess.DEVNULL)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextmanager
def _nginx(file: Path, home: Path) -> Iterator[str]:
    """nginx, which serves this file at the URL."""
    port, configuration = free_port(), home / "nginx.conf"
    user = f"user {os.environ.get('USER', 'root')};" if os.geteuid() == 0 else ""
    text = _NGINX.format(home=home, port=port, root=file.parent, user=user)
    configuration.write_text(text)
    process = subprocess.Popen(["nginx", "-p", home, "-c", configuration])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, (home / "nginx.log").read_text()
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{file.name}"
    finally:
        process.terminate()
        process.wait()
