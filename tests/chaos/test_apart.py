"""A farm whose parts share nothing but the network: each worker builds, and each part is restarted in turn.

The artifacts are in a bucket. One worker reaches them there, one by the API, and one has joined by a token
from an empty folder.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.client import Backoff, Build, Farm
from tests.chaos.__main__ import QUICK
from tests.chaos.audit import audit
from tests.chaos.crowd import Ended, tiny_model
from tests.chaos.site import Site
from tests.conftest import POSTGRES
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import ENDED, wait_until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1200)]

TARGET = "tensorrt-rtx:sm_86"
_ENDS_S = 300.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with fresh_settings(tmp_path / "farm", **QUICK) as settings:
        site = Site(settings, "mixed")
        try:
            site.open()
            yield site
        finally:
            site.stop()


class Client:
    """A user elsewhere, who waits for a farm that is away."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.farm = Farm(
            site.url,
            key=site.key,
            home=folder / "user",
            backoff=Backoff(attempts=200, longest_s=1.0),
        )
        self._folder = folder
        self._count = 0
        self.ended: list[Ended] = []

    def submit(self) -> Build:
        """A model that there wasn't yet."""
        self._count += 1
        file = self._folder / f"tiny-{self._count}.onnx"
        file.write_bytes(tiny_model(self._count))
        return self.farm.submit(file, targets=[TARGET], precisions=["fp32"])

    def take(self, build: Build) -> set[str]:
        """Wait for a build and pull what it made; the workers that ran its jobs."""
        view = build.wait(_ENDS_S).view
        assert view.state == "succeeded", view
        [engine] = build.pull(self._folder / build.id, doubtful=True)
        assert engine.stat().st_size > 1000
        request = {"model": view.model, "precisions": ["fp32"], "targets": [TARGET]}
        self.ended.append(Ended(build.id, view.state, request, None))
        return {job.worker for job in view.jobs if job.worker is not None}


@pytest.fixture
def client(site: Site, tmp_path: Path) -> Iterator[Client]:
    client = Client(site, tmp_path)
    with client.farm:
        yield client


def test_each_worker_alone_builds_what_a_client_pulls_and_has_no_store_of_its_own(
    site: Site, client: Client
) -> None:
    for part in site.supervisors:
        site.start_worker(part)
        site.wait_for_workers(1)
        assert client.take(client.submit()) == {f"cpu@{part.name}"}
        part.kill(signal.SIGTERM)
        site.wait_for_workers(0)
        machine = site.home / "machines" / part.name
        assert list((machine / "cache").glob("sha256/*/*"))
        assert not (machine / "store").exists()
    assert not list((site.home / "store").rglob("sha256/*/*"))


def have_a_job_run(client: Client, builds: list[Build]) -> None:
    """Submit one more model, and wait until a job runs; of yet another one, if all ended unseen."""
    builds.append(client.submit())

    def runs() -> bool:
        views = [build.refresh().view for build in builds]
        if all(view.state in ENDED for view in views):
            builds.append(client.submit())
        return any(job.state == "running" for view in views for job in view.jobs)

    wait_until("a job runs", runs, _ENDS_S)


def test_what_is_built_while_each_part_in_turn_is_restarted_succeeds_and_is_pulled(
    site: Site, client: Client
) -> None:
    for worker in site.supervisors:
        site.start_worker(worker)
    site.wait_for_workers(len(site.supervisors))
    [joiner] = site.joiners
    assert joiner.revoke_token()  # it is in already
    builds: list[Build] = []
    for part in (site.api, site.broker, site.s3, *site.supervisors):
        assert part is not None
        have_a_job_run(client, builds)
        part.restart()
    if POSTGRES is not None:
        have_a_job_run(client, builds)
        with site.closed_database():
            pass
    for build in builds:
        client.take(build)
    audit(site, client.ended)
