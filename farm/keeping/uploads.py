"""Deletes uploads that nothing refers to."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import references
from farm.database.tables import Artifact, AuditRow
from farm.errors import Conflict, NotFound, ScopeMissing
from farm.registry import holders
from farm.schemas.deletion import UploadDeleted
from farm.specs.scopes import Scope
from farm.trust.callers import Caller, allows

_MOST_TOLD = 5


def delete(session: Session, digest: str, by: Caller) -> UploadDeleted:
    """Delete an upload's row; its file is the caller's to remove.

    Raises:
        NotFound
        Conflict: something refers to it; names what does.
        ScopeMissing: somebody else uploaded it, too.
    """
    # It waits for the submissions that look this blob up.
    row = session.scalar(select(Artifact).where(Artifact.digest == digest).with_for_update())
    if row is None:
        raise NotFound(f"there is no blob {digest}", hint="farm which says what a file is")
    held = references.holders(session, [digest]).get(digest, ())
    if held:
        said = "; ".join(holders.in_words(session, one) for one in held[:_MOST_TOLD])
        raise Conflict(
            f"{digest} is in use: {said}",
            hint="delete what refers to it: farm delete MODEL@VERSION --dry-run",
        )
    uploads = _uploads(session, digest)
    others = [who for key_id, who in uploads if key_id != by.key_id]
    if others and not allows(list(by.scopes), Scope.ADMIN):
        err = ScopeMissing(
            f"{others[0]} uploaded {digest}",
            hint="ask them or an administrator to delete it, or leave it to gc",
        )
        err.scope = Scope.ADMIN
        raise err
    size = row.bytes
    session.delete(row)
    session.flush()
    by_whom = uploads[0][1] if uploads else None
    return UploadDeleted(digest=digest, bytes=size, uploaded_by=by_whom)


def _uploads(session: Session, digest: str) -> Sequence[tuple[str | None, str]]:
    """Who uploaded a blob, newest first: the key and its name."""
    rows = session.execute(
        select(AuditRow.key_id, AuditRow.who)
        .where(AuditRow.action == "upload", AuditRow.object == digest)
        .order_by(AuditRow.id.desc())
    )
    return rows.tuples().all()
