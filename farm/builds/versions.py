"""The model version that a submission belongs to."""

from __future__ import annotations

from sqlalchemy import and_, bindparam, func, select
from sqlalchemy.orm import Session

from farm.database.tables import (
    Artifact,
    Model,
    Version,
)
from farm.errors import NotFound
from farm.planning import keys
from farm.schemas.submission import BuildRequest
from farm.specs.roles import Role

# These statements are built once: building them is a good part of a submission's cost.
_BLOBS = (
    select(Artifact.digest)
    .where(Artifact.digest.in_(bindparam("digests", expanding=True)), Artifact.lost_at.is_(None))
    # A shared lock: it blocks garbage collection, not other submissions, until this one commits.
    .with_for_update(key_share=True, read=True)
)


_VERSION = (
    select(Model.id, Version.id, Version.number)
    .outerjoin(
        Version,
        and_(
            Version.model_id == Model.id,
            Version.source_digest == bindparam("digest"),
            Version.variant == bindparam("variant"),
        ),
    )
    .where(Model.name == bindparam("name"))
)


def _check_blobs(session: Session, request: BuildRequest) -> None:
    digests = {"source": request.source.digest}
    if request.calibration:
        digests[Role.CALIBRATION] = request.calibration.digest
    if request.evaluation:
        digests[Role.EVALUATION] = request.evaluation.digest
    there = set(session.connection().scalars(_BLOBS, {"digests": list(digests.values())}))
    for role, digest in digests.items():
        if digest not in there:
            raise NotFound(
                f"the {role} {digest} isn't here", hint="upload it first: POST /v1/blobs"
            )


def version_of(session: Session, request: BuildRequest) -> tuple[int, int]:
    """The version's id and number; a source new to the model becomes its next version.

    Raises:
        NotFound: one of the request's blobs hasn't been uploaded.
    """
    digest, architecture = request.source.digest, request.source.architecture
    told = {
        "fixed_inputs": request.fixed_inputs or None,
        "architecture": architecture.model_dump(mode="json") if architecture else None,
    }
    variant = keys.variant(**told)
    found = (
        session.connection()
        .execute(_VERSION, {"digest": digest, "name": request.model, "variant": variant})
        .one_or_none()
    )
    is_known = found is not None and found[1] is not None
    _check_blobs(session, request)
    if found is not None and is_known:
        return found[1], found[2]
    model_id = found[0] if found is not None else _new_model(session, request.model)
    newest = session.scalar(select(func.max(Version.number)).where(Version.model_id == model_id))
    version = Version(
        model_id=model_id,
        number=(newest or 0) + 1,
        source_digest=digest,
        source_format=request.source.format,
        variant=variant,
        **told,
    )
    session.add(version)
    session.flush()
    return version.id, version.number


def _new_model(session: Session, name: str) -> int:
    model = Model(name=name)
    session.add(model)
    session.flush()
    return model.id
