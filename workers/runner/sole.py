"""A supervisor of workers is the only one of their names in its home.

That no other machine has them, each worker asks for itself. Imports little, since the supervisor uses it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from farm.errors import WorkerNameTaken


@contextmanager
def sole_supervisor(home: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold these workers' names in this home.

    Raises:
        WorkerNameTaken
    """
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(_locked(home, name))
        yield


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
