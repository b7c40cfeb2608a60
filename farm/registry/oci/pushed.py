"""What clients push: manifests and tags as rows, blobs in the store with the repositories that have them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Artifact, OciBlob, OciManifest, OciTag
from farm.errors import (
    BlobUnknown,
    DigestMismatch,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    RepositoryUnknown,
    StillReferred,
    TagTaken,
)
from farm.registry.oci import derived, manifests
from farm.registry.oci.manifests import Document
from farm.registry.oci.repositories import InStore, blob, is_farms, model_of
from farm.specs import repositories

#: What distribution-spec asks registries to accept at least.
LONGEST_MANIFEST_BYTES = 4 * 2**20
_MOST_DESCRIPTORS = 4096
_DOCKER = "application/vnd.docker.distribution.manifest"
#: Media type → whether it lists manifests.
_TYPES = {
    manifests.MANIFEST: False,
    manifests.INDEX: True,
    f"{_DOCKER}.v2+json": False,
    f"{_DOCKER}.list.v2+json": True,
}


@dataclass(frozen=True, kw_only=True)
class Put:
    """A manifest that was pushed."""

    digest: str
    subject: str | None


def put(
    session: Session,
    repository: str,
    reference: str,
    body: bytes,
    *,
    media_type: str | None,
    protected: Sequence[str],
) -> Put:
    """Keep a manifest as it came, and have the tag name it.

    Parameters:
        reference: a tag, or the manifest's digest.
        media_type: as the request said; must be the manifest's own.
        protected: aliases that are the farm's though no version has them yet.

    Raises:
        ManifestInvalid, ManifestBlobUnknown, TagTaken, DigestMismatch, DigestInvalid, RepositoryNameInvalid
    """
    repositories.check_repository(repository)
    by_digest = repositories.is_digest(reference)
    value = _parsed(body)
    document = Document(media_type=_type(value, media_type), body=body)
    if by_digest and document.digest != reference:
        raise DigestMismatch(f"the manifest's digest is {document.digest}; nothing was stored")
    if not by_digest:
        _check_tag(session, repository, reference, protected)
    blobs = list(_needed(session, repository, value, lists=_TYPES[document.media_type]))
    subject = _subject(value)
    derived.keep_document(session, document)
    row = {
        "repository": repository,
        "digest": document.digest,
        "subject": subject,
        "needs": sorted(set(blobs)),
        "created_at": now(),
    }
    derived.insert_new(session, OciManifest, row)
    if not by_digest:
        _tag(session, repository, reference, document.digest)
    return Put(digest=document.digest, subject=subject)


def _parsed(body: bytes) -> Mapping[str, Any]:
    if len(body) > LONGEST_MANIFEST_BYTES:
        raise ManifestInvalid(f"manifests are limited to {LONGEST_MANIFEST_BYTES} bytes")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise ManifestInvalid("the manifest isn't JSON") from err
    if not isinstance(value, dict) or value.get("schemaVersion") != 2:
        raise ManifestInvalid("the manifest isn't an object with schemaVersion 2")
    return value


def _type(value: Mapping[str, Any], said: str | None) -> str:
    own = value.get("mediaType")
    said = said.partition(";")[0].strip().lower() if said else None
    found = own if isinstance(own, str) else said
    if found not in _TYPES:
        raise ManifestInvalid(
            f"manifests of the type {str(found)[:100]!r} aren't accepted",
            hint=f"push one of {', '.join(_TYPES)}",
        )
    if said is not None and said != found:
        raise ManifestInvalid(f"the request says {said[:100]}, the manifest {found}")
    return found


def _check_tag(session: Session, repository: str, tag: str, protected: Sequence[str]) -> None:
    model = model_of(session, repository)
    if model is not None and is_farms(session, model, tag, protected):
        raise TagTaken(f"{tag} is a tag of the farm's in {repository}: pushes don't move it")


def _needed(
    session: Session, repository: str, value: Mapping[str, Any], *, lists: bool
) -> Iterator[str]:
    """The digests in the store that a manifest needs; renews them.

    Raises:
        ManifestInvalid, ManifestBlobUnknown
    """
    if lists:
        for one in _descriptors(value, "manifests"):
            if session.get(OciManifest, (repository, one["digest"])) is None:
                raise ManifestBlobUnknown(f"{repository} has no manifest {one['digest']}")
        return
    config = value.get("config")
    for one in [_descriptor(config), *_descriptors(value, "layers")]:
        if _is_foreign(one):
            continue
        try:
            found = blob(session, repository, one["digest"])
        except (BlobUnknown, RepositoryUnknown) as err:
            raise ManifestBlobUnknown(err.detail) from err
        size = found.bytes if isinstance(found, InStore) else len(found.body)
        if size != one["size"]:
            raise ManifestInvalid(f"{one['digest']} has {size} bytes, not {one['size']}")
        if isinstance(found, InStore):
            _renew(session, one["digest"])
            yield one["digest"]


def _descriptors(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    given = value.get(name)
    if not isinstance(given, list) or len(given) > _MOST_DESCRIPTORS:
        raise ManifestInvalid(f"{name} isn't a list of at most {_MOST_DESCRIPTORS} descriptors")
    return [_descriptor(one) for one in given]


def _descriptor(given: object) -> dict[str, Any]:
    if (
        not isinstance(given, dict)
        or not isinstance(given.get("mediaType"), str)
        or type(given.get("size")) is not int
        or not isinstance(given.get("digest"), str)
    ):
        raise ManifestInvalid(
            "what the manifest refers to needs descriptors: mediaType, digest, size"
        )
    repositories.check_digest(given["digest"])
    return given


def _is_foreign(one: Mapping[str, Any]) -> bool:
    """Whether a layer is one that registries needn't have."""
    kind = one["mediaType"]
    return ".nondistributable." in kind or ".foreign." in kind


def _subject(value: Mapping[str, Any]) -> str | None:
    given = value.get("subject")
    if given is None:
        return None
    digest: str = _descriptor(given)["digest"]  # it may not be there yet
    return digest


def _tag(session: Session, repository: str, tag: str, digest: str) -> None:
    values = {"repository": repository, "tag": tag, "digest": digest}
    if not derived.insert_new(session, OciTag, values):
        named = (OciTag.repository == repository) & (OciTag.tag == tag)
        session.execute(update(OciTag).where(named).values(digest=digest))


def remove(session: Session, repository: str, reference: str, protected: Sequence[str]) -> None:
    """Delete a tag; or a pushed manifest, by its digest, with its tags.

    Raises:
        ManifestUnknown, TagTaken
        StillReferred: the farm made it.
    """
    by_digest = repositories.is_digest(reference)
    if not by_digest:
        _check_tag(session, repository, reference, protected)
        named = (OciTag.repository == repository) & (OciTag.tag == reference)
        if session.execute(delete(OciTag).where(named).returning(OciTag.tag)).first() is None:
            raise ManifestUnknown(f"{repository} has no tag {reference}")
        return
    row = session.get(OciManifest, (repository, reference))
    if row is None:
        raise ManifestUnknown(f"{repository} has no manifest {reference}")
    if row.engine_id is not None or row.version_id is not None:
        raise StillReferred(
            "the farm made this manifest of an engine or a version",
            hint="take it out of circulation: farm yank",
        )
    tagged = (OciTag.repository == repository) & (OciTag.digest == reference)
    session.execute(delete(OciTag).where(tagged))
    session.delete(row)


def link(session: Session, repository: str, digest: str) -> None:
    """Have a repository have a blob of the store."""
    derived.insert_new(session, OciBlob, {"repository": repository, "digest": digest})


def mount(session: Session, repository: str, digest: str, origin: str) -> bool:
    """Have a repository have another's blob; False if that one hasn't it in the store."""
    found = blob(session, origin, digest)
    if not isinstance(found, InStore) or not _renew(session, digest):
        return False
    link(session, repository, digest)
    return True


def _renew(session: Session, digest: str) -> bool:
    """As `farm.store.artifacts.renew`: a garbage collection that is about to take it sees it is needed."""
    young = update(Artifact).where(Artifact.digest == digest, Artifact.lost_at.is_(None))
    found = session.execute(young.values(created_at=now()).returning(Artifact.digest))
    return found.first() is not None


def unlink(session: Session, repository: str, digest: str) -> None:
    """Have a repository no longer have a blob.

    Raises:
        BlobUnknown
        StillReferred: one of its manifests needs it.
    """
    repositories.check_digest(digest)
    row = session.get(OciBlob, (repository, digest))
    if row is None:
        raise BlobUnknown(f"{repository} has no pushed blob {digest}")
    needed = session.execute(
        select(OciManifest.digest, OciManifest.needs).where(
            OciManifest.repository == repository, OciManifest.engine_id.is_(None)
        )
    )
    for manifest, blobs in needed:
        if digest in blobs:
            raise StillReferred(f"the manifest {manifest} needs it", hint="delete that one first")
    session.delete(row)
