"""Stores large job parameters once, however many recipes refer to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import SharedParameter
from farm.planning.recipe import Recipe, named


def keep(session: Session, shared: Mapping[str, Any]) -> None:
    """Store the parameters that a plan's recipes refer to."""
    if not shared:
        return
    there = select(SharedParameter.digest).where(SharedParameter.digest.in_(shared))
    missing = shared.keys() - set(session.scalars(there))
    session.add_all(SharedParameter(digest=digest, value=shared[digest]) for digest in missing)
    session.flush()


def whole(session: Session, recipe: Recipe) -> dict[str, Any]:
    """All parameters of a recipe, with references resolved."""
    return {name: _value(session, value) for name, value in recipe.params.items()}


def _value(session: Session, value: Any) -> Any:
    digest = named(value)
    return value if digest is None else session.get_one(SharedParameter, digest).value
