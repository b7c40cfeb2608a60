"""Fixtures: a fresh database a test, on SQLite or, when ``FARM_TEST_DATABASE_URL`` is set, Postgres."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from farm.database import migrate
from farm.database.session import Database
from farm.database.tables import Artifact
from farm.settings import Settings
from tests import compiled, schedule
from tests.ledger import DATA, LABELLED, SOURCE, Ledger

# A worker would compile a package when it starts, for half a minute; tests of that say so.
os.environ.setdefault("FARM_AOTINDUCTOR", "false")

# The tests' models are tiny, and their processes many: threads would wait for cores, and spin meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Until everything is collected; then the garbage collector doesn't look at what there is by then.
gc.disable()

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("farm", deadline=None)
hypothesis.settings.load_profile("farm")

compiled.share()

# Keys of farms that tests start stay out of the home of whoever runs them.
_HOME = None if "FARM_HOME" in os.environ else tempfile.mkdtemp(prefix="farm-tests-")
os.environ.setdefault("FARM_HOME", _HOME or "")


class _Frozen:
    """Modules, which are never garbage.

    What collects garbage, as each build by TensorRT-RTX does, would look at those of all tests, for seconds.
    """

    def __init__(self) -> None:
        self._modules = 0

    def again(self) -> None:
        if len(sys.modules) > self._modules:
            self._modules = len(sys.modules)
            gc.freeze()


frozen = _Frozen()


def pytest_unconfigure() -> None:
    if _HOME is not None:
        shutil.rmtree(_HOME, ignore_errors=True)


CLASSIC = str(Path(__file__).parent / "classic")
POSTGRES = os.environ.get("FARM_TEST_DATABASE_URL")
#: Whole farms: what they use isn't said by a fixture. (An API that a contract test serves has SQLite anyway.)
_WHOLE = ("e2e", "chaos")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        whole = item.path.parent.name in _WHOLE and item.get_closest_marker("apart") is None
        if "template" in fixtures or whole:
            item.add_marker("services")
    schedule.in_order(items)


def pytest_collection_finish() -> None:
    frozen.again()
    gc.enable()


def pytest_runtest_logfinish() -> None:
    frozen.again()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> schedule.Pieces | None:
    """Unless `--dist` asks for another than that of `-n`."""
    return schedule.Pieces(config, log) if config.getvalue("dist") == "load" else None


def _admin(statement: str) -> None:
    engine = create_engine(make_url(POSTGRES or ""), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _postgres_url(name: str) -> str:
    return make_url(POSTGRES or "").set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session", autouse=True)
def _slow_postgres() -> Iterator[None]:
    """A busy machine's Postgres takes more than five seconds for a connection, now and then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("farm.database.session._CONNECT_S", 60)
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated, empty database that tests copy: a file, or the name of a Postgres database."""
    if POSTGRES is None:
        path = tmp_path_factory.mktemp("template") / "farm.db"
        migrate.upgrade(Settings(database_url=f"sqlite:///{path}"))
        yield str(path)
        return
    name = f"farm_template_{uuid.uuid4().hex[:12]}"
    _admin(f"CREATE DATABASE {name}")
    migrate.upgrade(Settings(database_url=_postgres_url(name)))
    yield name
    _admin(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def copied(template: str, folder: Path) -> Iterator[str]:
    """A copy of a database that nobody uses: a file in the folder, or the name of a Postgres database."""
    if POSTGRES is None:
        yield str(shutil.copyfile(template, folder / "farm.db"))
        return
    name = f"farm_test_{uuid.uuid4().hex[:12]}"
    _admin(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield name
    _admin(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(copy: str) -> str:
    return f"sqlite:///{copy}" if POSTGRES is None else _postgres_url(copy)


@pytest.fixture
def database_url(template: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    with copied(template, tmp_path) as copy:
        yield url_of(copy)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def ledger(db: Database) -> Ledger:
    with db.write() as session:
        session.add_all(Artifact(digest=digest, bytes=10) for digest in (SOURCE, DATA, LABELLED))
    made = Ledger(db)
    made.worker()
    return made


@pytest.fixture
def within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process counts requests by the minutes of the clock: none of them ends meanwhile."""
    second = time.time() // 60 * 60 + 1
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: second))


@pytest.fixture
def classic(monkeypatch):
    """Classic TensorRT as the tests play it (`tests/classic`), here and in children of this process."""
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(CLASSIC)
    yield importlib.import_module("tensorrt")
    sys.modules.pop("tensorrt", None)
