"""What a file is to the farm, by its digest: an engine, a model's source, data of builds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import references
from farm.database.declared import Holds
from farm.database.tables import AliasRow, Artifact, Build, EngineRow, Model, Version, Yank
from farm.errors import NotFound
from farm.registry import catalog, holders
from farm.registry.names import named
from farm.registry.rows import IS_YANKED, grouped, select_rows
from farm.schemas.uses import BlobUses, DataUse, VersionUse
from farm.specs.roles import Role

_MOST = 100
#: What isn't listed by itself.
_OTHERS = frozenset({Holds.INPUT, Holds.OUTPUT, Holds.TIMING_CACHE, Holds.PLUGIN, Holds.PUSHED})


def uses(session: Session, digest: str) -> BlobUses:
    """Everything that refers to a blob.

    Raises:
        NotFound: the farm doesn't know it.
    """
    blob = session.get(Artifact, digest)
    if blob is None:
        raise NotFound(
            f"the farm doesn't know {digest}",
            hint="it is of another farm, was changed, or was never uploaded here",
        )
    held = references.holders(session, [digest]).get(digest, ())
    by_kind = {kind: [one.row for one in held if one.holds == kind] for kind in Holds}
    # An engine is its build job's output as well: it is said once.
    others = _OTHERS - {Holds.OUTPUT} if by_kind[Holds.ENGINE] else _OTHERS
    rows = select_rows().where(EngineRow.id.in_(by_kind[Holds.ENGINE]))
    found = grouped(session.execute(rows.order_by(EngineRow.id.desc()).limit(_MOST)))
    engines = catalog.completed(session, found)
    return BlobUses(
        digest=digest,
        bytes=blob.bytes,
        engines=engines,
        sources=list(_sources(session, by_kind[Holds.SOURCE])),
        data=list(_data(session, digest, by_kind[Holds.DATA])),
        others=[holders.in_words(session, one) for one in held if one.holds in others][:_MOST],
        aliases={
            f"{model}@{number}": list(_aliases(session, model, number))
            for model, number in dict.fromkeys((one.model, one.version) for one in engines)
        },
    )


def _sources(session: Session, versions: Sequence[int]) -> Iterator[VersionUse]:
    rows = session.execute(
        select(Model.name, Version.number, Yank.reason)
        .join(Version, Version.model_id == Model.id)
        .outerjoin(Yank, IS_YANKED)
        .where(Version.id.in_(versions))
        .order_by(Version.id.desc())
        .limit(_MOST)
    ).all()
    for model, number, reason in rows:
        aliases = list(_aliases(session, model, number))
        yield VersionUse(model=model, version=number, aliases=aliases, yanked=reason)


def _data(session: Session, digest: str, builds: Sequence[str]) -> Iterator[DataUse]:
    for role in (Role.CALIBRATION, Role.EVALUATION):
        rows = session.execute(
            select(Build.id, Model.name, Version.number)
            .join(Version, Version.id == Build.version_id)
            .join(Model, Model.id == Version.model_id)
            .where(
                Build.id.in_(builds),
                Build.request[role.value]["digest"].as_string() == digest,
            )
            .order_by(Build.id.desc())
            .limit(_MOST)
        )
        for build, model, number in rows:
            yield DataUse(build=build, model=model, version=number, role=role)


def _aliases(session: Session, model: str, number: int) -> Sequence[str]:
    return session.scalars(
        select(AliasRow.name)
        .join(Version, Version.id == AliasRow.version_id)
        .where(Version.model_id == named(session, model).id, Version.number == number)
        .order_by(AliasRow.name)
    ).all()
