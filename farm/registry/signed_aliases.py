"""What is signed of aliases: each one's latest move, as it was signed before it was made."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.tables import AliasRow, AliasStatement, Version
from farm.registry.names import Named
from farm.signing.keys import PublicKey
from farm.signing.moves import Moved


def moved(session: Session, model: Named, alias: str) -> Moved | None:
    """Where an alias is now; None if there never was one."""
    found = session.execute(
        select(AliasRow.revision, Version.number)
        .outerjoin(Version, Version.id == AliasRow.version_id)
        .where(AliasRow.model_id == model.id, AliasRow.name == alias)
    ).one_or_none()
    if found is None:
        return None
    return Moved(model=model.name, alias=alias, version=found.number, revision=found.revision)


def is_signed(session: Session, model: Named, move: Moved) -> bool:
    """Whether an alias's latest move is signed."""
    row = session.get(AliasStatement, (model.id, move.alias))
    return row is not None and row.revision == move.revision


def keep(session: Session, model: Named, move: Moved, key: PublicKey, bundle: bytes) -> None:
    """Store a move's bundle in place of the one before."""
    row = {
        "model_id": model.id,
        "name": move.alias,
        "revision": move.revision,
        "key_id": key.id,
        "bundle": bundle.decode(),
    }
    upserts.put(session, AliasStatement, row)


def bundle_of(session: Session, model: Named, alias: str) -> str | None:
    """The bundle of an alias's latest signed move."""
    row = session.get(AliasStatement, (model.id, alias))
    return None if row is None else row.bundle
