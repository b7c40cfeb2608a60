"""The processes and databases that the benches measure, each made for one of them and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from farm.database.session import Database
from farm.local import up
from farm.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
POSTGRES = os.environ.get("FARM_TEST_DATABASE_URL")


def wait_for(
    condition: Callable[[], object], *, seconds: float = 60.0, every_s: float = 0.02
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited too long")
        time.sleep(every_s)


@contextmanager
def api_without_worker(settings: Settings) -> Iterator[httpx2.Client]:
    """The broker and the API as ``farm up`` starts them, and a client of it."""
    with ExitStack() as stack:
        farm = up.LocalFarm(settings, up.free_port(), up.free_port())
        stack.callback(farm.stop)
        farm.start(parts=("api",))
        headers = {"Authorization": f"Bearer {farm.key}"}
        yield stack.enter_context(
            httpx2.Client(base_url=farm.addresses.api, timeout=60, headers=headers)
        )


@contextmanager
def module(
    name: str, *arguments: str, home: Path, database_url: str | None = None
) -> Iterator[None]:
    """``python -m name arguments…`` with this home, until the block's end."""
    settings = {"FARM_HOME": str(home), "FARM_DATABASE_URL": database_url or ""}
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", name, *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def processor_s(pid: int) -> float:
    """The processors' time of a process and of those that it started, unless nobody waited for their end.
    Linux only.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(processor_s(int(child)) for child in children)


def kinds() -> tuple[str, ...]:
    """The databases there are to measure: Postgres when ``FARM_TEST_DATABASE_URL`` is set."""
    return ("SQLite", "Postgres") if POSTGRES else ("SQLite",)


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database of this kind, for as long as the block runs."""
    name = f"farm_bench_{uuid.uuid4().hex[:12]}"
    if kind == "SQLite":
        yield f"sqlite:///{folder / name}.db"
        return
    _admin(f"CREATE DATABASE {name}")
    try:
        yield make_url(POSTGRES or "").set(database=name).render_as_string(hide_password=False)
    finally:
        _admin(f"DROP DATABASE {name} WITH (FORCE)")


def _admin(statement: str) -> None:
    engine = create_engine(make_url(POSTGRES or ""), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def analyze(db: Database) -> None:
    """Have Postgres know its tables, as autovacuum would in a minute."""
    if not db.is_sqlite:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
