"""Inputs and outputs of versions: one that has others than the version before it needs a word.

The word is ``new_inputs``, of a submission or a promotion. What an ONNX file declares is compared when it is
submitted; of other sources the farm learns it when they are exported. Without the word such a version is
held back: no pull takes it by default and no alias names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import Session

from farm.database.tables import HELD_BACK, IS_KEPT, Build, BuildJob, Job, Version, Yank
from farm.errors import Conflict
from farm.registry.rows import IS_YANKED
from farm.reports.interfaces import Interface
from farm.specs.source import SourceFormat
from farm.specs.states import JobState
from farm.stages import JobKind

HINT = "if that is meant, say so: --new-inputs (new_inputs=true)"
_TELLING = (JobKind.EXPORT, JobKind.BUILD)
# Built once: every job that may tell an interface runs it.
_UNTOLD = (
    select(Version.id, Version.interface)
    .where(
        Version.id.in_(
            select(Build.version_id)
            .join(BuildJob, BuildJob.build_id == Build.id)
            .where(BuildJob.job_id == bindparam("job_id"))
        ),
        # What an ONNX file declares, its export knows better. Other sources' exports may depend on the
        # build's profiles: the first one counts.
        or_(Version.interface.is_(None), Version.source_format == bindparam("format")),
    )
    .order_by(Version.id)
)

_TOLD = (
    select(Job.facts)
    .join(BuildJob, BuildJob.job_id == Job.id)
    .where(
        BuildJob.build_id == bindparam("build_id"),
        Job.state == JobState.SUCCEEDED,
        Job.kind.in_(_TELLING),
    )
    .order_by(Job.kind.desc(), Job.id)  # an export tells more than a build
    .limit(1)
)

_HELD = select(Version.changes).where(Version.id == bindparam("version_id"), HELD_BACK)


def declared(session: Session, version_id: int, found: Interface | None) -> None:
    """Keep what a new version's source declares, less its fixed inputs."""
    version = session.get_one(Version, version_id)
    if found is not None:
        _keep(session, version, found.without((version.fixed_inputs or {}).keys()))


def accept(session: Session, version_id: int) -> None:
    """Let a version have other inputs and outputs than the one before."""
    session.get_one(Version, version_id).new_inputs = True
    session.flush()


def require_word(session: Session, version_id: int) -> None:
    """Refuse a version that is held back.

    Raises:
        Conflict: says what differs.
    """
    version = session.get_one(Version, version_id)
    if is_held(version):
        before = _before(session, version)
        raise Conflict(
            f"its inputs or outputs aren't those of version {before.number if before else 1}: "
            f"{told(version.changes)}",
            hint=HINT,
        )


def reused(session: Session, version_id: int, build_id: str) -> None:
    """Keep what a build's finished jobs tell of a version that nothing was known of.

    Raises:
        Conflict: as ``require_word``.
    """
    version = session.get_one(Version, version_id)
    if version.interface is not None:
        return
    facts = session.connection().scalar(_TOLD, {"build_id": build_id})
    found = Interface.read(facts or {})
    if found is not None:
        _keep(session, version, found)
        require_word(session, version_id)


def learn(session: Session, job_id: int, kind: str, facts: Mapping[str, Any]) -> None:
    """Keep what a finished job tells of the versions that it was for."""
    if kind not in _TELLING:
        return
    better = SourceFormat.ONNX if kind == JobKind.EXPORT else None
    versions = session.connection().execute(_UNTOLD, {"job_id": job_id, "format": better}).all()
    found = Interface.read(facts) if versions else None
    if found is None:
        return
    told = found.model_dump(mode="json")
    for version_id, known in versions:
        if known != told:
            _keep(session, session.get_one(Version, version_id), found)


def _keep(session: Session, version: Version, found: Interface) -> None:
    version.interface = found.model_dump(mode="json")
    version.changes = _changes(session, version)
    session.flush()
    # Later versions may have been compared with an earlier one, or with none.
    for later in session.scalars(
        select(Version)
        .where(
            Version.model_id == version.model_id,
            Version.number > version.number,
            Version.interface.is_not(None),
            IS_KEPT,
        )
        .order_by(Version.number)
    ):
        was_held = is_held(later)
        later.changes = _changes(session, later)
        session.flush()
        if not (was_held or is_held(later)):
            break  # those after it are compared with it, as before


def is_held(version: Version) -> bool:
    """As ``HELD_BACK``."""
    return version.changes is not None and not version.new_inputs


def held_back(session: Session, version_id: int) -> list[str]:
    """How a version differs from the one before, if it is held back for that."""
    found = session.execute(_HELD, {"version_id": version_id}).scalar_one_or_none()
    return list(found or ())


def of(version: Version) -> Interface | None:
    return None if version.interface is None else Interface.read(version.interface)


def _changes(session: Session, version: Version) -> list[str] | None:
    """How a version differs from the newest before it that may be pulled and is known."""
    mine, before = of(version), _before(session, version)
    known = None if before is None else of(before)
    if mine is None or known is None:
        return None
    return mine.changes(known) or None


def _before(session: Session, version: Version) -> Version | None:
    return session.scalar(
        select(Version)
        .where(
            Version.model_id == version.model_id,
            Version.number < version.number,
            Version.interface.is_not(None),
            IS_KEPT,
            ~HELD_BACK,
            ~select(Yank.same).where(IS_YANKED).exists(),
        )
        .order_by(Version.number.desc())
        .limit(1)
    )


def told(changes: Sequence[str] | None) -> str:
    return "; ".join(changes or ())


def promoted(
    session: Session, version_id: int, before_id: int | None, *, word: bool
) -> tuple[list[str], bool]:
    """How a version differs from the one whose place it takes, and whether somebody said that it may.

    A word given with its submission counts for the differences that it was given for.
    """
    version = session.get_one(Version, version_id)
    if is_held(version):
        return list(version.changes or ()), word
    mine = of(version)
    known = None if before_id is None else of(session.get_one(Version, before_id))
    if mine is None or known is None:
        return [], True
    changes = mine.changes(known)
    return changes, word or not changes or changes == version.changes
