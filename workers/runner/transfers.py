"""Keeps a job's lease while its files are on their way: that may take longer than the lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from farm.errors import DatabaseUnavailable, LeaseLost
from farm.queue import leases
from farm.queue.jobs import Claim
from workers.runner.app import Context


@contextmanager
def leased(context: Context, claim: Claim) -> Iterator[None]:
    """Renew the lease until the block ends. If it is lost, whoever needs it next is told."""
    ended = threading.Event()
    lease_s = context.settings.lease_ttl_s

    def renew() -> None:
        while not ended.wait(lease_s / 3):
            try:
                with context.db.write() as session:
                    leases.renew(session, claim.job_id, claim.attempt, lease_s=lease_s)
            except DatabaseUnavailable:
                continue
            except LeaseLost:
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
