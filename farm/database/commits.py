"""Who waits for what another process commits is told of it, rather than asking every moment.

On Postgres a process notifies after its commits, and a waiting one listens on a connection of its own. On
SQLite the waiting one looks at the file's ``data_version``, which costs microseconds. Neither is a promise:
a notification may be lost with a process or a connection, and a pooler between may pass none on. So a wait
also ends after a while.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

_CHANNEL = "farm_commits"
_NOTIFY = text(f"NOTIFY {_CHANNEL}")
_APART_S = 0.025  #: between two notifications, and two looks at SQLite's file
_AT_MOST_S = 1.0
#: While nothing has been heard: nothing may ever be.
_DEAF_S = 0.25


class Herald(threading.Thread):
    """Notifies of this process's commits, beside them: within a transaction, commits would queue for
    Postgres's one lock of notifications, each until the disk has the one before."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="herald", daemon=True)
        self._engine = engine
        self._lock = threading.Lock()
        self._committed = threading.Event()
        self._stopped = threading.Event()

    def tell(self) -> None:
        """Note a commit. Never waits."""
        with self._lock:
            if self.ident is None and not self._stopped.is_set():
                self.start()
        self._committed.set()

    def stop(self) -> None:
        with self._lock:
            self._stopped.set()
        self._committed.set()
        if self.ident is not None:
            self.join(timeout=_AT_MOST_S)  # it may wait for a database that is away

    def run(self) -> None:
        while True:
            self._committed.wait()
            self._committed.clear()
            if self._stopped.is_set():
                return
            with suppress(SQLAlchemyError), self._engine.begin() as connection:
                connection.execute(_NOTIFY)
            self._stopped.wait(_APART_S)


class Watch:
    """Waits for commits, of any process. Only one thread may wait at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._errors = (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)
        self._driver: Any = None  #: the driver's connection, outside the pool
        self._version: int | None = None
        self._has_heard = False

    def wait(self) -> None:
        """Return when something has been committed since the last call, or after a while.

        The first call, and the first after a broken connection, return at once.
        """
        try:
            if self._driver is None:
                self._open()
            elif self._is_sqlite:
                self._look()
            else:
                self._listen()
        except self._errors:
            self.close()
            time.sleep(_DEAF_S)

    def close(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            with suppress(*self._errors):
                driver.close()

    def _open(self) -> None:
        connection = self._engine.raw_connection()
        driver: Any = connection.driver_connection
        connection.detach()
        if self._is_sqlite:
            self._version = _version(driver)
        else:
            driver.autocommit = True
            driver.execute(f"LISTEN {_CHANNEL}")
            self._has_heard = False
        self._driver = driver

    def _look(self) -> None:
        driver, until = self._driver, time.monotonic() + _AT_MOST_S
        while (version := _version(driver)) == self._version and time.monotonic() < until:
            time.sleep(_APART_S)
        self._version = version

    def _listen(self) -> None:
        wait_s = _AT_MOST_S if self._has_heard else _DEAF_S
        heard = list(self._driver.notifies(timeout=wait_s, stop_after=1))
        self._has_heard = self._has_heard or bool(heard)


def _version(driver: Any) -> int:
    """A number that changes when another connection commits."""
    version: int = driver.execute("PRAGMA data_version").fetchone()[0]
    return version
