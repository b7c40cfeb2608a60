"""The real Triton Inference Server, unpacked from a wheel of PyPI; it needs no GPU.

Its wheel holds the Python backend alone. ``FARM_TRITON_HOME`` names a folder in which it is, or is to be,
unpacked; by default one in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import wheels
from tests.e2e.live import wait_until

WHEEL = "nvidia-pytriton==0.7.0"
_STUB = "triton_python_backend_stub"


def home() -> Path:
    """The folder with the unpacked wheel; skips the test where it can't be had, and fails it in CI."""
    if not sys.prefix.isascii():
        pytest.skip(
            "Triton's Python backend reads no packages in a folder of other letters than ASCII"
        )
    return wheels.unpacked(WHEEL, _prepare, folder=os.environ.get("FARM_TRITON_HOME"))


def _prepare(whole: Path) -> None:
    server = whole / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "backends" / "python" / _STUB
    shutil.copy(server / "python_backend_stubs" / version / _STUB, stub)
    for program in (server / "bin" / "tritonserver", stub):
        program.chmod(0o755)


@dataclass(frozen=True, kw_only=True)
class Triton:
    """A running server."""

    url: str
    repository: Path | str  #: as it was given
    log: Path

    def index(self) -> list[dict[str, str]]:
        """Each version of each model with its state, and the reason of a failure."""
        answer = httpx2.post(f"{self.url}/v2/repository/index", timeout=120)
        found: list[dict[str, str]] = answer.raise_for_status().json()
        return found

    def load(self, model: str) -> str | None:
        """Load a model; return why it can't be."""
        url = f"{self.url}/v2/repository/models/{model}/load"
        answer = httpx2.post(url, timeout=120)
        return None if answer.is_success else str(answer.json()["error"])

    def config(self, model: str) -> Any:
        answer = httpx2.get(f"{self.url}/v2/models/{model}/config", timeout=120)
        return answer.raise_for_status().json()


@contextmanager
def running(
    repository: Path | str,
    *,
    mode: str = "explicit",
    logs: Path | None = None,
) -> Iterator[Triton]:
    """A server of this repository, in which nothing is loaded yet.

    Parameters:
        repository: a folder, made if missing; or a bucket, as Triton names it, with its credentials in the
            environment.
        logs: a folder for the server's log; by default the one that the repository is in.
    """
    folder = home()
    server = folder / "pytriton" / "tritonserver"
    if isinstance(repository, Path):
        repository.mkdir(parents=True, exist_ok=True)
        logs = logs or repository.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert logs, "where is the log to be?"
    log = logs / f"triton-{port}.log"
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{folder / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
        # The Python backend's interpreter is the first on the path, with its packages.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                server / "bin" / "tritonserver",
                f"--model-repository={repository}",
                f"--backend-directory={server / 'backends'}",
                f"--model-control-mode={mode}",
                "--http-address=127.0.0.1",
                f"--http-port={port}",
                "--allow-grpc=false",
                "--allow-metrics=false",
                "--exit-timeout-secs=5",
            ],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    triton = Triton(url=f"http://127.0.0.1:{port}", repository=repository, log=log)
    try:
        wait_until("Triton answers", lambda: _is_up(process, triton))
        yield triton
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_up(process: subprocess.Popen[bytes], triton: Triton) -> bool:
    assert process.poll() is None, triton.log.read_text()
    try:
        return httpx2.get(f"{triton.url}/v2/health/live", timeout=5).is_success
    except httpx2.TransportError:
        return False
