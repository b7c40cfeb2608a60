"""Models: a list of them, and one with its versions, engines and aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator, Field, StringConstraints
from sqlalchemy.orm import Session
from starlette.responses import Response

from farm.api.services import By, Cursor, Farm, ModelName, Services
from farm.api.web.paging import LOOKED_FOR, cut
from farm.api.web.render import page
from farm.builds import views
from farm.builds.listed import listed
from farm.errors import Conflict
from farm.registry import aliases, compare, overview, versions
from farm.registry.grid import grid
from farm.registry.names import Named, named
from farm.schemas.aliases import AliasView, PromoteRequest
from farm.schemas.models import ModelDetail
from farm.specs import texts
from farm.specs.references import AliasName, Reference
from farm.trust.callers import Caller, allows

router = APIRouter(include_in_schema=False)

_BUILDS, _MOVES, _ALIASES, _VERSIONS = 5, 20, 20, 20


def _given(value: Any) -> Any:
    """An empty field of a form isn't given."""
    return value or None


Text = Annotated[
    Annotated[str, StringConstraints(max_length=300, pattern=f"^{texts.LINE}*$")] | None,
    BeforeValidator(_given),
    Query(),
]
Version = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1)] | None, BeforeValidator(_given), Query()
]
Alias = Annotated[AliasName | None, BeforeValidator(_given), Query()]


@router.get("/models")
def models(
    request: Request,
    farm: Farm,
    by: By,
    name: Text = None,
    label: Text = None,
    cursor: Cursor = None,
) -> Response:
    with farm.db.read() as session:
        found = listed(
            session, name=name, label=[label] if label else [], after=cursor, limit=LOOKED_FOR
        )
    shown, more = cut(found, lambda one: one.name)
    return page(
        request,
        by,
        "models.html",
        models=shown,
        more=more,
        name=name or "",
        label=label or "",
        is_first=cursor is None,
    )


@router.get("/models/{model}")
def model(
    request: Request,
    farm: Farm,
    by: By,
    model: ModelName,
    version: Version = None,
    beside: Version = None,
    promote: Alias = None,
    history: Alias = None,
) -> Response:
    """A model with one of its versions.

    Parameters:
        version: by default the newest.
        beside: another version, to compare it with.
        promote: an alias, to be told what it would be to give it to the version.
        history: an alias, to be told its moves.
    """
    with farm.db.read() as session:
        found = overview.overview(session, model, also=version)
        known = named(session, found.name)
        number = versions.given_or_newest(session, known, version)[1]
        values = {
            "fleet": farm.fleet(session),
            "grid": grid(session, known, number),
            "builds": views.builds(session, model=known.name, limit=_BUILDS),
            "compared": _beside(session, known, beside, number),
            "back": _back(session, known, found.aliases),
            "promotion": promote and _promotion(session, farm, by, known, promote, number),
            "moves": aliases.history(session, known.name, history, limit=_MOVES) if history else (),
        }
    return page(
        request,
        by,
        "model.html",
        model=found,
        shown=next(one for one in found.versions if one.version == number),
        names=_names(found),
        older=max(len(found.versions) - _VERSIONS, 0),
        listed=list(reversed(found.versions))[:_VERSIONS],
        beside=beside,
        history=history,
        movable={
            one.alias for one in found.aliases if allows(by.scopes, farm.scope_to_move(one.alias))
        },
        base=str(request.base_url).rstrip("/"),
        **values,
    )


def _names(found: ModelDetail) -> Mapping[int, Sequence[str]]:
    """The aliases of each version."""
    return {
        one.version: [each.alias for each in found.aliases if each.version == one.version]
        for one in found.versions
    }


def _beside(session: Session, known: Named, other: int | None, number: int) -> Any:
    if other is None or other == number:
        return None
    return compare.compared(
        session, known.name, Reference(version=other), Reference(version=number)
    )


def _back(session: Session, known: Named, found: Sequence[AliasView]) -> Mapping[str, int | None]:
    """Where each alias would be rolled back to."""
    return {
        one.alias: aliases.rolls_back_to(session, known.name, one.alias) for one in found[:_ALIASES]
    }


def _promotion(
    session: Session, farm: Services, by: Caller, known: Named, alias: str, number: int
) -> dict[str, Any]:
    """What giving an alias to a version would do, or why it can't be."""
    now = [one for one in aliases.all_of(session, known.name) if one.alias == alias]
    told: dict[str, Any] = {
        "alias": alias,
        "may": allows(by.scopes, farm.scope_to_move(alias)),
        "scope": farm.scope_to_move(alias),
        "match": f'"{now[0].revision}"' if now else '"0"',
        "is_there": bool(now) and now[0].version == number,
    }
    request = PromoteRequest(version=number)
    try:
        would = aliases.promote(
            session, known.name, alias, request, aliases.By(who=by.signature), dry_run=True
        )
    except Conflict as err:
        return told | {"refused": err, "would": None}
    return told | {"refused": None, "would": would}
