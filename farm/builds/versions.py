"""The model version that a submission belongs to."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from farm.database.tables import HELD_BACK, IS_KEPT, Artifact, Version
from farm.errors import NotFound
from farm.planning import keys
from farm.registry import names
from farm.registry.names import Named
from farm.schemas.submission import BuildRequest
from farm.specs.roles import Role
from farm.store import held

# These statements are built once: building them is a good part of a submission's cost.
_BLOBS = (
    select(Artifact.digest)
    .where(Artifact.digest.in_(bindparam("digests", expanding=True)), Artifact.lost_at.is_(None))
    # A shared lock: it blocks garbage collection, not other submissions, until this one commits.
    .with_for_update(key_share=True, read=True)
)


_VERSION = (
    select(
        Version.id,
        Version.number,
        HELD_BACK.label("is_held"),
        Version.interface.is_not(None).label("is_known"),
    )
    .where(
        Version.model_id == bindparam("model_id"),
        Version.source_digest == bindparam("digest"),
        Version.source_format == bindparam("format"),
        Version.variant.in_([bindparam("variant"), bindparam("other")]),
        IS_KEPT,
    )
    # A shared lock, like that of a foreign key: it keeps out a deletion until this one commits.
    .with_for_update(key_share=True, read=True)
)
_IS_TAKEN = select(Version.id).where(
    Version.model_id == bindparam("model_id"),
    Version.source_digest == bindparam("digest"),
    Version.variant == bindparam("variant"),
)


class Versioned(NamedTuple):
    """A version, and the model it is of."""

    id: int
    number: int
    model: Named
    is_new: bool = False
    is_held: bool = False  #: back, for its inputs or outputs
    is_known: bool = False  #: whether these are

    def in_its_name(self, request: BuildRequest) -> BuildRequest:
        """The request with the model's own name, which it may write in another case."""
        return request.model_copy(update={"model": self.model.name})


def absent(session: Session, request: BuildRequest) -> dict[str, str]:
    """The blobs of a request that haven't been uploaded: role → digest."""
    digests = _blobs(request)
    there = set(session.connection().scalars(_BLOBS, {"digests": list(digests.values())}))
    return {role: digest for role, digest in digests.items() if digest not in there}


def _blobs(request: BuildRequest) -> dict[str, str]:
    digests: dict[str, str] = {Role.SOURCE: request.source.digest}
    if request.calibration:
        digests[Role.CALIBRATION] = request.calibration.digest
    if request.evaluation:
        digests[Role.EVALUATION] = request.evaluation.digest
    return digests


def _take_blobs(session: Session, request: BuildRequest) -> None:
    for role, digest in absent(session, request).items():
        raise NotFound(f"the {role} {digest} isn't here", hint="upload it first: POST /v1/blobs")
    held.settle(session, list(_blobs(request).values()))


def version_of(
    session: Session, request: BuildRequest, *, may_be_absent: bool = False
) -> Versioned:
    """The version that a request is for; a source new to the model becomes its next version.

    A source is its bytes, the format they are read in, its architecture with the configuration, and the
    inputs that are fixed.

    Parameters:
        may_be_absent: whether the request's blobs needn't be here; otherwise they are taken into use.

    Raises:
        NotFound: one of the request's blobs hasn't been uploaded.
        NameAmbiguous
    """
    if not may_be_absent:
        _take_blobs(session, request)
    digest, architecture = request.source.digest, request.source.architecture
    told = {
        "fixed_inputs": request.fixed_inputs or None,
        "architecture": architecture.model_dump(mode="json") if architecture else None,
    }
    read_as = request.source.format
    # The format that bytes were first read in isn't part of the variant, another one is.
    variant = keys.variant(told["fixed_inputs"], told["architecture"])
    other = keys.variant(told["fixed_inputs"], told["architecture"], read_as)
    model = names.named_or_new(session, request.model)
    asked = {"model_id": model.id, "digest": digest, "variant": variant}
    of_format = asked | {"format": read_as, "other": other}
    found = session.connection().execute(_VERSION, of_format).one_or_none()
    if found is not None:
        return Versioned(**found._mapping, model=model)
    is_taken = session.connection().scalar(_IS_TAKEN, asked) is not None
    newest = session.scalar(select(func.max(Version.number)).where(Version.model_id == model.id))
    version = Version(
        model_id=model.id,
        number=(newest or 0) + 1,
        source_digest=digest,
        source_format=read_as,
        variant=other if is_taken else variant,
        **told,
    )
    session.add(version)
    session.flush()
    return Versioned(id=version.id, number=version.number, model=model, is_new=True)
