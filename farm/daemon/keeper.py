"""Deletes, with the files: what a caller asks for, what the rules of retention say, what nobody uses; and
history that is old."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.orm import Session

from farm.daemon import gc, history
from farm.database.base import now
from farm.database.session import Database
from farm.errors import Conflict, NotFound, Unavailable
from farm.keeping import deletion, going, retention, uploads
from farm.keeping.deletion import Deleted
from farm.keeping.pulled import Pulled
from farm.keeping.retention import Due
from farm.schemas.deletion import Deletion, UploadDeleted
from farm.schemas.retention import RetentionReport, Retired
from farm.settings import Settings
from farm.specs.retention import Retention
from farm.store import artifacts
from farm.store.base import Store
from farm.store.sessions import Sessions
from farm.trust import audit
from farm.trust.callers import THE_FARM, Caller

log = logging.getLogger(__name__)

_WRITE_S = 30.0
_ROUND_S = 3600.0  #: between two rounds of retention and collection; the first comes sooner
_FIRST_S = 300.0


def delete(
    db: Database,
    store: Store,
    work: Callable[[Session], Deleted],
    by: Caller,
    *,
    why: str | None = None,
) -> Deletion:
    """Run a deletion and remove the files that it leaves without references.

    Parameters:
        work: the deletion, in a unit of work.
        why: for the audit.

    Raises:
        NotFound, Conflict
        StorageUnavailable: it is deleted, and gc will remove its files.
    """
    store.spend_reserve()  # on a full disk not even a deletion can be recorded
    try:
        with db.write() as session:
            done = work(session)
            report = done.report
            if report.rows and not report.dry_run:
                told = {"rows": report.rows, "freed_bytes": report.freed_bytes}
                told |= {"why": why} if why else {}
                audit.record(session, by, "delete", report.what, **told)
        if report.dry_run:
            return report
        removed = gc.free(db, store, done.digests, by=by)
        return report.model_copy(update={"removed_bytes": removed})
    finally:
        store.keep_reserve()


def delete_upload(db: Database, store: Store, digest: str, by: Caller) -> UploadDeleted:
    """Delete an upload that nothing refers to.

    Raises:
        NotFound
        Conflict: something refers to it, or it is being uploaded again.
        ScopeMissing: it is somebody else's.
    """
    file = store.find(digest)
    with db.write() as session:
        known = artifacts.ages(session, [digest]).get(digest)
        done = uploads.delete(session, digest, by)
        # A row is written after its file is put: one that is older is of an earlier put.
        if file is not None and known is not None and file.put_at > known:
            raise Conflict(f"{digest} is being uploaded again", hint="try again in a moment")
        audit.record(session, by, "delete", digest, bytes=done.bytes)
    if file is not None:
        gc.take_away(db, store, {digest: file})
    return done


def retire(
    db: Database,
    store: Store,
    default: Retention,
    *,
    dry_run: bool = False,
    by: Caller = THE_FARM,
) -> RetentionReport:
    """Delete what the rules of all models let go, each in its own unit of work.

    Parameters:
        default: the rule of models without their own.

    Raises:
        StorageUnavailable, DatabaseUnavailable
    """
    with db.read() as session:
        found = retention.due(session, default, at=now())
    items = []
    for due in found:
        try:
            done = delete(db, store, _work(due, dry_run=dry_run), by, why=f"retention: {due.why}")
        except (Conflict, NotFound) as err:  # somebody has named, built or deleted it meanwhile
            log.info("retention: %s", err.detail)
            continue
        if done.rows:
            items.append(Retired(model=due.model, why=due.why, deletion=done))
    freed = sum(one.deletion.freed_bytes for one in items)
    return RetentionReport(dry_run=dry_run, items=items, freed_bytes=freed)


def _work(due: Due, *, dry_run: bool) -> Callable[[Session], Deleted]:
    def work(session: Session) -> Deleted:
        version = f"{due.model}@{due.version}"
        if due.engines:
            what = f"engines of {version}"
            return deletion.engines(session, what, due.version_id, due.engines, dry_run=dry_run)
        return deletion.intermediates(session, due.model, due.version, dry_run=dry_run)

    return work


class Keeper(threading.Thread):
    """Applies the rules of retention, collects what nobody uses, and records pulls.

    Runs in every API process; several at once are harmless.
    """

    def __init__(
        self,
        db: Database,
        store: Store,
        pulled: Pulled,
        settings: Settings,
        sessions: Sessions | None = None,
    ) -> None:
        super().__init__(name="keeper", daemon=True)
        self._db = db
        self._store = store
        self._pulled = pulled
        self._settings = settings
        self._sessions = sessions
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def run(self) -> None:
        due_s = time.monotonic() + _FIRST_S
        while True:
            last = self._stopped.wait(_WRITE_S)
            try:
                self._pulled.write()
                if not last and time.monotonic() >= due_s:
                    due_s = time.monotonic() + _ROUND_S
                    self.round()
            except Unavailable as err:
                log.warning("%s; the keeper tries again later", err.detail)
            except Exception:
                # The only keeper in this process: a bug may cost a round, but must not end the thread.
                log.exception("the keeper hit a bug; it continues")
            if last:
                return

    def round(self) -> None:
        """Apply the rules once, and collect what has been unused for long.

        Raises:
            StorageUnavailable, DatabaseUnavailable
        """
        if self._sessions is not None:
            self._sessions.expire()
        done = retire(self._db, self._store, self._settings.retention)
        for one in done.items:
            log.info("deleted %s: %s", one.deletion.what, one.why)
        # Before files are collected: what it named may go with them.
        history.forget(self._db, self._settings.kept_history)
        if self._settings.unused_after_s:
            with self._db.write() as session:
                going.inferences(session, now() - timedelta(seconds=self._settings.unused_after_s))
            report = gc.collect(self._db, self._store, older_than_s=self._settings.unused_after_s)
            if report.removed_total or report.uploads:
                log.info(
                    "removed %s unused files and %s interrupted uploads",
                    report.removed_total,
                    report.uploads,
                )
