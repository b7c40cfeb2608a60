"""A machine that has nothing of a farm's but a join token becomes its worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from farm.client import Farm
from farm.database.session import Database
from farm.local import up
from farm.settings import Settings
from farm.trust import credentials
from tests.conftest import POSTGRES, _admin
from tests.e2e.conftest import fresh_settings
from tests.e2e.live import ROOT, LiveFarm, wait_until, workers

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(900)]

NAME = "box"
TAKEN = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFarm]:
    """A farm without workers; on Postgres it gives those that join a user of their own."""
    home = tmp_path_factory.mktemp("alone") / "home"
    with ExitStack() as stack:
        user = stack.enter_context(_user_of_workers()) if POSTGRES else None
        settings = stack.enter_context(fresh_settings(home))
        if user:
            theirs = make_url(settings.database).set(username=user)
            told = theirs.render_as_string(hide_password=False)
            settings = settings.model_copy(update={"join_database_url": told})
        farm = up.LocalFarm(settings)
        stack.callback(farm.stop)
        farm.start(("api",))
        if user:
            _grant(settings, user)
        yield LiveFarm(farm.addresses, settings)


@contextmanager
def _user_of_workers() -> Iterator[str]:
    name = f"farm_worker_{uuid.uuid4().hex[:12]}"
    _admin(f"CREATE ROLE {name} LOGIN")
    yield name
    _admin(f"DROP ROLE {name}")


def _grant(settings: Settings, user: str) -> None:
    """What docs/how-to/fleet.md says that this user may do."""
    text = (ROOT / "docs" / "how-to" / "fleet.md").read_text()
    [block] = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    database = Database(settings.database)
    with database.engine.begin() as connection:
        for statement in block.replace("farm_worker", user).split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    database.dispose()


class Machine:
    """A machine that shares nothing with the farm's but the network: it has a home, and no settings."""

    def __init__(self, home: Path, farm: LiveFarm) -> None:
        self.home = home
        self._farm = farm
        self._log = home.with_suffix(".log")

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        known = {k: v for k, v in os.environ.items() if not k.startswith("FARM_")}
        own = {"FARM_HOME": str(self.home), "FARM_AOTINDUCTOR": "false"}
        with self._log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "farm", "worker", "--cpu-only", *options],
                env=known | own | environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def join(self, token: str = "", *options: str) -> subprocess.Popen[bytes]:
        more = {"FARM_JOIN_TOKEN": token} if token else {}
        return self.start("--join", self._farm.addresses.api, "--name", NAME, *options, **more)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def refused(self, process: subprocess.Popen[bytes]) -> int:
        """How it ended."""
        return process.wait(120)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(180)


@pytest.fixture
def client(alone: LiveFarm) -> Iterator[Farm]:
    with Farm(alone.addresses.api, key=alone.key) as farm:
        yield farm


def is_online(farm: LiveFarm, name: str = f"cpu@{NAME}") -> bool:
    return any(w["name"] == name and w["online"] for w in farm.get("/v1/workers"))


def has_left(farm: LiveFarm) -> bool:
    return not any(worker["online"] for worker in farm.get("/v1/workers"))


def test_a_machine_joins_by_a_token_builds_and_starts_again_without_it(
    alone: LiveFarm, client: Farm, files: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "machine", alone)
    token = client.create_token().token
    with ended(machine.join(token)) as worker:
        wait_until("the worker is online", lambda: is_online(alone))
        assert token.encode() not in Path(f"/proc/{worker.pid}/environ").read_bytes()
        view = alone.cli(
            *("submit", files / "digits.pt2", "--name", "one", "--gpu", "cpu"),
            *("--precision", "fp32", "--wait", "--json"),
        ).json()
        assert view["state"] == "succeeded"
        assert {job["worker"] for job in view["jobs"]} == {f"cpu@{NAME}"}
        pulled = tmp_path / "pulled"
        assert alone.cli("pull", "one", "--gpu", "cpu", "-o", pulled, "--json").json()
        [engine] = pulled.glob("*.onnx")
        assert engine.stat().st_size > 1000
        assert list((machine.home / "cache").glob("sha256/*/*"))
        assert not (machine.home / "store").exists()
    wait_until("it has left", lambda: has_left(alone))
    kept = machine.home / "joined.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert token not in kept.read_text()
    with ended(machine.start()):
        wait_until("it is back, by its name", lambda: is_online(alone))
    keys = client.keys()
    [key] = [one for one in keys if one.name == f"worker@{NAME}"]
    assert (key.scopes, key.revoked_at) == (["work"], None)
    for what in ("broker", "database", "store", "names", "sandbox", "worker", "versions"):
        assert f"\n  {what}" in machine.said
    password = alone.settings.broker.rpartition("@")[0].rpartition(":")[2]
    assert not password or password not in machine.said


def test_a_name_that_is_online_is_refused_elsewhere_and_is_a_killed_workers_own_at_once(
    alone: LiveFarm, client: Farm, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "machine", alone)
    worker = machine.join(client.create_token().token)
    wait_until("the worker is online", lambda: is_online(alone))
    # Another machine that says it has the same name.
    other = Machine(tmp_path / "other", alone)
    second = client.create_token()
    assert other.refused(other.join(second.token)) != 0
    assert f"cpu@{NAME} is online on" in other.said
    assert "--name" in other.said
    assert [one.used for one in client.tokens()[:1]] == [0]
    # And one that was given the settings by hand.
    by_hand = json.loads((machine.home / "joined.json").read_text())["environment"]
    third = Machine(tmp_path / "third", alone)
    assert third.refused(third.start("--name", NAME, **by_hand)) == TAKEN
    assert f"cpu@{NAME} is online on" in third.said
    # And this machine, once more.
    assert machine.refused(machine.start()) == TAKEN
    assert f"supervised by process {worker.pid}" in machine.said
    assert is_online(alone)
    [before] = [one["started_at"] for one in alone.get("/v1/workers") if one["online"]]
    for process in [*workers(machine.home), worker]:
        os.kill(process.pid, signal.SIGKILL)
    worker.wait()

    def began_again() -> bool:
        there = alone.get("/v1/workers")
        return any(one["online"] and one["started_at"] != before for one in there)

    with ended(machine.start()) as again:
        wait_until("it is online again", began_again)
        assert again.poll() is None


@pytest.mark.skipif(POSTGRES is None, reason="SQLite has no users")
@pytest.mark.parametrize("table", ["api_keys", "join_tokens", "logins", "audit"])
def test_what_a_machine_is_told_reads_no_keys_and_no_audit(alone: LiveFarm, table: str) -> None:
    database = Database(alone.settings.join_database_url)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() is not None
        with pytest.raises(DBAPIError, match="permission denied"):
            connection.exec_driver_sql(f"SELECT * FROM {table}")
    database.dispose()


def test_tokens_that_open_nothing_are_refused_with_what_to_do(
    alone: LiveFarm, client: Farm, tmp_path: Path
) -> None:
    made = client.create_token()
    client.revoke_token(made.id)
    for token, told in (
        (made.token, "was revoked"),
        (f"join_{made.id}_{'0' * 64}", "unknown join token"),
        ("farm_key", "this isn't a join token"),
        ("", "takes a token"),
    ):
        machine = Machine(tmp_path / "machine", alone)
        assert machine.refused(machine.join(token)) != 0
        assert told in machine.said
        assert "farm tokens create --worker" in machine.said
        assert not (machine.home / "joined.json").exists()


def test_what_cant_be_reached_is_told_before_anything_starts_and_tried_again_without_a_token(
    alone: LiveFarm, client: Farm, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "machine", alone)
    token = client.create_token().token
    nowhere = {"FARM_BROKER_URL": "redis://:secret@127.0.0.1:1/0", "FARM_JOIN_TOKEN": token}
    url = alone.addresses.api
    process = machine.start("--join", url, "--name", "lost", "--json", **nowhere)
    assert machine.refused(process) == 1
    assert "the broker at redis://127.0.0.1:1/0 can't be used from here" in machine.said
    assert "FARM_JOIN_BROKER_URL" in machine.said
    assert "secret" not in machine.said
    told = json.loads(machine.said.splitlines()[0])
    checks = {one["what"]: one["problem"] is None for one in told["checks"]}
    wanted = {"broker": False, "database": True, "store": True, "names": True, "sandbox": True}
    assert checks == wanted
    assert credentials.join_id_of(token) in (machine.home / "joined.json").read_text()
    with ended(machine.start("--join", url)):
        wait_until("it works", lambda: is_online(alone, "cpu@lost"))
