"""What is signed of an engine, and its signatures as they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow, EngineSignature, Job, SigningKeyRow
from farm.registry import catalog, loading, provenance
from farm.schemas.engines import EngineView, Manifest
from farm.schemas.signing import EnginePredicate, JobRecord, SignatureFormat, SignedBy
from farm.signing import bundles, statements
from farm.signing.bundles import Statement
from farm.signing.keys import PublicKey
from farm.specs.roles import Role

#: What may change about a published engine, or is told anew each time, and so isn't signed.
CHANGING = frozenset({"yanked", "against", "judgements", "quantization"})


def bundle_of(
    session: Session, engine_id: str, format: SignatureFormat = SignatureFormat.ENGINE
) -> bytes | None:
    """An engine's Sigstore bundle (media type ``bundles.MEDIA_TYPE``); None if it isn't signed yet.

    ``farm.trust.signatory.Signatory.bundle_of`` signs it if need be.
    """
    row = session.get(EngineSignature, engine_id)
    if row is None:
        return None
    return (row.engine if format is SignatureFormat.ENGINE else row.model).encode()


def unsigned(session: Session, limit: int) -> Sequence[str]:
    """Engines without a signature, oldest first."""
    signature = select(EngineSignature.engine_id).where(EngineSignature.engine_id == EngineRow.id)
    rows = select(EngineRow.id).where(~signature.exists()).order_by(EngineRow.id).limit(limit)
    return session.scalars(rows).all()


def count_signed_by(session: Session, key_id: str) -> int:
    """How many engines a key has signed."""
    mine = select(func.count()).where(EngineSignature.key_id == key_id)
    return session.scalar(mine) or 0


@dataclass(frozen=True, kw_only=True)
class Signed:
    """An engine's signature, as far as it is shown.

    Parameters:
        revoked_at: when its key was called compromised: nothing that it signed is to be trusted.
    """

    key_id: str
    at: datetime
    revoked_at: datetime | None


def signature_of(session: Session, engine_id: str) -> Signed | None:
    """Which key has signed an engine; None if none has yet."""
    row = session.execute(
        select(EngineSignature.key_id, EngineSignature.created_at, SigningKeyRow.revoked_at)
        .join(SigningKeyRow, SigningKeyRow.id == EngineSignature.key_id)
        .where(EngineSignature.engine_id == engine_id)
    ).one_or_none()
    return None if row is None else Signed(key_id=row[0], at=row[1], revoked_at=row[2])


def keep(session: Session, engine_id: str, key: PublicKey, engine: bytes, model: bytes) -> None:
    """Store an engine's signatures, unless it has some: another process may have been quicker."""
    if session.get(EngineSignature, engine_id) is None:
        row = EngineSignature(engine_id=engine_id, key_id=key.id)
        row.engine, row.model = engine.decode(), model.decode()
        session.add(row)
        session.flush()


def statements_of(session: Session, engine_id: str, key: PublicKey) -> tuple[Statement, Statement]:
    """What is to be signed of an engine: of all it is, and of its file alone.

    Raises:
        NotFound
    """
    view = catalog.engine(session, engine_id)
    name = view.file_name()
    jobs = provenance.jobs_of(session, engine_id)
    predicate = EnginePredicate(
        engine=_unchanging(view),
        materials=provenance.materials(view, jobs),
        provenance=provenance.provenance_of(session, engine_id),
        jobs=[_record(job) for job in jobs],
        load=loading.text(view),
        signing_key=SignedBy(id=key.id, public_key=key.pem),
    )
    of_engine = statements.of_engine(
        name, view.digest, reports_of(session, engine_id), predicate.model_dump(mode="json")
    )
    return of_engine, statements.of_file(name, view.digest)


def reports_of(session: Session, engine_id: str) -> dict[str, str]:
    """The digests of what an engine's build and measurement left beside it, by role."""
    row = session.get_one(EngineRow, engine_id)
    found: dict[str, str] = {}
    for job_id in (row.build_job_id, row.measure_job_id):
        found |= session.get_one(Job, job_id).outputs or {}
    return {str(role): digest for role, digest in found.items() if role != Role.ENGINE}


def manifest_of(session: Session, engine_id: str) -> Manifest:
    """An engine's manifest: what was signed of it, if it is, and what may change.

    Raises:
        NotFound
    """
    view = catalog.engine(session, engine_id)
    bundle = bundle_of(session, engine_id)
    if bundle is None:
        made = provenance.provenance_of(session, engine_id)
        files = {view.file_name(): view.digest} | reports_of(session, engine_id)
        return Manifest(
            engine=view, provenance=made, files=files, load=loading.text(view), signed_by=None
        )
    # A newer farm may see an old row in another light: what was signed stands.
    statement = bundles.unverified(bundle)
    predicate = EnginePredicate.model_validate(statement.predicate)
    changing = view.model_dump(mode="json", include=set(CHANGING))
    return Manifest(
        engine=EngineView.model_validate(predicate.engine | changing),
        provenance=predicate.provenance,
        files=statement.digests(),
        load=predicate.load,
        signed_by=predicate.signing_key.id,
    )


def _unchanging(view: EngineView) -> dict[str, Any]:
    return view.model_dump(mode="json", exclude=set(CHANGING))


def _record(job: Job) -> JobRecord:
    recipe = job.recipe
    return JobRecord(
        kind=job.kind,
        key=job.key,
        worker=job.owner,
        tools=recipe["tools"],
        inputs=recipe["inputs"],
        outputs={str(role): digest for role, digest in (job.outputs or {}).items()},
    )
