"""Deletes, with the files: what a caller asks for, and what the rules of retention say."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from farm.daemon import gc
from farm.database.session import Database
from farm.errors import Conflict
from farm.keeping import uploads
from farm.keeping.deletion import Deleted
from farm.schemas.deletion import Deletion, UploadDeleted
from farm.store import artifacts
from farm.store.base import Store
from farm.trust import audit
from farm.trust.callers import Caller


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
