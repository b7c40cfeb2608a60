"""Moves aliases: names such as ``prod`` for one version of a model, for the whole fleet.

A version takes an alias only with an engine that passed its gates for each GPU which the one before served,
and that costs neither accuracy nor time beside the engine which pulls took before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from farm.database.base import now
from farm.database.tables import IS_KEPT, AliasMove, AliasRow, Model, Version
from farm.errors import Conflict
from farm.registry import interfaces, names, replaced, versions, yanks
from farm.registry.names import Named
from farm.schemas.aliases import (
    Action,
    AliasView,
    Lack,
    Move,
    PromoteRequest,
    Promotion,
)

_BEFORE = aliased(Version)


@dataclass(frozen=True, kw_only=True)
class By:
    """Who moves an alias, and what they saw of it."""

    who: str
    revision: int | None = None  #: the alias's, or 0 for none; None for any


def all_of(session: Session, model: str) -> list[AliasView]:
    """A model's aliases by name.

    Raises:
        NotFound
    """
    model_id = names.named(session, model).id
    rows = session.execute(_current(model_id).order_by(AliasRow.name))
    return [_view(row) for row in rows]


def one(session: Session, model: str, alias: str) -> AliasView:
    """An alias.

    Raises:
        NotFound: lists the model's aliases.
    """
    return _one(session, names.named(session, model), alias)


def _one(session: Session, model: Named, alias: str) -> AliasView:
    row = session.execute(_current(model.id).where(AliasRow.name == alias)).one_or_none()
    if row is None:
        raise versions.no_alias(session, model, alias)
    return _view(row)


def _current(model_id: int) -> Any:
    return (
        select(AliasRow, AliasMove, Model.name, Version.number)
        .join(Model, Model.id == AliasRow.model_id)
        .join(Version, Version.id == AliasRow.version_id)
        .join(
            AliasMove,
            (AliasMove.model_id == AliasRow.model_id)
            & (AliasMove.name == AliasRow.name)
            & (AliasMove.revision == AliasRow.revision),
        )
        .where(AliasRow.model_id == model_id)
    )


def _view(row: Any) -> AliasView:
    alias, move, model, number = row
    return AliasView(
        model=model,
        alias=alias.name,
        version=number,
        revision=alias.revision,
        changed_at=move.at,
        changed_by=move.who,
        note=move.note,
    )


def history(
    session: Session, model: str, alias: str, *, before: int | None = None, limit: int
) -> list[Move]:
    """An alias's moves, newest first.

    Parameters:
        before: the revision of the oldest move of the previous page.

    Raises:
        NotFound: there never was such an alias.
    """
    known = names.named(session, model)
    found = (
        select(AliasMove, Version.number, _BEFORE.number)
        .outerjoin(Version, Version.id == AliasMove.version_id)
        .outerjoin(_BEFORE, _BEFORE.id == AliasMove.before_id)
        .where(AliasMove.model_id == known.id, AliasMove.name == alias)
        .order_by(AliasMove.revision.desc())
        .limit(limit)
    )
    if before is not None:
        found = found.where(AliasMove.revision < before)
    rows = session.execute(found).all()
    if not rows and before is None:
        raise versions.no_alias(session, known, alias)
    return [
        Move(
            revision=move.revision,
            action=Action(move.action),
            version=number,
            before=earlier,
            by=move.who,
            note=move.note,
            left_out=[Lack.model_validate(lack) for lack in move.left_out],
            at=move.at,
        )
        for move, number, earlier in rows
    ]


def promote(
    session: Session, model: str, alias: str, request: PromoteRequest, by: By, *, dry_run: bool
) -> Promotion:
    """Make an alias name a version, for all GPUs at once.

    Raises:
        NotFound: there is no such model or version.
        Conflict: the version lacks an engine for a GPU that the one before served, or has other inputs or
            outputs, or the alias was moved meanwhile.
    """
    known = names.named(session, model)
    version_id = versions.version_id(session, known, request.version)
    reason = yanks.of_version(session, version_id)
    if reason is not None:
        raise Conflict(
            f"version {request.version} of {known.name} was yanked: {reason}",
            hint=f"take that back first: farm yank {known.name}@{request.version} --undo",
        )
    row = _seen(session, known, alias, by, lock=not dry_run)
    before_id = row.version_id if row else None
    before = _number(session, before_id)
    changes, meant = interfaces.promoted(session, version_id, before_id, word=request.new_inputs)
    if not meant and not dry_run:
        raise Conflict(
            f"version {request.version} can't be {alias} of {known.name}: its inputs or outputs aren't "
            f"those of the version before: {interfaces.told(changes)}",
            hint=interfaces.HINT,
        )
    beside, left_out = replaced.compared(session, known, before, request)
    if left_out and not request.partial and not dry_run:
        lacks = "; ".join(f"{lack.gpu}: {lack.why}" for lack in left_out)
        raise Conflict(
            f"version {request.version} can't be {alias} of {known.name}: {lacks}",
            hint="build what is missing, or promote it for the others with --partial (partial=true)",
        )
    if not beside and not dry_run:
        raise Conflict(
            f"version {request.version} of {known.name} has no engine that passed its gates",
            hint="wait for its build, or see what came of it: farm builds",
        )
    view = None
    if not dry_run:
        if request.new_inputs:
            interfaces.accept(session, version_id)
        if row is None or row.version_id != version_id:
            _move(
                session, known, alias, row, version_id, Action.PROMOTE, by, request.note, left_out
            )
        view = _one(session, known, alias)
    return Promotion(
        model=known.name,
        alias=view,
        version=request.version,
        before=before,
        changes=changes,
        left_out=left_out,
        engines=beside,
    )


def rollback(
    session: Session, model: str, alias: str, by: By, *, note: str | None = None
) -> AliasView:
    """Have an alias name again the version it named before its present one was promoted.

    Raises:
        NotFound: there is no such alias.
        Conflict: it never named another version, or was moved meanwhile.
    """
    known = names.named(session, model)
    row = _seen(session, known, alias, by)
    if row is None or row.version_id is None:
        raise versions.no_alias(session, known, alias)
    before = _earlier(session, row)
    if before is None:
        raise Conflict(
            f"{alias} of {known.name} named no version before {_number(session, row.version_id)} was "
            "promoted: there is nothing to go back to",
            hint=f"promote another: farm promote {known.name} VERSION {alias}; all that it has named: "
            f"farm aliases {known.name} {alias}",
        )
    if session.scalar(select(Version.deleted_at).where(Version.id == before)) is not None:
        raise Conflict(
            f"{alias} of {known.name} named version {_number(session, before)} before, which was deleted",
            hint=f"promote another: farm promote {known.name} VERSION {alias}",
        )
    _move(session, known, alias, row, before, Action.ROLLBACK, by, note)
    return _one(session, known, alias)


def _earlier(session: Session, row: AliasRow) -> int | None:
    """The id of the version that an alias named before its present one was promoted."""
    return session.scalar(
        select(AliasMove.before_id)
        .where(
            AliasMove.model_id == row.model_id,
            AliasMove.name == row.name,
            AliasMove.action == Action.PROMOTE,
            AliasMove.version_id == row.version_id,
            AliasMove.before_id != row.version_id,
        )
        .order_by(AliasMove.revision.desc())
        .limit(1)
    )


def rolls_back_to(session: Session, model: str, alias: str) -> int | None:
    """The version that a rollback would have an alias name; None if there is none.

    Raises:
        NotFound: there is no such model.
    """
    known = names.named(session, model)
    row = session.get(AliasRow, (known.id, alias))
    before = None if row is None or row.version_id is None else _earlier(session, row)
    return session.scalar(select(Version.number).where(Version.id == before, IS_KEPT))


def delete(session: Session, model: str, alias: str, by: By) -> str:
    """Delete an alias; its history stays. Return the model's name.

    Raises:
        NotFound, Conflict
    """
    known = names.named(session, model)
    row = _seen(session, known, alias, by)
    if row is None or row.version_id is None:
        raise versions.no_alias(session, known, alias)
    _move(session, known, alias, row, None, Action.DELETE, by)
    return known.name


def _seen(
    session: Session, model: Named, alias: str, by: By, *, lock: bool = True
) -> AliasRow | None:
    """The alias's row, which nobody else changes before this unit of work ends.

    Parameters:
        lock: False if it is only to be read.

    Raises:
        Conflict: its revision isn't the one the caller saw.
    """
    asked = select(AliasRow).where(AliasRow.model_id == model.id, AliasRow.name == alias)
    row = session.scalar(asked.with_for_update() if lock else asked)
    revision = row.revision if row and row.version_id is not None else 0
    if by.revision is not None and by.revision != revision:
        raise Conflict(
            f"{alias} of {model.name} is at revision {revision}, not {by.revision}: it was moved meanwhile",
            hint="read it again, and decide again",
        )
    return row


def _move(
    session: Session,
    model: Named,
    alias: str,
    row: AliasRow | None,
    version_id: int | None,
    action: Action,
    by: By,
    note: str | None = None,
    left_out: Sequence[Lack] = (),
) -> None:
    before_id = row.version_id if row else None
    if version_id is not None:
        versions.hold(session, model, version_id)
    if row is None:
        row = AliasRow(model_id=model.id, name=alias, revision=0)
        session.add(row)
    row.version_id, row.revision = version_id, row.revision + 1
    try:
        session.flush()
    except IntegrityError as err:  # somebody else's first promotion
        raise Conflict(
            f"{alias} of {model.name} was made meanwhile", hint="look at it again"
        ) from err
    session.add(
        AliasMove(
            model_id=row.model_id,
            name=alias,
            revision=row.revision,
            action=action,
            version_id=version_id,
            before_id=before_id,
            who=by.who[:400],
            note=note or None,
            left_out=[lack.model_dump() for lack in left_out],
            at=now(),
        )
    )
    session.flush()


def _number(session: Session, version_id: int | None) -> int | None:
    return session.scalar(select(Version.number).where(Version.id == version_id))
