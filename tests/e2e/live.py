"""A farm of real processes, and what is left of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np
from typer.testing import CliRunner, Result

from farm.cli import app
from farm.local.up import Addresses
from farm.settings import Settings
from tests.keys import bearer, key_of

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
ENDED = ("succeeded", "failed", "cancelled")


def wait_until(what: str, condition: Callable[[], T], seconds: float = 180.0) -> T:
    """What the condition gives, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


# Processes


@dataclass(frozen=True, kw_only=True)
class Process:
    pid: int
    parent: int
    session: int
    command: str


def processes(*homes: Path) -> list[Process]:
    """The living processes of the farm in these homes, known by their environment or their folder; and what
    they have started, of which some forget their environment."""
    there = {
        process.pid: (process, mine)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (found := _process(entry, homes)) is not None
        for process, mine in [found]
    }

    def is_mine(pid: int) -> bool:
        return pid in there and (there[pid][1] or is_mine(there[pid][0].parent))

    return [process for process, _ in there.values() if is_mine(process.pid)]


def _process(entry: Path, homes: Sequence[Path]) -> tuple[Process, bool] | None:
    try:
        state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if state == "Z":
        return None
    found = Process(pid=int(entry.name), parent=int(parent), session=int(session), command=command)
    try:
        own = {f"FARM_HOME={home}".encode() for home in homes}
        mine = not own.isdisjoint((entry / "environ").read_bytes().split(b"\0"))
        mine = mine or any(map((entry / "cwd").readlink().is_relative_to, homes))
    except OSError:  # it ended, or isn't ours to look at, or is in a folder whose name is too long
        mine = False
    return found, mine


def stages(*homes: Path) -> list[Process]:
    """The guards of the stages: forked from the fork server, each with its child in a session of its own."""
    found = processes(*homes)
    return [p for p in found if "forkserver" in p.command and p.session == p.pid]


def fork_servers(*homes: Path) -> list[Process]:
    """The processes that stages are forked from."""
    parents = {p.parent for p in stages(*homes)}
    return [p for p in processes(*homes) if p.pid in parents]


def workers(*homes: Path) -> list[Process]:
    """The Celery workers."""
    return [p for p in processes(*homes) if "-m workers --one" in p.command]


# The farm


class LiveFarm:
    """A running farm, as its users see it."""

    def __init__(self, addresses: Addresses, settings: Settings) -> None:
        self.addresses = addresses
        self.settings = settings
        self.home = addresses.home
        self.key = key_of(settings)
        self.http = httpx2.Client(base_url=addresses.api, timeout=120, headers=bearer(self.key))

    def cli(self, *arguments: str | Path) -> Cli:
        """Start ``farm …`` as a process of a user of this farm alone."""
        return Cli(self.addresses.api, *map(str, arguments), more=self._user())

    def ran(self, *arguments: str | Path) -> Result:
        """``farm …`` within this process: the second of imports is saved."""
        environment = {"FARM_URL": self.addresses.api, **self._user()}
        return CliRunner().invoke(app, [*map(str, arguments)], env=environment)

    def says(self, *arguments: str | Path) -> Any:
        """The JSON that ``farm …`` prints, within this process."""
        ran = self.ran(*arguments, "--json")
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)

    def _user(self) -> dict[str, str]:
        return {"FARM_KEY": self.key, "FARM_HOME": f"{self.home} of a user"}

    def flower(self, path: str) -> Any:
        url = f"{self.addresses.flower}{path}"
        return httpx2.get(url, timeout=120, headers=bearer(self.key)).raise_for_status().json()

    def get(self, path: str, **query: Any) -> Any:
        return self.http.get(path, params=query).raise_for_status().json()

    def upload(self, content: bytes | Path) -> str:
        if isinstance(content, Path):
            content = content.read_bytes()
        answer = self.http.post("/v1/blobs", content=content)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["digest"])

    def request(
        self, model: str, source: bytes | Path, format: str = "onnx", /, **changes: Any
    ) -> httpx2.Response:
        """Upload a source and submit it."""
        body = {
            "model": model,
            "source": {"digest": self.upload(source), "format": format},
            "precisions": ["fp16"],
            "targets": ["tensorrt-rtx:sm_86"],
        }
        return self.http.post("/v1/builds", json=body | changes)

    def submit(self, model: str, source: Path, format: str = "onnx", **changes: Any) -> Any:
        answer = self.request(model, source, format, **changes)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def build(self, build_id: str) -> Any:
        return self.get(f"/v1/builds/{build_id}")

    def ended(self, build_id: str, seconds: float = 400.0) -> Any:
        """The build once it has ended."""

        def look() -> Any:
            view = self.build(build_id)
            return view if view["state"] in ENDED else None

        return wait_until(f"build {build_id} ended", look, seconds)

    def running(self, build_id: str, kind: str) -> Any:
        """The build's job of this kind once a child of it is at work."""

        def look() -> Any:
            view = self.build(build_id)
            assert view["state"] not in ENDED, view
            return next(
                (
                    job
                    for job in view["jobs"]
                    if job["kind"] == kind and job["state"] == "running" and job["phase"]
                ),
                None,
            )

        return wait_until(f"the {kind} of build {build_id} runs", look)

    def long_calibration(self, seed: int, samples: int = 6000) -> dict[str, Any]:
        """Data that take a few seconds to calibrate with, other ones for each seed."""
        path = self.home / f"long-{seed}.npz"
        images = np.random.default_rng(seed).random((samples, 1, 8, 8), dtype=np.float32)
        np.savez(path, image=images)
        return {"digest": self.upload(path), "batch_size": 1}

    def workdirs(self) -> list[Path]:
        return list(self.home.glob("work/*/*"))

    def is_tidy(self) -> bool:
        """Whether no stage runs and none has left anything behind."""
        return not stages(self.home) and not self.workdirs()


class Cli:
    """A ``farm`` command, running."""

    def __init__(self, url: str, *arguments: str, more: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "farm", *arguments],
            env=os.environ | {"FARM_URL": url} | (more or {}),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, code: int = 0, seconds: float = 400.0) -> tuple[str, str]:
        """What it printed, once it has ended with this exit code."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == code, (self.process.returncode, out, err)
        return out, err

    def json(self) -> Any:
        return json.loads(self.end()[0])
