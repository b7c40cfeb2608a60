"""Which version of a model a pull takes: one for the whole fleet, whatever the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from farm.database.tables import (
    HELD_BACK,
    IS_KEPT,
    AliasRow,
    Build,
    EngineRow,
    Version,
    Wanted,
    Yank,
)
from farm.errors import NotFound
from farm.registry.names import Named
from farm.registry.rows import IS_YANKED, YANKED, with_yanks
from farm.specs import texts
from farm.specs.references import PROD, Reference
from farm.specs.states import BuildState, EngineState

_PAGE = 20
_ENDED = (BuildState.SUCCEEDED, BuildState.FAILED)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A version, and why it is the one."""

    number: int
    why: str


def taken(session: Session, model: Named, reference: Reference = Reference()) -> Taken:
    """The version that a reference means.

    Without one, ``prod`` if there is such an alias; else the newest version of which an ended build has an
    engine that passed its gates for each of its GPUs; else the newest with any engine. Yanked ones, and ones
    with other inputs that nobody asked for, only by their number.

    Raises:
        NotFound: there is no such version, alias or engine, or the alias's version was yanked.
    """
    if reference.version is not None:
        version_id(session, model, reference.version)
        return Taken(number=reference.version, why=f"version {reference.version} as requested")
    alias = reference.alias or PROD
    named = session.execute(
        select(Version.number, Yank.reason)
        .join(AliasRow, AliasRow.version_id == Version.id)
        .outerjoin(Yank, IS_YANKED)
        .where(AliasRow.model_id == model.id, AliasRow.name == alias)
    ).one_or_none()
    if named is not None:
        if named.reason is not None:
            raise NotFound(
                f"version {named.number} of {model.name}, which is {alias}, was yanked: "
                f"{texts.escaped(named.reason)}",
                hint=f"farm rollback {model.name} {alias}; "
                f"--version {named.number} pulls it all the same",
            )
        return Taken(number=named.number, why=f"version {named.number} is {alias}")
    if reference.alias is not None:
        raise no_alias(session, model, reference.alias)
    newest = None
    for version in _with_engines(session, model.id):
        if is_complete(session, version.id):
            number = version.number
            return Taken(number=number, why=f"version {number} is the newest that is complete")
        newest = newest or version.number
    if newest is None:
        raise NotFound(
            f"{model.name} has no engines that weren't yanked or held back for other inputs",
            hint="farm builds shows how far its builds are",
        )
    return Taken(
        number=newest, why=f"version {newest} is the newest with an engine: none is complete"
    )


def version_id(session: Session, model: Named, number: int) -> int:
    """A version's id.

    Raises:
        NotFound
    """
    return given_or_newest(session, model, number)[0]


def given_or_newest(session: Session, model: Named, number: int | None) -> tuple[int, int]:
    """The id and the number of this version, by default the newest.

    Raises:
        NotFound
    """
    statement = select(Version).where(Version.model_id == model.id)
    statement = statement.where(IS_KEPT if number is None else Version.number == number)
    found = session.scalar(statement.order_by(Version.number.desc()).limit(1))
    if found is None or found.deleted_at is not None:
        raise _no_version(model, number, found)
    return found.id, found.number


def hold(session: Session, model: Named, version_id: int) -> None:
    """Keep a version from being deleted before this unit of work ends.

    Raises:
        NotFound: it has been deleted.
    """
    statement = select(Version.id).where(Version.id == version_id, IS_KEPT)
    # A shared lock, like that of a foreign key: it keeps out a deletion alone.
    found = session.scalar(statement.with_for_update(read=True, key_share=True))
    if found is None:
        row = session.get_one(Version, version_id, populate_existing=True)
        raise _no_version(model, row.number, row)


def _no_version(model: Named, number: int | None, row: Version | None) -> NotFound:
    if number is None:
        return NotFound(
            f"all versions of {model.name} have been deleted",
            hint=f"submit it again: farm submit MODEL_FILE --name {model.name}",
        )
    if row is not None and row.deleted_at is not None:
        return NotFound(
            f"version {number} of {model.name} was deleted on {row.deleted_at:%Y-%m-%d}",
            hint="submit its source again: it becomes the next version",
        )
    return NotFound(
        f"{model.name} has no version {number}",
        hint=f"`farm models {model.name}` lists its versions",
    )


def _with_engines(session: Session, model_id: int) -> Iterator[Row[int, int]]:
    """The versions that have engines and weren't yanked, newest first. Few are looked at, of however many."""
    before = None
    while page := session.execute(_page(model_id, before)).all():
        yield from page
        before = page[-1].number


def _page(model_id: int, before: int | None) -> Select[int, int]:
    has_engine = select(EngineRow.id).where(EngineRow.version_id == Version.id).exists()
    is_yanked = select(Yank.same).where(IS_YANKED).exists()
    found = (
        select(Version.id, Version.number)
        .where(Version.model_id == model_id, has_engine, ~is_yanked, ~HELD_BACK)
        .order_by(Version.number.desc())
        .limit(_PAGE)
    )
    return found if before is None else found.where(Version.number < before)


def is_complete(session: Session, version_id: int) -> bool:
    """Whether an ended build of the version has an engine that passed its gates for each of its GPUs."""
    ended = session.scalars(
        select(Build.id)
        .where(Build.version_id == version_id, Build.state.in_(_ENDED))
        .order_by(Build.id.desc())
    )
    return any(_serves_all(session, build_id) for build_id in ended)


def _serves_all(session: Session, build_id: str) -> bool:
    """Whether a build has an engine that passed for each GPU that it is for."""
    found = session.execute(
        with_yanks(
            select(Wanted.asked, EngineRow.state, YANKED)
            .outerjoin(EngineRow, EngineRow.id == Wanted.engine_id)
            .where(Wanted.build_id == build_id)
        )
    ).all()
    served = {
        gpu_of(asked)
        for asked, state, yanked in found
        if state == EngineState.READY and yanked is None
    }
    return bool(found) and served == {gpu_of(asked) for asked, _, _ in found}


def gpu_of(asked: str) -> str:
    """``onnxruntime:cpu`` → ``cpu``."""
    return asked.rpartition(":")[2]


def no_alias(session: Session, model: Named, alias: str) -> NotFound:
    names = session.scalars(
        select(AliasRow.name)
        .where(AliasRow.model_id == model.id, AliasRow.version_id.is_not(None))
        .order_by(AliasRow.name)
    ).all()
    return NotFound(
        f"{model.name} has no alias {alias!r}",
        hint=f"it has {', '.join(names)}"
        if names
        else f"make it: farm promote {model.name} 1 {alias}",
    )
