"""Files on their way: the job's lease is kept meanwhile, and a store that is away is waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from farm.database.session import Database
from farm.errors import DatabaseUnavailable, LeaseLost, StorageUnavailable
from farm.queue import leases
from farm.queue.jobs import Claim
from workers.runner.waits import doubling

log = logging.getLogger(__name__)

_RETRY_S = (0.5, 10.0)  #: between tries while the store is away: the first wait, and the longest
#: How long what was made is kept for a store that is away: as long as it took to make, within these.
_PATIENCE_S = (30.0, 600.0)

T = TypeVar("T")


class Transfers:
    """A worker's jobs whose files are on their way. One thread renews all their leases, while there are any.

    A thread for each would take longer than most transfers.

    Parameters:
        lease_s: how long a lease lasts.
        stopping: set once the worker shuts down.
    """

    def __init__(self, db: Database, *, lease_s: float, stopping: threading.Event) -> None:
        self._db = db
        self._lease_s = lease_s
        self._stopping = stopping
        self._lock = threading.Lock()
        #: Jobs and their attempts, each with what tells that its lease was lost.
        self._on_their_way: dict[tuple[int, int], threading.Event] = {}
        self._is_watched = False

    @contextmanager
    def leased(self, claim: Claim) -> Iterator[threading.Event]:
        """Renew the lease until the block ends: files may take longer than it lasts.

        Yields what tells that it was lost; whoever needs it next is told, too.
        """
        lost = threading.Event()
        with self._lock:
            self._on_their_way[claim.job_id, claim.attempt] = lost
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._renew, name="leases", daemon=True).start()
        try:
            yield lost
        finally:
            with self._lock:
                del self._on_their_way[claim.job_id, claim.attempt]

    def insist(self, work: Callable[[], T], *, lost: threading.Event, took_s: float) -> T:
        """Do what needs the store, and retry it while that is away: its restart mustn't lose hours of work.

        Parameters:
            lost: tells that the lease was lost: then it isn't worth it.
            took_s: how long it took to make what is to be stored.

        Raises:
            StorageUnavailable: for longer than that, or the worker is shutting down.
        """
        least_s, most_s = _PATIENCE_S
        until = time.monotonic() + min(max(took_s, least_s), most_s)
        waits = doubling(*_RETRY_S)
        while True:
            try:
                return work()
            except StorageUnavailable as err:
                wait_s = next(waits)
                if lost.is_set() or time.monotonic() + wait_s > until:
                    raise
                log.warning("%s; trying again in %s s", err.detail, wait_s)
                if self._stopping.wait(wait_s):
                    raise

    def _renew(self) -> None:
        """Renew what is on its way, twice before a third of a lease is over; end once nothing is."""
        while True:
            time.sleep(self._lease_s / 6)
            with self._lock:
                on_their_way = dict(self._on_their_way)
                if not on_their_way:
                    self._is_watched = False
                    return
            for (job_id, attempt), lost in on_their_way.items():
                if not lost.is_set():
                    self._renew_one(job_id, attempt, lost)

    def _renew_one(self, job_id: int, attempt: int, lost: threading.Event) -> None:
        try:
            with self._db.write() as session:
                leases.renew(session, job_id, attempt, lease_s=self._lease_s)
        except DatabaseUnavailable:
            pass  # there is time for another try
        except LeaseLost:
            lost.set()
        except Exception:  # the other jobs need this thread
            log.exception("job %s: its lease wasn't renewed", job_id)
