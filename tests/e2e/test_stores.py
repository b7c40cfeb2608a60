"""A farm whose parts share nothing but the network.

Its artifacts are in a bucket; one worker reaches them there, another by the API.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from farm.local import up
from farm.settings import Settings
from farm.specs.scopes import Scope
from tests import s3
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import ROOT, LiveFarm, wait_until
from tests.keys import a_key

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory, server: s3.S3) -> Iterator[Spread]:
    home = tmp_path_factory.mktemp("spread") / "home"
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in server.environment.items():
            patch.setenv(name, value)
        store = f"s3://{s3.BUCKET}/farm"
        settings = stack.enter_context(fresh_settings(home, store=store))
        farm = up.LocalFarm(settings)
        stack.callback(farm.stop)
        farm.start(("api",))
        yield Spread(LiveFarm(farm.addresses, settings), server, home.parent)


class Spread:
    """The API of a farm in a bucket, to which workers with homes of their own come and go."""

    def __init__(self, farm: LiveFarm, server: s3.S3, folder: Path) -> None:
        self.farm = farm
        self.server = server
        self._folder = folder
        url = farm.settings.broker_url
        self._broker = url or (farm.home / "broker.url").read_text().strip()

    @contextmanager
    def worker(self, name: str, **environment: str) -> Iterator[Path]:
        """A worker on a machine of its own; its home."""
        home = self._folder / name
        settings = Settings(
            home=home,
            database_url=self.farm.settings.database,
            broker_url=self._broker,
            **QUICK_WORKER,
        ).environment()
        # What the API is told of the bucket, this machine isn't.
        known = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FARM_"))}
        log = self._folder / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "farm", "worker", "--cpu-only", "--name", name],
                env=known | settings | {"FARM_AOTINDUCTOR": "false"} | environment,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            yield home
        finally:
            process.terminate()
            process.wait(180)

    def by_bucket(self) -> dict[str, str]:
        return {"FARM_STORE": self.farm.settings.store, **self.server.environment}

    def by_api(self) -> dict[str, str]:
        from farm.database.session import Database

        db = Database(self.farm.settings.database)
        try:
            return {"FARM_STORE": self.farm.addresses.api, "FARM_KEY": a_key(db, Scope.WORK)}
        finally:
            db.dispose()

    def online(self) -> str:
        return str(self.farm.get("/v1/workers"))

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()


QUICK_WORKER = {"lease_ttl_s": 8.0, "retry_first_s": 2.5, "retry_longest_s": 10.0}


def built(spread: Spread, files: Path, model: str, folder: Path) -> dict[str, object]:
    """A build of the digits for CPUs, in int8, and its engine pulled and verified."""
    farm = spread.farm
    view = farm.cli(
        *("submit", files / "digits.pt2", "--name", model, "--gpu", "cpu", "--precision", "int8"),
        *("--calibration", files / "calibration.npz", "--wait", "--json"),
    ).json()
    assert view["state"] == "succeeded"
    pulled = farm.cli("pull", model, "--gpu", "cpu", "-o", folder, "--json").json()
    assert pulled
    [engine] = folder.glob("*.onnx")
    assert engine.stat().st_size > 1000
    return view


def test_workers_by_bucket_and_by_api_build_and_share_no_folder(
    spread: Spread, files: Path, tmp_path: Path
) -> None:
    assert spread.server.contents("farm").keys() >= {"id"}
    with spread.worker("by-bucket", **spread.by_bucket()) as home:
        first = built(spread, files, "one", tmp_path / "one")
        assert list((home / "cache").glob("sha256/*/*"))
        assert not (home / "store").exists()
    with spread.worker("by-api", **spread.by_api()) as home:
        second = built(spread, files, "two", tmp_path / "two")
        assert list((home / "cache").glob("sha256/*/*"))
        assert not (home / "store").exists()
    for view, worker in ((first, "by-bucket"), (second, "by-api")):
        ran = {job["worker"] for job in view["jobs"] if job["reuse"] == "ran"}  # type: ignore[attr-defined]
        assert ran == {f"cpu@{worker}"}
    assert not list((spread.farm.home / "store").rglob("sha256/*/*"))
    shown = spread.farm.get("/v1/store")
    assert (shown["problem"], shown["free_bytes"]) == (None, None)
    assert shown["address"].startswith(spread.farm.settings.store)
    scrubbed = spread.farm.cli("scrub", "--json").json()
    assert (scrubbed["damaged"], scrubbed["missing"]) == ([], [])
    assert scrubbed["checked"] > 5


def test_a_worker_that_cant_reach_the_store_says_what_to_do_and_takes_no_job(
    spread: Spread, files: Path
) -> None:
    with spread.worker("nowhere", FARM_STORE=spread.farm.addresses.api, FARM_KEY="farm_nobodys"):
        wait_until("it is told", lambda: "farm keys create" in spread.said("nowhere"))
        assert "nowhere" not in spread.online()
