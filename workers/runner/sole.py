"""Workers' names are unique: a supervisor holds its own on this machine, and asks for them elsewhere."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from farm.database.session import Database
from farm.errors import Unavailable, WorkerNameTaken
from farm.fleet import workers
from farm.local import home as homes
from farm.settings import Settings


@contextmanager
def sole_supervisor(settings: Settings, names: Iterable[str]) -> Iterator[None]:
    """Be the only supervisor of workers of these names, here and elsewhere.

    Elsewhere one may begin in the same moment; the first to announce its worker then has the name.

    Raises:
        WorkerNameTaken
    """
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(_locked(settings.home, name))
        require_free(settings, names)
        yield


def require_free(settings: Settings, names: Iterable[str]) -> None:
    """Return if no other machine, and no other home, has a worker online by one of these names.

    While the database is away nobody knows.

    Raises:
        WorkerNameTaken
    """
    holder, ttl_s = homes.holder(settings.home), settings.worker_ttl_s
    db = Database(settings.database)
    try:
        with db.read() as session:
            for name in names:
                host = socket.gethostname()
                workers.require_free(session, name, host=host, holder=holder, ttl_s=ttl_s)
    except Unavailable:
        pass
    finally:
        db.dispose()


@contextmanager
def _locked(home: Path, name: str) -> Iterator[None]:
    folder = home / "work"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise WorkerNameTaken(
                f"{name} already runs in {home}, supervised by process {lock.read().strip()}",
                hint="use that; or give these workers another name: farm worker --name NAME",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
