"""The sweep: resends messages lost in a crash, and takes jobs back from silent workers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable

from farm import logs
from farm.daemon.expiry import LeaseExpiry
from farm.daemon.replan import replan_outdated
from farm.database.session import Database
from farm.errors import DatabaseUnavailable, Unavailable
from farm.queue import leases
from farm.queue.doorbell import Doorbell
from farm.queue.turns import Bell
from farm.settings import Settings

log = logging.getLogger(__name__)


class Sweeper(threading.Thread):
    """Runs in every API process; several at once are harmless.

    ``ring`` hands it a submission's messages, so that the submission needn't wait for the broker.
    """

    def __init__(self, db: Database, doorbell: Doorbell, settings: Settings) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._db = db
        self._doorbell = doorbell
        self._settings = settings
        self._expiry = LeaseExpiry(
            longest_s=settings.lease_ttl_s, interval_s=settings.sweep_interval_s
        )
        self._bells: deque[Bell] = deque()
        self._woken = threading.Event()
        self._stopped = threading.Event()

    def ring(self, bells: Iterable[Bell]) -> None:
        self._bells.extend(bells)
        self._woken.set()

    def stop(self) -> None:
        self._stopped.set()
        self._woken.set()
        self.join(timeout=10)

    def run(self) -> None:
        swept = 0.0
        while not self._stopped.is_set():
            try:
                self._ring()
                if time.monotonic() - swept > self._settings.sweep_interval_s:
                    swept = time.monotonic()
                    self.reap()
                    self._replan()
                    self._doorbell.ring_pending(
                        again_s=self._settings.ring_again_s,
                        longest_wait_s=self._settings.retry_longest_s,
                    )
            except Unavailable as err:
                if isinstance(err, DatabaseUnavailable):
                    self._expiry.forget()  # no worker could renew its lease either
                log.warning(
                    "%s; the sweep tries again in %s s", err.detail, self._settings.sweep_interval_s
                )
                # If it could be woken, it would spin while the broker is unreachable.
                self._stopped.wait(self._settings.sweep_interval_s)
            except Exception:
                # The only sweep in this process: a bug may cost a round, but must not end the thread.
                log.exception("the sweep hit a bug; it continues")
                self._stopped.wait(self._settings.sweep_interval_s)
            self._woken.wait(self._settings.sweep_interval_s)
            self._woken.clear()

    def _ring(self) -> None:
        bells = [self._bells.popleft() for _ in range(len(self._bells))]
        if bells:
            self._doorbell.ring(bells)

    def _replan(self) -> None:
        self._bells.extend(replan_outdated(self._db, ttl_s=self._settings.worker_ttl_s))
        self._ring()

    def reap(self) -> None:
        """Take jobs back from silent workers.

        Raises:
            Unavailable: the database is unreachable; nothing is lost.
        """
        with self._db.read() as session:
            held = leases.running(session)
        for lease in self._expiry.expired(held, time.monotonic()):
            with logs.handling(job=lease.job_id, attempt=lease.attempt):
                log.warning("the worker has been silent past its lease")
            with self._db.write() as session:
                leases.reap(session, lease, max_attempts=self._settings.max_attempts)
