"""Files on their way: the job's lease is kept meanwhile, and a store that is away is waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from farm.errors import DatabaseUnavailable, LeaseLost, StorageUnavailable
from farm.queue import leases
from farm.queue.jobs import Claim
from workers.runner.app import Context

log = logging.getLogger(__name__)

_RETRY_S = (0.5, 10.0)  #: between tries while the store is away: the first wait, and the longest
#: How long what was made is kept for a store that is away: as long as it took to make, within these.
_PATIENCE_S = (30.0, 600.0)

T = TypeVar("T")


@contextmanager
def leased(context: Context, claim: Claim) -> Iterator[threading.Event]:
    """Renew the lease until the block ends: files may take longer than it lasts.

    Yields what tells that it was lost; whoever needs it next is told, too.
    """
    ended, lost = threading.Event(), threading.Event()
    lease_s = context.settings.lease_ttl_s

    def renew() -> None:
        while not ended.wait(lease_s / 3):
            try:
                with context.db.write() as session:
                    leases.renew(session, claim.job_id, claim.attempt, lease_s=lease_s)
            except DatabaseUnavailable:
                continue
            except LeaseLost:
                lost.set()
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()


def insist(context: Context, work: Callable[[], T], *, lost: threading.Event, took_s: float) -> T:
    """Do what needs the store, and retry it while that is away: its restart mustn't lose hours of work.

    Parameters:
        lost: tells that the lease was lost: then it isn't worth it.
        took_s: how long it took to make what is to be stored.

    Raises:
        StorageUnavailable: for longer than that, or the worker is shutting down.
    """
    least_s, most_s = _PATIENCE_S
    until = time.monotonic() + min(max(took_s, least_s), most_s)
    wait_s, longest_s = _RETRY_S
    while True:
        try:
            return work()
        except StorageUnavailable as err:
            if lost.is_set() or time.monotonic() + wait_s > until:
                raise
            log.warning("%s; trying again in %s s", err.detail, wait_s)
            if context.stopping.wait(wait_s):
                raise
            wait_s = min(2 * wait_s, longest_s)
