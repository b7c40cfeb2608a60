"""What a pushed index has: a source, and engines with what refers to them. Nothing it says is believed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import OciDocument, OciManifest
from farm.errors import BlobUnknown, InvalidRequest, NotFound
from farm.registry.oci import derived, manifests
from farm.registry.oci.manifests import Document
from farm.registry.oci.repositories import InStore, blob
from farm.signing.bundles import MEDIA_TYPE
from farm.specs.repositories import check_repository

MOST_ENGINES = 1000
#: Anybody who may push may push one; a signature by a key that is vouched for is looked for among these.
_MOST_REFERRERS = 64

Blob = Document | InStore


@dataclass(frozen=True, kw_only=True)
class EngineCopy:
    """An engine's manifest, and what refers to it."""

    digest: str  #: of the engine's bytes
    bytes: int
    config: Blob
    bundles: Sequence[Blob]  #: what is said to be its signature
    layers: Sequence[str]  #: what is said to be its layer report, by digest


@dataclass(frozen=True, kw_only=True)
class VersionCopy:
    """A version's source and engines."""

    source: str  #: its digest
    engines: Sequence[EngineCopy]


def version(session: Session, repository: str, digest: str) -> VersionCopy:
    """What the index with this digest has.

    Raises:
        NotFound: the repository has no such manifest.
        InvalidRequest: it isn't one of a farm's version.
    """
    index = _manifest(session, check_repository(repository), digest)
    if index.media_type != manifests.INDEX:
        raise InvalidRequest(
            f"{digest} isn't an index", hint="name the digest of a version's index"
        )
    source: str | None = None
    engines: list[EngineCopy] = []
    for one in index.value()["manifests"]:
        manifest = _manifest(session, repository, one["digest"])
        kind = manifests.artifact_type(manifest.value())
        if kind == manifests.ENGINE and len(engines) < MOST_ENGINES:
            engines.append(_engine(session, repository, manifest))
        elif kind == manifests.MODEL and source is None:
            source = _layer(session, repository, manifest.value()).digest
        else:
            raise InvalidRequest(f"{digest} has more or others than a version's engines and source")
    if source is None or not engines:
        raise InvalidRequest(
            f"{digest} hasn't a source and at least one engine",
            hint="mirror a version of which the other farm has an engine that passed its gates",
        )
    return VersionCopy(source=source, engines=engines)


def _manifest(session: Session, repository: str, digest: str) -> Document:
    row = session.get(OciManifest, (repository, digest))
    if row is None:
        raise NotFound(
            f"{repository} has no manifest {digest}", hint="push it first: farm mirror does"
        )
    return derived.document_of(session.get_one(OciDocument, digest))


def _engine(session: Session, repository: str, manifest: Document) -> EngineCopy:
    value = manifest.value()
    layer = _layer(session, repository, value)
    referring = list(_referrers(session, repository, manifest.digest))
    return EngineCopy(
        digest=layer.digest,
        bytes=layer.bytes,
        config=blob(session, repository, value["config"]["digest"]),
        bundles=[found for kind, found in referring if kind == MEDIA_TYPE],
        layers=[found.digest for kind, found in referring if kind == manifests.LAYERS],
    )


def _referrers(session: Session, repository: str, digest: str) -> Iterator[tuple[str, Blob]]:
    """The signatures and layer reports of a manifest, with their artifact types."""
    rows = session.scalars(
        select(OciDocument)
        .join(OciManifest, OciManifest.digest == OciDocument.digest)
        .where(
            OciManifest.repository == repository,
            OciManifest.subject == digest,
            OciDocument.media_type == manifests.MANIFEST,
        )
        .order_by(OciManifest.created_at, OciManifest.digest)
        .limit(_MOST_REFERRERS)
    )
    for row in rows:
        value: dict[str, Any] = json.loads(row.body)
        kind = manifests.artifact_type(value)
        if kind in (MEDIA_TYPE, manifests.LAYERS) and len(value["layers"]) == 1:
            with suppress(BlobUnknown):  # a foreign one
                yield kind, blob(session, repository, value["layers"][0]["digest"])


def _layer(session: Session, repository: str, manifest: Mapping[str, Any]) -> InStore:
    layers = manifest["layers"]
    if len(layers) != 1:
        raise InvalidRequest("a manifest of the version hasn't exactly one layer")
    found = blob(session, repository, layers[0]["digest"])
    if not isinstance(found, InStore):
        raise InvalidRequest(f"{found.digest} isn't a blob that was pushed")
    return found
