"""Repositories: a model's, with its versions and aliases as tags, and whatever clients push."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from farm.database.tables import (
    IS_KEPT,
    AliasRow,
    Artifact,
    EngineRow,
    Job,
    Model,
    OciBlob,
    OciDigest,
    OciDocument,
    OciManifest,
    OciTag,
    Version,
    Yank,
)
from farm.errors import (
    BlobDamaged,
    BlobUnknown,
    ManifestUnknown,
    NameAmbiguous,
    NotFound,
    RepositoryUnknown,
)
from farm.registry import catalog, names, versions
from farm.registry.match import best_match
from farm.registry.names import Named
from farm.registry.oci import derived, manifests
from farm.registry.oci.derived import Derived
from farm.registry.oci.manifests import Document, Source
from farm.registry.rows import IS_YANKED
from farm.schemas.engines import EngineView
from farm.specs import repositories
from farm.specs.names import folded
from farm.specs.references import PROD, Reference
from farm.specs.roles import Role
from farm.specs.states import EngineState

#: What clients ask for without a tag: what a pull takes by default.
LATEST = "latest"
_VERSION = re.compile(r"v?([1-9]\d{0,8})(-source)?")
_LIKE_A_VERSION = re.compile(r"v?\d+(-source)?")
_MOST_ENGINES = 1000  #: in one index, and made at once


@dataclass(frozen=True, kw_only=True)
class Found:
    """A manifest to serve, and what is to be kept before.

    Without a manifest it is to be looked for again once these are kept: so they are made once in all, and not
    for each digest that there isn't.
    """

    manifest: Document | None
    new: Sequence[Derived] = ()


@dataclass(frozen=True, kw_only=True)
class InStore:
    """A blob that the artifact store has."""

    digest: str  #: the store's, whatever it was asked for by
    bytes: int


def model_of(session: Session, repository: str) -> Named | None:
    """The model whose repository this is."""
    name = repositories.model_of(repository)
    if name is None:
        return None
    with suppress(NotFound, NameAmbiguous):
        found = names.named(session, name)
        return found if of_model(session, found) == repository else None
    return None


def of_model(session: Session, model: Named) -> str:
    """A model's repository."""
    is_folded = session.get_one(Model, model.id).folded is not None
    return repositories.of_model(model.name, is_folded=is_folded)


def check(session: Session, repository: str) -> Named | None:
    """The model of a repository that exists; None if it has only what was pushed.

    Raises:
        RepositoryUnknown
    """
    model = model_of(session, repository)
    if model is None:
        pushed = [
            select(table.repository).where(table.repository == repository).limit(1)
            for table in (OciManifest, OciBlob)
        ]
        if not any(session.scalar(one) for one in pushed):
            raise RepositoryUnknown(
                f"there is no repository {repository!r}",
                hint="GET /v2/_catalog lists them: models by name, and what was pushed",
            )
    return model


def manifest(session: Session, repository: str, reference: str) -> Found:
    """A manifest by its digest or a tag.

    Raises:
        RepositoryUnknown, ManifestUnknown, DigestInvalid, RepositoryNameInvalid
    """
    by_digest = repositories.is_digest(reference)
    model = check(session, repository)
    if by_digest:
        found = _by_digest(session, repository, model, reference)
    else:
        found = _by_tag(session, repository, model, reference)
    if found is None or not (found.manifest or found.new):
        raise ManifestUnknown(
            f"{repository} has no manifest {reference}",
            hint=f"GET /v2/{repository}/tags/list lists its tags",
        )
    return found


def _by_digest(session: Session, repository: str, model: Named | None, digest: str) -> Found | None:
    row = session.get(OciManifest, (repository, digest))
    if row is not None:
        kept = session.get_one(OciDocument, digest)
        return Found(manifest=derived.document_of(kept))
    if model is None:
        return None
    # Nobody has asked for it yet, but it can be told beforehand: a script may have computed it.
    made = not_kept(session, repository, model)
    found = next((one.manifest for one in made if one.manifest.digest == digest), None)
    return Found(manifest=found, new=made)


def not_kept(session: Session, repository: str, model: Named) -> list[Derived]:
    """The manifests of engines that nobody has asked for yet; of many, the newest."""
    kept = select(OciManifest.engine_id).where(
        OciManifest.repository == repository, OciManifest.engine_id == EngineRow.id
    )
    ids = session.scalars(
        select(EngineRow.id)
        .join(Version, Version.id == EngineRow.version_id)
        .where(Version.model_id == model.id, ~kept.exists())
        .order_by(EngineRow.id.desc())
        .limit(_MOST_ENGINES)
    ).all()
    return list(derived.engines(session, repository, derived.views(session, ids)).values())


def _by_tag(session: Session, repository: str, model: Named | None, tag: str) -> Found | None:
    if model is not None:
        number = _version_of(session, model, tag)
        if number is not None:
            is_source = tag.endswith("-source")
            return _of_version(session, repository, model, number, is_source=is_source)
    pushed = session.get(OciTag, (repository, tag))
    if pushed is None:
        return None
    return Found(manifest=derived.document_of(session.get_one(OciDocument, pushed.digest)))


def _version_of(session: Session, model: Named, tag: str) -> int | None:
    """The version that a tag of the farm's names.

    Raises:
        ManifestUnknown: there is none; says why.
    """
    numbered = _VERSION.fullmatch(tag)
    if numbered:
        reference = Reference(version=int(numbered[1]))
    elif tag == PROD or _is_alias(session, model, tag):
        reference = Reference(alias=tag)
    elif tag == LATEST:
        reference = Reference()
    else:
        return None
    try:
        return versions.taken(session, model, reference).number
    except NotFound as err:
        raise ManifestUnknown(err.detail, hint=err.hint) from err


def _is_alias(session: Session, model: Named, tag: str) -> bool:
    row = session.get(AliasRow, (model.id, tag))
    return row is not None and row.version_id is not None


def is_farms(session: Session, model: Named, tag: str, protected: Sequence[str]) -> bool:
    """Whether a tag is, may become, or could be taken for one of the farm's own: ``V7``, ``Prod``."""
    low = folded(tag)
    return (
        low in (LATEST, PROD, *protected)
        or _LIKE_A_VERSION.fullmatch(low) is not None
        or _is_alias(session, model, low)
    )


def _of_version(
    session: Session, repository: str, model: Named, number: int, *, is_source: bool
) -> Found:
    version_id, number = versions.given_or_newest(session, model, number)
    of = _source(session, model, version_id)
    source = derived.source(session, repository, version_id, of)
    if is_source:
        return Found(manifest=source.manifest, new=_new([source]))
    listed = _in_order(session, model, number)
    made = derived.engines(session, repository, listed)
    yank = session.scalar(
        select(Yank.reason).join(Version, IS_YANKED).where(Version.id == version_id)
    )
    index = manifests.index(
        of, [(view, made[view.id].manifest) for view in listed], source.manifest, yanked=yank
    )
    is_kept = session.get(OciManifest, (repository, index.digest)) is not None
    whole = Derived(manifest=index, version_id=version_id, is_kept=is_kept)
    return Found(manifest=index, new=_new([source, *made.values(), whole]))


def _new(found: Sequence[Derived]) -> list[Derived]:
    return [one for one in found if not one.is_kept]


def _source(session: Session, model: Named, version_id: int) -> Source:
    version = session.get_one(Version, version_id)
    blob = session.get(Artifact, version.source_digest)
    return Source(
        model=model.name,
        version=version.number,
        format=version.source_format,
        digest=version.source_digest,
        bytes=blob.bytes if blob is not None else 0,
        created_at=version.created_at,
        fixed_inputs=version.fixed_inputs or {},
        architecture=version.architecture,
    )


def _in_order(session: Session, model: Named, number: int) -> list[EngineView]:
    """A version's engines that pulls may take: by GPU, and the one that a pull takes in front."""
    found = catalog.find(session, model, version=number, yanked=False, limit=_MOST_ENGINES)
    passed = [view for view in found if view.state == EngineState.READY]
    winners = set()
    for gpu in {view.gpu for view in passed}:
        with suppress(NotFound, BlobDamaged):
            winners.add(best_match(session, model.name, gpu, version=number).engine.id)
    return sorted(passed, key=lambda view: (view.gpu, view.id not in winners, view.id))


def tags(session: Session, repository: str) -> list[str]:
    """A repository's tags, in the order of their bytes.

    Raises:
        RepositoryUnknown
    """
    model = check(session, repository)
    found = set(session.scalars(select(OciTag.tag).where(OciTag.repository == repository)))
    if model is not None:
        live = select(Version.id, Version.number).where(
            Version.model_id == model.id,
            IS_KEPT,
            ~select(Yank.same).where(IS_YANKED).exists(),
        )
        numbers = dict(session.execute(live).tuples().all())
        named = select(AliasRow.name, AliasRow.version_id).where(AliasRow.model_id == model.id)
        for number in numbers.values():
            found |= {f"v{number}", f"v{number}-source"}
        found |= {name for name, version in session.execute(named) if version in numbers}
    return sorted(found)


def catalog_of(session: Session) -> list[str]:
    """All repositories, in the order of their bytes."""
    found = {
        repositories.of_model(name, is_folded=folded is not None)
        for name, folded in session.execute(select(Model.name, Model.folded))
    }
    for table in (OciManifest, OciBlob):
        found |= set(session.scalars(select(table.repository).distinct()))
    return sorted(found)


def blob(session: Session, repository: str, digest: str) -> Document | InStore:
    """A blob of a repository.

    Raises:
        BlobUnknown, RepositoryUnknown, DigestInvalid
    """
    repositories.check_digest(digest)
    model = check(session, repository)
    content = contents(session, [digest]).get(digest, digest)
    stored = session.get(Artifact, content)
    if stored is not None and stored.lost_at is None and _has(session, repository, model, content):
        return InStore(digest=content, bytes=stored.bytes)
    document = session.get(OciDocument, digest) if model is not None else None
    # What is only a manifest isn't a blob.
    if document is not None and document.media_type not in (manifests.MANIFEST, manifests.INDEX):
        return derived.document_of(document)
    raise BlobUnknown(f"{repository} has no blob {digest}")


def contents(session: Session, digests: Collection[str]) -> dict[str, str]:
    """The digests by which the store has what these name; those of a sha512 that it may have."""
    other = [digest for digest in digests if repositories.is_sha512(digest)]
    found = {digest: digest for digest in digests if not repositories.is_sha512(digest)}
    if other:
        named = select(OciDigest.digest, OciDigest.content).where(OciDigest.digest.in_(other))
        found |= dict(session.execute(named).tuples().all())
    return found


def _has(session: Session, repository: str, model: Named | None, digest: str) -> bool:
    if session.get(OciBlob, (repository, digest)) is not None:
        return True
    if model is None:
        return False
    layers = Job.outputs[Role.LAYERS.value].as_string() == digest
    engine = (
        select(EngineRow.id)
        .join(Version, Version.id == EngineRow.version_id)
        .join(Job, Job.id == EngineRow.build_job_id)
        .where(Version.model_id == model.id, or_(EngineRow.digest == digest, layers))
    )
    source = select(Version.id).where(
        Version.model_id == model.id, Version.source_digest == digest, IS_KEPT
    )
    return any(session.execute(one.limit(1)).first() is not None for one in (source, engine))
