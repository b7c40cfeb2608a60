"""The sweep: rings again for what a crash lost, and takes jobs back from workers that fell silent."""

from __future__ import annotations

import logging
import threading
import time

from farm import jobs
from farm.db import Database
from farm.dispatch import Doorbell
from farm.errors import Unavailable
from farm.settings import Settings

log = logging.getLogger(__name__)


class Sweeper(threading.Thread):
    """Runs in every API process; two of them do no harm.

    ``wake`` makes it look at once, so that a submission needn't wait for the broker.
    """

    def __init__(self, db: Database, doorbell: Doorbell, settings: Settings) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._db = db
        self._doorbell = doorbell
        self._settings = settings
        self._woken = threading.Event()
        self._stopped = threading.Event()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._stopped.set()
        self._woken.set()
        self.join(timeout=10)

    def run(self) -> None:
        reaped = 0.0
        while not self._stopped.is_set():
            try:
                if time.monotonic() - reaped > self._settings.sweep_interval_s:
                    reaped = time.monotonic()
                    self.reap()
                self._doorbell.ring_pending(again_s=self._settings.ring_again_s)
            except Unavailable as err:
                log.warning(
                    "%s; the sweep tries again in %s s", err.detail, self._settings.sweep_interval_s
                )
                # A woken sweep would spin while the broker is away.
                self._stopped.wait(self._settings.sweep_interval_s)
            self._woken.wait(self._settings.sweep_interval_s)
            self._woken.clear()

    def reap(self) -> None:
        """Take jobs back from workers that fell silent.

        Raises:
            Unavailable: the database is away; nothing is lost by that.
        """
        with self._db.read() as session:
            if not jobs.has_expired(session):
                return
        with self._db.write() as session:
            jobs.reap(session, max_attempts=self._settings.max_attempts)
