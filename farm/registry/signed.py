"""What is signed of an engine, and its signatures as they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow, EngineSignature, Job, JobInput
from farm.planning.recipe import Given, Recipe
from farm.registry import catalog, loading
from farm.registry.provenance import provenance_of
from farm.registry.publish import MIRRORED
from farm.schemas.engines import EngineView, Manifest
from farm.schemas.signing import EnginePredicate, JobRecord, SignatureFormat, SignedBy
from farm.signing import bundles, statements
from farm.signing.bundles import Statement
from farm.signing.keys import PublicKey
from farm.specs.roles import GIVEN, Role

#: What may change about a published engine, and so isn't signed.
CHANGING = frozenset({"yanked", "against", "judgements"})
_MATERIALS = (*GIVEN, Role.TYPED, Role.TYPED_FP16, Role.TYPED_HALF)


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
    jobs = list(_jobs(session, engine_id))
    predicate = EnginePredicate(
        engine=_unchanging(view),
        materials=_materials(view, jobs),
        provenance=provenance_of(session, engine_id),
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
        provenance = provenance_of(session, engine_id)
        files = {view.file_name(): view.digest} | reports_of(session, engine_id)
        return Manifest(
            engine=view, provenance=provenance, files=files, load=loading.text(view), signed_by=None
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


def _jobs(session: Session, engine_id: str) -> Iterator[Job]:
    """The jobs that an engine comes from: its measurement, its build, and all before them."""
    row = session.get_one(EngineRow, engine_id)
    seen: set[int] = set()
    ahead = [row.measure_job_id, row.build_job_id]
    while ahead:
        job_id = ahead.pop(0)
        if job_id not in seen:
            seen.add(job_id)
            yield session.get_one(Job, job_id)
            needs = select(JobInput.needs_id).where(JobInput.job_id == job_id)
            ahead += session.scalars(needs.order_by(JobInput.role))


def _materials(view: EngineView, jobs: Sequence[Job]) -> dict[str, str]:
    found = {str(Role.SOURCE): view.source_digest}
    for job in jobs:
        given = {
            str(role): one.digest
            for role, one in Recipe.read(job.recipe).inputs.items()
            if isinstance(one, Given)
        }
        made = {str(role): digest for role, digest in (job.outputs or {}).items()}
        for role in _MATERIALS:
            if role in given or role in made:
                found.setdefault(str(role), given.get(role) or made[role])
    for job in jobs:  # what another farm's jobs came from isn't here
        found = (job.facts or {}).get(MIRRORED, {}).get("materials", {}) | found
    return found


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
