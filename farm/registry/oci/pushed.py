"""What clients push: manifests and tags as rows, blobs in the store with the repositories that have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Artifact, OciBlob, OciDigest, OciManifest, OciTag
from farm.database.upserts import insert_new
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
from farm.registry.oci import derived, received
from farm.registry.oci.manifests import Document
from farm.registry.oci.repositories import InStore, blob, contents, is_farms, model_of
from farm.specs import repositories

#: Of manifests about another: whoever asks for that one's referrers gets their annotations in one answer.
_LONGEST_REFERRER_BYTES = 64 * 2**10
_MOST_REFERRERS = 1000
_MOST_TAGS = 100  #: of one push


@dataclass(frozen=True, kw_only=True)
class Put:
    """A manifest that was pushed."""

    digest: str
    subject: str | None
    tags: Sequence[str]


def put(
    session: Session,
    repository: str,
    reference: str,
    body: bytes,
    *,
    tags: Sequence[str] = (),
    media_type: str | None,
    protected: Sequence[str],
    is_admins: bool,
) -> Put:
    """Keep a manifest as it came, and have the tags name it.

    Parameters:
        reference: a tag, or the manifest's digest.
        tags: further ones.
        media_type: as the request said; must be the manifest's own.
        protected: aliases that are the farm's though no version has them yet.
        is_admins: whether an administrator pushes it, whose tags nobody else moves.

    Raises:
        ManifestInvalid, ManifestBlobUnknown, TagTaken, DigestMismatch, DigestInvalid, RepositoryNameInvalid
    """
    repositories.check_repository(repository)
    by_digest = repositories.is_digest(reference)
    value = received.parsed(body)
    document = Document(
        media_type=received.type_of(value, media_type),
        body=body,
        algorithm=reference.partition(":")[0] if by_digest else "sha256",
    )
    if by_digest and document.digest != reference:
        raise DigestMismatch(f"the manifest's digest is {document.digest}; nothing was stored")
    tags = _checked_tags(session, repository, tags if by_digest else [reference, *tags], protected)
    lists = received.TYPES[document.media_type]
    received.check_one_kind(value, lists=lists)
    received.check_texts(value)
    blobs = _needed(session, repository, value, lists=lists)
    subject = received.subject(value)
    if subject is not None:
        _check_referrer(session, repository, subject, document)
    derived.keep_document(session, document)
    row = {
        "repository": repository,
        "digest": document.digest,
        "subject": subject,
        "needs": blobs,
        "created_at": now(),
    }
    insert_new(session, OciManifest, row)
    for tag in tags:
        _tag(session, repository, tag, document.digest, is_admins=is_admins)
    return Put(digest=document.digest, subject=subject, tags=tags)


def _check_referrer(session: Session, repository: str, subject: str, document: Document) -> None:
    if len(document.body) > _LONGEST_REFERRER_BYTES:
        raise ManifestInvalid(
            f"manifests with a subject are limited to {_LONGEST_REFERRER_BYTES} bytes",
            hint="put what it says into a layer",
        )
    about = (OciManifest.repository == repository, OciManifest.subject == subject)
    others = select(func.count()).where(*about, OciManifest.digest != document.digest)
    if (session.scalar(others) or 0) >= _MOST_REFERRERS:
        raise ManifestInvalid(
            f"{_MOST_REFERRERS} manifests refer to {subject} already",
            hint="an administrator may delete some",
        )


def _checked_tags(
    session: Session, repository: str, tags: Sequence[str], protected: Sequence[str]
) -> list[str]:
    found = sorted(set(tags))  # in one order, so that two pushes don't wait for each other
    if len(found) > _MOST_TAGS:
        raise ManifestInvalid(
            f"one push writes at most {_MOST_TAGS} tags", hint="push it again with the others"
        )
    for tag in found:
        repositories.check_tag(tag)
        _check_tag(session, repository, tag, protected)
    return found


def _check_tag(session: Session, repository: str, tag: str, protected: Sequence[str]) -> None:
    model = model_of(session, repository)
    if model is not None and is_farms(session, model, tag, protected):
        raise TagTaken(f"{tag} is a tag of the farm's in {repository}: pushes don't move it")


def _needed(
    session: Session, repository: str, value: Mapping[str, Any], *, lists: bool
) -> list[str]:
    """The digests in the store that a manifest needs; renews them.

    Raises:
        ManifestInvalid, ManifestBlobUnknown
    """
    if lists:
        _check_manifests(session, repository, received.descriptors(value, "manifests"))
        return []
    listed = [received.descriptor(value.get("config")), *received.descriptors(value, "layers")]
    wanted = {one["digest"]: one["size"] for one in listed if not received.is_foreign(one)}
    named = contents(session, wanted)
    in_store = _sizes(session, repository, named.values())
    found = {digest: in_store[one] for digest, one in named.items() if one in in_store}
    for digest in wanted.keys() - found.keys():
        try:
            other = blob(session, repository, digest)
        except (BlobUnknown, RepositoryUnknown) as err:
            raise ManifestBlobUnknown(err.detail) from err
        if isinstance(other, InStore):
            found[digest] = in_store[other.digest] = other.bytes
        else:
            found[digest] = len(other.body)
    for one in listed:
        size = found.get(one["digest"], one["size"])
        if size != one["size"]:
            raise ManifestInvalid(f"{one['digest']} has {size} bytes, not {one['size']}")
    gone = in_store.keys() - _renew(session, in_store)
    if gone:
        raise ManifestBlobUnknown(f"{repository} has no blob {min(gone)}")
    return sorted(in_store)


def _check_manifests(
    session: Session, repository: str, listed: Sequence[Mapping[str, Any]]
) -> None:
    """Raise ManifestBlobUnknown unless the repository has these manifests."""
    wanted = {one["digest"] for one in listed}
    has = (OciManifest.repository == repository, OciManifest.digest.in_(wanted))
    missing = wanted - set(session.scalars(select(OciManifest.digest).where(*has)))
    if missing:
        raise ManifestBlobUnknown(f"{repository} has no manifest {min(missing)}")


def _sizes(session: Session, repository: str, digests: Iterable[str]) -> dict[str, int]:
    """The pushed blobs among these, thousands at once: other writers wait meanwhile."""
    rows = session.execute(
        select(OciBlob.digest, Artifact.bytes)
        .join(Artifact, Artifact.digest == OciBlob.digest)
        .where(
            OciBlob.repository == repository,
            OciBlob.digest.in_(list(digests)),
            Artifact.lost_at.is_(None),
        )
    )
    return dict(rows.tuples().all())


def _tag(session: Session, repository: str, tag: str, digest: str, *, is_admins: bool) -> None:
    """Have a tag name a manifest.

    Raises:
        TagTaken: it is an administrator's, and names another.
    """
    told = {"digest": digest, "is_admins": is_admins}
    if insert_new(session, OciTag, {"repository": repository, "tag": tag, **told}):
        return
    named = (OciTag.repository == repository) & (OciTag.tag == tag)
    if is_admins:
        session.execute(update(OciTag).where(named).values(told))
        return
    mine = named & (OciTag.is_admins.is_(False) | (OciTag.digest == digest))
    moved = update(OciTag).where(mine).values(digest=digest).returning(OciTag.tag)
    if session.execute(moved).first() is None:
        raise TagTaken(
            f"{repository}:{tag} was written with a key of the scope admin: no other moves it",
            hint="push it by another tag, or ask an administrator",
        )


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


def link(session: Session, repository: str, digest: str, *, named: str) -> None:
    """Have a repository have a blob of the store.

    Parameters:
        named: the digest that the client knows it by.
    """
    insert_new(session, OciBlob, {"repository": repository, "digest": digest})
    if named != digest:
        insert_new(session, OciDigest, {"digest": named, "content": digest})


def mount(session: Session, repository: str, digest: str, origin: str | None) -> bool:
    """Have a repository have another's blob; False if that one hasn't it in the store.

    Parameters:
        origin: the other; None for any to which it was pushed: whoever may push may read all of them.

    Raises:
        BlobUnknown, RepositoryUnknown
    """
    found = _anywhere(session, digest) if origin is None else blob(session, origin, digest)
    if not isinstance(found, InStore) or not _renew(session, [found.digest]):
        return False
    link(session, repository, found.digest, named=digest)
    return True


def _anywhere(session: Session, digest: str) -> InStore | None:
    content = contents(session, [digest]).get(digest, digest)
    pushed = select(OciBlob.digest).where(OciBlob.digest == content).exists()
    size = session.scalar(
        select(Artifact.bytes).where(Artifact.digest == content, Artifact.lost_at.is_(None), pushed)
    )
    return None if size is None else InStore(digest=content, bytes=size)


def _renew(session: Session, digests: Iterable[str]) -> set[str]:
    """As `farm.store.artifacts.renew`: a garbage collection that is about to take them sees they are needed.

    Returns:
        Those that are still there.
    """
    young = update(Artifact).where(Artifact.digest.in_(list(digests)), Artifact.lost_at.is_(None))
    found = session.execute(young.values(created_at=now()).returning(Artifact.digest))
    return set(found.scalars())


def unlink(session: Session, repository: str, digest: str) -> None:
    """Have a repository no longer have a blob.

    Raises:
        BlobUnknown
        StillReferred: one of its manifests needs it.
    """
    repositories.check_digest(digest)
    content = contents(session, [digest]).get(digest, digest)
    row = session.get(OciBlob, (repository, content))
    if row is None:
        raise BlobUnknown(f"{repository} has no pushed blob {digest}")
    needed = session.execute(
        select(OciManifest.digest, OciManifest.needs).where(
            OciManifest.repository == repository, OciManifest.engine_id.is_(None)
        )
    )
    for manifest, blobs in needed:
        if content in blobs:
            raise StillReferred(f"the manifest {manifest} needs it", hint="delete that one first")
    session.delete(row)
