"""The goal by which a version's engines for a GPU are ranked."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.tables import GoalRow, Version
from farm.specs.goals import Aim, Goal


def keep(session: Session, version_id: int, gpu: str, goal: Goal) -> None:
    """Keep a version's goal for a GPU, instead of an earlier one.

    Parameters:
        gpu: a canonical tag.
    """
    row = {"version_id": version_id, "gpu": gpu, "aim": goal.aim, "batch": goal.batch}
    upserts.put(session, GoalRow, row)


def kept(session: Session, model_id: int, version: int, gpu: str) -> Goal | None:
    """The goal kept for exactly this tag; None if there is none."""
    row = session.scalar(
        select(GoalRow)
        .join(Version, Version.id == GoalRow.version_id)
        .where(Version.model_id == model_id, Version.number == version, GoalRow.gpu == gpu)
    )
    return None if row is None else Goal(aim=Aim(row.aim), batch=row.batch)


def of_version(session: Session, version_id: int) -> dict[str, Goal]:
    """The goals kept for a version, by GPU tag."""
    rows = session.scalars(select(GoalRow).where(GoalRow.version_id == version_id))
    return {row.gpu: Goal(aim=Aim(row.aim), batch=row.batch) for row in rows}
