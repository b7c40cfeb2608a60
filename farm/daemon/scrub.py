"""Scrubbing: hashes every blob in the store and quarantines damaged ones.

A damaged blob is set aside and its row is marked as lost. Its engines are no longer matched, submissions that
name it are told to upload it, and uploading the right bytes restores it. The job that made it is marked as
failed, so that a retry makes it again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Artifact, Job
from farm.errors import BlobDamaged, NotFound, Unavailable
from farm.queue import jobs, transitions
from farm.schemas.storage import ScrubReport
from farm.specs.states import JobState
from farm.store import artifacts, proof
from farm.store.base import Blobs, Store
from farm.trust import audit
from farm.trust.callers import THE_FARM, Caller

log = logging.getLogger(__name__)

_LISTED = 1000  #: damaged and missing blobs listed in a report
_ADOPT_AGAIN_S = 2.0
_REST_S = 60.0  #: pause of the background scrub between rounds, and after an error


def scrub(db: Database, store: Store, by: Caller = THE_FARM) -> ScrubReport:
    """Hash all blobs that the farm knows, and set damaged ones aside.

    Parameters:
        by: the caller, for the audit.

    Raises:
        StorageUnavailable, DatabaseUnavailable
    """
    report = ScrubReport(checked=0, checked_bytes=0, damaged=[], missing=[], healed=[])
    for digest, size in _known(db):
        is_there = store.has(digest)
        found: list[str] = []
        healed = False
        if not is_there or not is_right(store, digest):  # hash it before holding the database
            healed = heal(db, store, digest, by)
            if is_there and not healed:
                with db.write() as session:
                    found = check(session, store, [digest], by)
        missing = [] if is_there or healed else [digest]
        report = report.model_copy(
            update={
                "checked": report.checked + is_there,
                "checked_bytes": report.checked_bytes + size * is_there,
                "damaged": [*report.damaged, *found][:_LISTED],
                "missing": [*report.missing, *missing][:_LISTED],
                "healed": [*report.healed, *([digest] if healed else [])][:_LISTED],
            }
        )
    return report


def heal(db: Database, store: Blobs, digest: str, by: Caller = THE_FARM) -> bool:
    """Put a damaged or missing blob again, if this machine has a right copy; return whether it had.

    Raises:
        StorageFull, StorageUnavailable, DatabaseUnavailable
    """
    with db.read() as session:
        size = artifacts.size(session, digest)
    if size is None or not store.heal(digest):
        return False
    log.warning("blob %s was damaged or missing: put again from a copy", digest)
    with db.write() as session:
        artifacts.remember(session, digest, size=size)
        audit.record(session, by, "heal", digest)
    return True


def check(
    session: Session, store: Store, digests: Iterable[str], by: Caller = THE_FARM
) -> list[str]:
    """Hash these blobs and set damaged ones aside; return the damaged ones."""
    damaged = [digest for digest in sorted(set(digests)) if not is_right(store, digest)]
    quarantine(session, store, damaged, by)
    return damaged


def quarantine(
    session: Session, store: Blobs, damaged: Iterable[str], by: Caller = THE_FARM
) -> None:
    """Set damaged blobs aside."""
    for digest in damaged:
        log.error("blob %s is damaged: quarantined", digest)
        store.condemn(digest)
        artifacts.lose(session, digest)
        audit.record(session, by, "condemn", digest)
        _fail_its_makers(session, digest)


def is_right(store: Blobs, digest: str) -> bool:
    """Whether a blob's bytes are right; True of one that isn't there."""
    try:
        return store.is_right(digest)
    except NotFound:
        return True  # not a blob, or gc was quicker


def _fail_its_makers(session: Session, digest: str) -> None:
    error = BlobDamaged(f"its output {digest} was damaged in the store")
    values: dict[str, Any] = {"error": jobs.describe(error), "finished_at": now()}
    for job_id, outputs in session.execute(
        select(Job.id, Job.outputs).where(Job.state == JobState.SUCCEEDED)
    ):
        if digest in (outputs or {}).values():
            moved = transitions.move(session, job_id, JobState.SUCCEEDED, JobState.FAILED, **values)
            if moved is not None:
                transitions.record(session, moved, JobState.FAILED, error=values["error"])


def _known(db: Database) -> Iterator[tuple[str, int]]:
    with db.read() as session:
        rows = session.execute(
            select(Artifact.digest, Artifact.bytes)
            .where(Artifact.lost_at.is_(None))
            .order_by(Artifact.digest)
        )
        yield from [(digest, size) for digest, size in rows]


class Scrubber(threading.Thread):
    """Gives the store its identity, and scrubs it slowly in the background, from a random start.

    Parameters:
        bytes_per_s: limit on the average read rate.
    """

    def __init__(self, db: Database, store: Store, *, bytes_per_s: float) -> None:
        super().__init__(name="scrubber", daemon=True)
        self._db = db
        self._store = store
        self._bytes_per_s = bytes_per_s
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def run(self) -> None:
        while not self._adopted() and not self._stopped.wait(_ADOPT_AGAIN_S):
            pass  # the database was unreachable when the API started
        while not self._stopped.wait(_REST_S):
            try:
                self._round()
            except Unavailable as err:
                log.warning("%s; scrubbing resumes in %s s", err.detail, _REST_S)
            except Exception:
                # The only scrubber in this process: a bug may cost a round, but must not end the thread.
                log.exception("the scrub hit a bug; it continues")

    def _adopted(self) -> bool:
        try:
            proof.adopt(self._db, self._store)
        except Unavailable as err:
            log.warning("%s; hint: %s", err.detail, err.hint)
            return False
        except Exception:
            log.exception("the scrub hit a bug; it continues")
            return False
        return True

    def _round(self) -> None:
        known = list(_known(self._db))
        start = random.randrange(len(known)) if known else 0  # noqa: S311 no secret
        for digest, size in known[start:] + known[:start]:
            began = time.monotonic()
            if not is_right(self._store, digest) and not heal(self._db, self._store, digest):
                with self._db.write() as session:
                    check(session, self._store, [digest])
            spent_s = time.monotonic() - began
            if self._stopped.wait(max(0.0, size / self._bytes_per_s - spent_s)):
                return
