"""Keeps jobs' leases while their files are on their way: that may take longer than a lease."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from farm.database.session import Database
from farm.errors import DatabaseUnavailable, LeaseLost
from farm.queue import leases
from farm.queue.jobs import Claim

log = logging.getLogger(__name__)


class Transfers:
    """A worker's jobs whose files are on their way. One thread renews all their leases, while there are any.

    A thread for each would take longer than most transfers.

    Parameters:
        lease_s: how long a lease lasts.
    """

    def __init__(self, db: Database, *, lease_s: float) -> None:
        self._db = db
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._on_their_way: set[tuple[int, int]] = set()  #: jobs and their attempts
        self._is_watched = False

    @contextmanager
    def leased(self, claim: Claim) -> Iterator[None]:
        """Renew the lease until the block ends. If it is lost, whoever needs it next is told."""
        with self._lock:
            self._on_their_way.add((claim.job_id, claim.attempt))
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._renew, name="leases", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._on_their_way.discard((claim.job_id, claim.attempt))

    def _renew(self) -> None:
        """Renew what is on its way, twice before a third of a lease is over; end once nothing is."""
        while True:
            time.sleep(self._lease_s / 6)
            with self._lock:
                attempts = list(self._on_their_way)
                if not attempts:
                    self._is_watched = False
                    return
            for job_id, attempt in attempts:
                self._renew_one(job_id, attempt)

    def _renew_one(self, job_id: int, attempt: int) -> None:
        try:
            with self._db.write() as session:
                leases.renew(session, job_id, attempt, lease_s=self._lease_s)
        except (DatabaseUnavailable, LeaseLost):
            pass  # who asks next finds out; it may just have ended, too
        except Exception:  # the other jobs need this thread
            log.exception("job %s: its lease wasn't renewed", job_id)
