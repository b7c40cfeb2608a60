"""Manifests that the farm makes of its rows, and keeps from the first time they are asked for.

Kept, they stay the same bytes under the same digest when a later farm would make others. Nothing here writes
but `keep` and `forget`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Artifact, EngineRow, OciDocument, OciManifest, OciTag
from farm.database.upserts import insert_new
from farm.errors import NotFound
from farm.registry import loading, signed
from farm.registry.oci import manifests
from farm.registry.oci.manifests import Document, Source
from farm.registry.provenance import layer_report, provenance_of
from farm.registry.rows import select_rows, view_of
from farm.schemas.engines import EngineView
from farm.signing.bundles import MEDIA_TYPE


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A manifest, and the small blobs it needs."""

    manifest: Document
    documents: tuple[Document, ...] = ()
    engine_id: str | None = None
    version_id: int | None = None
    is_kept: bool = False

    @property
    def is_engines(self) -> bool:
        """Whether it is an engine's own manifest rather than a report's."""
        return self.engine_id is not None and "subject" not in self.manifest.value()


@dataclass(frozen=True, kw_only=True)
class Signature:
    """An engine's signature, as a file."""

    media_type: str
    file_name: str
    body: bytes


def signature_of(session: Session, engine_id: str) -> Signature | None:
    """An engine's signed statement; None until it is signed."""
    bundle = signed.bundle_of(session, engine_id)
    if bundle is None:
        return None
    return Signature(media_type=MEDIA_TYPE, file_name="bundle.sigstore", body=bundle)


def views(session: Session, engine_ids: Sequence[str]) -> list[EngineView]:
    """Engines as their own rows say, without other judgements or twins."""
    rows = session.execute(select_rows().where(EngineRow.id.in_(engine_ids)))
    return [view_of(row) for row in rows]


def engines(session: Session, repository: str, shown: Sequence[EngineView]) -> dict[str, Derived]:
    """The manifests of these engines, by id."""
    ids = [view.id for view in shown]
    kept = _kept(session, repository, ids)
    missing = [engine_id for engine_id in ids if engine_id not in kept]
    made = {view.id: _engine(session, view) for view in views(session, missing)}
    return kept | made


def _kept(session: Session, repository: str, ids: Sequence[str]) -> dict[str, Derived]:
    rows = session.execute(
        select(OciManifest.engine_id, OciDocument)
        .join(OciDocument, OciDocument.digest == OciManifest.digest)
        .where(
            OciManifest.repository == repository,
            OciManifest.engine_id.in_(ids),
            OciManifest.subject.is_(None),
        )
    )
    return {
        engine_id: Derived(manifest=document_of(row), engine_id=engine_id, is_kept=True)
        for engine_id, row in rows
        if engine_id is not None
    }


def _engine(session: Session, view: EngineView) -> Derived:
    config = manifests.engine_config(view, provenance_of(session, view.id), loading.text(view))
    return Derived(manifest=manifests.engine(view, config), documents=(config,), engine_id=view.id)


def source(session: Session, repository: str, version_id: int, of: Source) -> Derived:
    """The manifest of a version's source."""
    kept = session.scalar(
        select(OciDocument)
        .join(OciManifest, OciManifest.digest == OciDocument.digest)
        .where(
            OciManifest.repository == repository,
            OciManifest.version_id == version_id,
            OciManifest.subject.is_(None),
            OciDocument.media_type == manifests.MANIFEST,
        )
    )
    if kept is not None:
        return Derived(manifest=document_of(kept), version_id=version_id, is_kept=True)
    manifest, config = manifests.source(of)
    return Derived(manifest=manifest, documents=(config,), version_id=version_id)


def reports(session: Session, engine_id: str, about: Document) -> Iterator[Derived]:
    """What there is about an engine: its signature, accuracy, metrics and layers.

    Parameters:
        about: the engine's manifest.
    """
    [view] = views(session, [engine_id])
    for kind, layer, documents in _layers(session, view):
        manifest = manifests.report(kind, layer, about=about, created_at=view.created_at)
        yield Derived(
            manifest=manifest,
            documents=(manifests.empty_blob(), *documents),
            engine_id=engine_id,
        )


def _layers(
    session: Session, view: EngineView
) -> Iterator[tuple[str, Mapping[str, object], tuple[Document, ...]]]:
    signature = signature_of(session, view.id)
    if signature is not None:
        document = Document(media_type=signature.media_type, body=signature.body)
        yield document.media_type, _titled(document, signature.file_name), (document,)
    found = {manifests.ACCURACY: view.accuracy, manifests.METRICS: view.metrics}
    for kind, report in found.items():
        if report is not None:
            document = Document.of(kind, report.model_dump(mode="json"))
            name = "accuracy.json" if kind == manifests.ACCURACY else "metrics.json"
            yield kind, _titled(document, name), (document,)
    with suppress(NotFound):  # it was built without one
        digest = layer_report(session, view.id)
        blob = session.get(Artifact, digest)
        if blob is not None and blob.lost_at is None:
            title = {manifests.TITLE: "layers.json"}
            kind = manifests.LAYERS
            yield kind, manifests.descriptor(kind, digest, blob.bytes, annotations=title), ()


def _titled(document: Document, name: str) -> dict[str, object]:
    return document.descriptor(annotations={manifests.TITLE: name})


def document_of(row: OciDocument) -> Document:
    algorithm = row.digest.partition(":")[0]
    return Document(media_type=row.media_type, body=row.body, algorithm=algorithm)


def keep(session: Session, repository: str, made: Iterable[Derived]) -> None:
    """Keep manifests and their small blobs; what is there already stays."""
    for one in made:
        keep_document(session, one.manifest)
        for document in one.documents:
            keep_document(session, document)
        subject = one.manifest.value().get("subject") or {}
        values: dict[str, object] = {
            "repository": repository,
            "digest": one.manifest.digest,
            "subject": subject.get("digest"),
            "needs": [],
            "engine_id": one.engine_id,
            "version_id": one.version_id,
            "created_at": now(),
        }
        if not insert_new(session, OciManifest, values):
            _adopt(session, repository, one)


def _adopt(session: Session, repository: str, made: Derived) -> None:
    """Have a manifest that a client pushed before the farm made the same be the farm's."""
    pushed = (
        OciManifest.repository == repository,
        OciManifest.digest == made.manifest.digest,
        OciManifest.engine_id.is_(None),
        OciManifest.version_id.is_(None),
    )
    owner = {"engine_id": made.engine_id, "version_id": made.version_id}
    session.execute(
        update(OciManifest)
        .where(*pushed)
        .values(**owner)
        .execution_options(synchronize_session=False)
    )


def keep_document(session: Session, document: Document) -> None:
    values = {
        "digest": document.digest,
        "media_type": document.media_type,
        "body": document.body,
    }
    insert_new(session, OciDocument, values)


def forget(
    session: Session, *, engines: Collection[str] = (), versions: Collection[int] = ()
) -> None:
    """Delete what was kept of engines and versions that go, with the tags that were pushed for it."""
    about = or_(OciManifest.engine_id.in_(engines), OciManifest.version_id.in_(versions))
    rows = session.execute(select(OciManifest.repository, OciManifest.digest).where(about)).all()
    for repository, digest in rows:
        tagged = (OciTag.repository == repository, OciTag.digest == digest)
        session.execute(delete(OciTag).where(*tagged).execution_options(synchronize_session=False))
    session.execute(delete(OciManifest).where(about).execution_options(synchronize_session=False))
    needed = select(OciManifest.digest).where(OciManifest.digest == OciDocument.digest).exists()
    orphans = (OciDocument.digest.in_([digest for _, digest in rows]), ~needed)
    session.execute(
        delete(OciDocument).where(*orphans).execution_options(synchronize_session=False)
    )
