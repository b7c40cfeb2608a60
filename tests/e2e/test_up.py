"""``farm up``: however it ends, nothing of it stays, and its work goes on when it is started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select

from farm.database.session import Database
from farm.database.tables import Job
from farm.local.up import Addresses
from farm.settings import Settings
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import ROOT, LiveFarm, processes, wait_until

pytestmark = pytest.mark.slow


class Up:
    """``farm up --json`` as a process."""

    def __init__(self, settings: Settings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "farm", "up", "--port", "0", "--flower-port", "0", "--json"],
            env=os.environ | settings.environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        assert told["home"] == str(settings.home)
        addresses = Addresses(api=told["api"], flower=told["flower"], home=settings.home)
        self.farm = LiveFarm(addresses, settings)

    def end(self, sig: int) -> None:
        """Send it a signal; nothing of it is left then."""
        self.process.send_signal(sig)
        code = self.process.wait(120)
        assert code == (0 if sig == signal.SIGTERM else -sig)
        try:
            wait_until("every process has ended", lambda: not processes(self.farm.home))
        except AssertionError:
            print(*processes(self.farm.home), sep="\n")
            raise


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with fresh_settings(tmp_path / "another home") as made:
        yield made
        for left in processes(made.home):
            os.kill(left.pid, signal.SIGKILL)


def kill_and_see_it_again(farm: LiveFarm, part: str) -> None:
    """Kill a part of ``farm up``, known by words of its command."""

    def there() -> set[int]:
        return {one.pid for one in processes(farm.home) if part in one.command}

    before = there()
    assert before
    os.kill(min(before), signal.SIGKILL)
    wait_until(f"{part} is there again", lambda: there() - before)


def answers(farm: LiveFarm) -> bool:
    try:
        return farm.http.get("/readyz").is_success
    except httpx2.TransportError:
        return False


@pytest.mark.heavy
def test_what_sigterm_interrupts_is_given_back_and_finished_by_the_next_farm_up(
    settings: Settings, files: Path
) -> None:
    first = Up(settings)
    farm = first.farm
    data = farm.long_calibration(seed=5)
    build = farm.submit("small", files / "small.onnx", precisions=["int8"], calibration=data)
    job = farm.running(build["id"], "calibrate")
    first.end(signal.SIGTERM)

    db = Database(settings.database)
    with db.read() as session:
        row = session.scalars(select(Job).where(Job.id == job["id"])).one()
        assert (row.state, row.owner, row.attempt) == ("queued", None, 2)
    db.dispose()

    second = Up(settings)
    view = second.farm.ended(build["id"])
    assert view["state"] == "succeeded", view["error"]
    assert second.farm.workdirs() == []
    if settings.broker_url == "":
        kill_and_see_it_again(second.farm, "valkey")
    kill_and_see_it_again(second.farm, " api --port")
    wait_until("the API answers", lambda: answers(second.farm))
    data = second.farm.long_calibration(seed=6)
    build = second.farm.submit("small", files / "small.onnx", precisions=["int8"], calibration=data)
    second.farm.running(build["id"], "calibrate")
    # Not even a chance to clean up.
    second.end(signal.SIGKILL)


def test_every_part_goes_on_in_another_log_file_once_its_own_is_full(settings: Settings) -> None:
    # Room for the last records, so that each of them is found in one of the files.
    changes = {"log_file_bytes": 1024, "log_files": 50, "log_format": "json", "aotinductor": False}
    up = Up(settings.model_copy(update=changes))
    logs = up.farm.home / "logs"

    def text(part: str) -> str:
        return "".join(one.read_text() for one in logs.glob(f"{part}.log*"))

    builds = {
        up.farm.request(f"model-{number}", b"no model", targets=["cpu"]).json()["id"]
        for number in range(12)
    }
    wait_until("the files are rotated", lambda: (logs / "api.log.2").exists())
    more = up.farm.request("more", b"no model", targets=["cpu"]).json()["id"]
    wait_until("the API logs on", lambda: f'"build": "{more}"' in text("api"))
    up.end(signal.SIGTERM)
    records = [json.loads(line) for line in text("api").splitlines() if line.startswith("{")]
    assert {one["build"] for one in records if "build" in one} == builds | {more}
    assert sum("build" in one for one in records) == len(builds) + 1
    if settings.broker_url == "":
        assert (logs / "broker.log.1").exists()
        assert text("broker").rstrip().endswith("bye bye...")
    assert all(one.stat().st_mode & 0o077 == 0 for one in logs.iterdir())
