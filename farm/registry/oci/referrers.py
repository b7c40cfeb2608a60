"""What refers to a manifest: an engine's reports and signature, and what was pushed about it."""

from __future__ import annotations

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
    """The index of what refers to a manifest, and what is to be kept before it is served."""
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
    about = _engine_of(session, repository, digest)
    if about is not None:
        engine_id, manifest = about
        for one in derived.reports(session, engine_id, manifest):
            found.setdefault(one.manifest.digest, one.manifest)
            if session.get(OciManifest, (repository, one.manifest.digest)) is None:
                new.append(one)
    chosen = [
        one
        for one in found.values()
        if artifact_type is None or manifests.artifact_type(one.value()) == artifact_type
    ]
    return manifests.referrers(chosen), new


def _engine_of(session: Session, repository: str, digest: str) -> tuple[str, Document] | None:
    """The engine whose manifest this is, and the manifest."""
    row = session.get(OciManifest, (repository, digest))
    if row is not None:
        if row.engine_id is None or row.subject is not None:
            return None
        return row.engine_id, derived.document_of(session.get_one(OciDocument, digest))
    model = model_of(session, repository)
    for one in not_kept(session, repository, model) if model is not None else ():
        if one.manifest.digest == digest and one.engine_id is not None:
            return one.engine_id, one.manifest
    return None
