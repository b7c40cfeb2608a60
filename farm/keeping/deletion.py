"""Deletes engines, versions, models, and what was made between a source and its engines.

What stays is history: builds, their jobs and the audit. A version's number is never given again. A job whose
outputs go becomes a failed one, as if they had been damaged, so that the next submission which needs them
runs it again. Files go only if nothing else names them (`farm.database.references`).

Every deletion locks its versions first, which submissions, retries and promotions share, then jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from farm.database.tables import IS_KEPT, AliasRow, Build, BuildJob, EngineRow, Version
from farm.errors import Conflict, NotFound
from farm.keeping import going, report
from farm.keeping.going import Going
from farm.registry import catalog, holders, names, versions
from farm.registry.rows import SAME, identity
from farm.schemas.deletion import Deletion
from farm.specs.states import BUILD_ENDED

_MOST_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """A deletion that this unit of work makes."""

    report: Deletion
    digests: Sequence[str]  #: of files that nothing refers to any more


def engine(session: Session, engine_id: str, *, dry_run: bool = False) -> Deleted:
    """Delete an engine, with all its judgements.

    Raises:
        NotFound
        Conflict: an alias names its version, or a running build wants it.
    """
    version_id = catalog.engine_row(session, engine_id).version_id
    return engines(session, engine_id, version_id, [engine_id], dry_run=dry_run)


def engines(
    session: Session, what: str, version_id: int, ids: Sequence[str], *, dry_run: bool = False
) -> Deleted:
    """Delete engines of a version, with all their judgements.

    Raises:
        NotFound, Conflict: as for one.
    """
    _lock(session, [version_id])
    session.expire_all()
    same = {identity(catalog.engine_row(session, one)) for one in ids}
    rows = session.scalars(
        select(EngineRow)
        .where(EngineRow.version_id == version_id, SAME.in_(same))
        .order_by(EngineRow.id)
        .with_for_update()
    ).all()
    jobs = {job for row in rows for job in (row.build_job_id, row.measure_job_id)}
    return _delete(
        session,
        Going(what=what, versions=[version_id], engines=rows, jobs=jobs),
        [
            *_aliases(session, [version_id]),
            *_running(session, [version_id], Build.id.in_(_building(jobs))),
        ],
        dry_run=dry_run,
    )


def version(session: Session, model: str, number: int, *, dry_run: bool = False) -> Deleted:
    """Delete a version, with its engines and everything made for them alone.

    Raises:
        NotFound, NameAmbiguous
        Conflict: an alias names it, or a build of it is running.
    """
    known = names.named(session, model)
    version_id = versions.version_id(session, known, number)
    return _whole(session, f"{known.name}@{number}", [version_id], dry_run=dry_run)


def model(session: Session, name: str, *, dry_run: bool = False) -> Deleted:
    """Delete all versions of a model. Its name is free for the next one, whose numbers go on from here.

    Raises:
        NotFound, NameAmbiguous
        Conflict: an alias names one of its versions, or a build is running.
    """
    known = names.named(session, name)
    versions.given_or_newest(session, known, None)
    return _whole(session, known.name, _of_model(session, known.id), dry_run=dry_run)


def intermediates(
    session: Session, model: str, number: int | None = None, *, dry_run: bool = False
) -> Deleted:
    """Delete what was made between a version's source and its engines: typed ONNX and the like.

    Parameters:
        number: by default all versions of the model.

    Raises:
        NotFound, NameAmbiguous
        Conflict: a build is running.
    """
    known = names.named(session, model)
    if number is None:
        versions.given_or_newest(session, known, None)
        ids, what = _of_model(session, known.id), known.name
    else:
        ids, what = [versions.version_id(session, known, number)], f"{known.name}@{number}"
    _lock(session, ids)
    found = going.intermediates(session, ids)
    what = f"intermediates of {what}"
    return _delete(
        session,
        Going(what=what, versions=ids, jobs=found, outputs_only=True),
        list(_running(session, ids)),
        dry_run=dry_run,
    )


def _whole(session: Session, what: str, ids: Sequence[int], *, dry_run: bool) -> Deleted:
    _lock(session, ids)
    rows = session.scalars(
        select(EngineRow)
        .where(EngineRow.version_id.in_(ids))
        .order_by(EngineRow.id)
        .with_for_update()
    ).all()
    return _delete(
        session,
        Going(
            what=what,
            versions=ids,
            engines=rows,
            jobs=going.everything(session, ids),
            whole=True,
        ),
        [*_aliases(session, ids), *_running(session, ids)],
        dry_run=dry_run,
    )


def _delete(session: Session, found: Going, refused: Sequence[str], *, dry_run: bool) -> Deleted:
    if refused and not dry_run:
        raise Conflict(
            f"{found.what} can't be deleted: {'; '.join(refused)}",
            hint="farm aliases moves and deletes aliases, farm cancel stops builds; "
            "--dry-run (dry_run=true) shows all that would go",
        )
    taken = going.take(session, found)
    made = report.of(session, found, taken, refused=refused, dry_run=dry_run)
    gone = [digest for digest in taken.digests if digest not in made.held]
    if dry_run:
        session.rollback()
    return Deleted(report=made.deletion, digests=gone)


def _of_model(session: Session, model_id: int) -> list[int]:
    found = select(Version.id).where(Version.model_id == model_id, IS_KEPT).order_by(Version.id)
    return list(session.scalars(found))


def _lock(session: Session, ids: Sequence[int]) -> None:
    """Lock versions, in order, from everything that would use them.

    Raises:
        NotFound: one has been deleted meanwhile.
    """
    statement = select(Version.id).where(Version.id.in_(ids), IS_KEPT).order_by(Version.id)
    if len(session.scalars(statement.with_for_update()).all()) < len(ids):
        raise NotFound("it has been deleted meanwhile", hint="farm models lists what there is")


def _aliases(session: Session, ids: Sequence[int]) -> Sequence[str]:
    rows = session.execute(
        select(AliasRow.name, AliasRow.version_id)
        .where(AliasRow.version_id.in_(ids))
        .order_by(AliasRow.name)
    )
    return [
        f"{alias} names {holders.version(session, version_id)}: move it first, or delete it"
        for alias, version_id in rows
        if version_id is not None
    ]


def _building(jobs: set[int]) -> Select[str]:
    return select(BuildJob.build_id).where(BuildJob.job_id.in_(jobs))


def _running(session: Session, ids: Sequence[int], *which: ColumnElement[bool]) -> Sequence[str]:
    """Why builds that run stand in the way."""
    found = session.scalars(
        select(Build.id)
        .where(Build.version_id.in_(ids), Build.state.not_in(BUILD_ENDED), *which)
        .order_by(Build.id)
        .limit(_MOST_TOLD)
    )
    return [f"build {build} is running: wait for it, or cancel it" for build in found]
