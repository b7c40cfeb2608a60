"""What refers to a manifest: an engine's reports and signature, and what was pushed about it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import OciDocument, OciManifest
from farm.registry.oci import derived, manifests
from farm.registry.oci.derived import Derived
from farm.registry.oci.manifests import Document
from farm.registry.oci.repositories import model_of, not_kept


def listed(
    session: Session, repository: str, digest: str, artifact_type: str | None
) -> tuple[Document, list[Derived]]:
    """The index of what refers to a manifest, and what is to be kept before it is served.

    If that has engines' own manifests, it is to be asked for again once they are kept.
    """
    rows = session.execute(
        select(OciManifest, OciDocument)
        .join(OciDocument, OciDocument.digest == OciManifest.digest)
        .where(
            OciManifest.repository == repository,
            OciManifest.subject == digest,
            OciManifest.engine_id.is_(None),
        )
        .order_by(OciManifest.created_at, OciManifest.digest)
    ).all()
    found = {row.digest: derived.document_of(document) for row, document in rows}
    new: list[Derived] = []
    engine_id, unkept = _engine_of(session, repository, digest)
    new.extend(unkept)
    if engine_id is not None:
        about = derived.document_of(session.get_one(OciDocument, digest))
        for one in derived.reports(session, engine_id, about):
            found.setdefault(one.manifest.digest, one.manifest)
            if session.get(OciManifest, (repository, one.manifest.digest)) is None:
                new.append(one)
    chosen = [
        one
        for one in found.values()
        if artifact_type is None or manifests.artifact_type(one.value()) == artifact_type
    ]
    return manifests.referrers(chosen), new


def _engine_of(
    session: Session, repository: str, digest: str
) -> tuple[str | None, Sequence[Derived]]:
    """The engine whose manifest this is; and if that isn't known, manifests to keep before asking again."""
    row = session.get(OciManifest, (repository, digest))
    if row is not None:
        return (row.engine_id if row.subject is None else None), ()
    model = model_of(session, repository)
    return None, () if model is None else not_kept(session, repository, model)
