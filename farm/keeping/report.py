"""Says what a deletion took, and what stays for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import references
from farm.database.references import Reference
from farm.database.tables import Artifact, Model, Version
from farm.keeping.going import Going, Taken
from farm.registry import holders
from farm.schemas.deletion import DeletedEngine, Deletion, Kept
from farm.schemas.storage import Blob

_LISTED = 1000
_KEPT = 100
_WHY = 10


@dataclass(frozen=True, kw_only=True)
class Report:
    deletion: Deletion
    held: Mapping[str, Sequence[Reference]]  #: of the files, those that others name


def of(
    session: Session, going: Going, taken: Taken, *, refused: Sequence[str], dry_run: bool
) -> Report:
    """What this unit of work has taken.

    Parameters:
        refused: why it will be rolled back.
    """
    held = references.holders(session, taken.digests)
    sizes = _sizes(session, taken.digests)
    gone = [Blob(digest=one, bytes=size) for one, size in sizes.items() if one not in held]
    kept = [(one, size) for one, size in sizes.items() if one in held]
    names = _names(session, {*going.versions})
    made = Deletion(
        what=going.what,
        dry_run=dry_run,
        refused=list(refused),
        versions=["@".join(map(str, name)) for name in names.values()] if going.whole else [],
        engines=[
            DeletedEngine(
                id=row.id,
                model=names[row.version_id][0],
                version=names[row.version_id][1],
                target=f"{row.runtime}:{row.gpu}",
                precision=row.precision,
            )
            for row in taken.engines
        ],
        rows=dict(taken.rows),
        files=gone[:_LISTED],
        files_total=len(gone),
        freed_bytes=sum(one.bytes for one in gone),
        kept=[
            Kept(digest=one, bytes=size, by=_by(session, held[one])) for one, size in kept[:_KEPT]
        ],
        kept_bytes=sum(size for _, size in kept),
        removed_bytes=0,
    )
    return Report(deletion=made, held=held)


def _by(session: Session, references: Sequence[Reference]) -> list[str]:
    return [holders.in_words(session, one) for one in references[:_WHY]]


def _sizes(session: Session, digests: Sequence[str]) -> dict[str, int]:
    rows = session.execute(
        select(Artifact.digest, Artifact.bytes)
        .where(Artifact.digest.in_(digests), Artifact.lost_at.is_(None))
        .order_by(Artifact.digest)
    )
    return dict(rows.tuples().all())


def _names(session: Session, versions: set[int]) -> dict[int, tuple[str, int]]:
    rows = session.execute(
        select(Version.id, Model.name, Version.number)
        .join(Model, Model.id == Version.model_id)
        .where(Version.id.in_(versions))
        .order_by(Model.name, Version.number)
    )
    return {version_id: (name, number) for version_id, name, number in rows}
