"""Parameters of jobs: the large ones are kept once, however many recipes name them (`farm.planning.plan`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import SharedParameter
from farm.planning.plan import SHARED


def keep(session: Session, shared: Mapping[str, Any]) -> None:
    """Keep what a plan's recipes name."""
    if not shared:
        return
    there = select(SharedParameter.digest).where(SharedParameter.digest.in_(shared))
    missing = shared.keys() - set(session.scalars(there))
    session.add_all(SharedParameter(digest=digest, value=shared[digest]) for digest in missing)
    session.flush()


def whole(session: Session, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with all its parameters in it."""
    params = {name: _value(session, value) for name, value in recipe["params"].items()}
    return {**recipe, "params": params}


def _value(session: Session, value: Any) -> Any:
    digest = named(value)
    return value if digest is None else session.get_one(SharedParameter, digest).value


def named(value: Any) -> str | None:
    """The digest of a parameter that a recipe only names."""
    if isinstance(value, dict) and value.keys() == {SHARED}:
        return str(value[SHARED])
    return None
