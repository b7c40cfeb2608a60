"""Aliases: which version of a model the fleet is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, Limit, ModelName, Services, answer, problems
from farm.errors import Conflict, ScopeMissing
from farm.registry import aliases, names, signed_aliases
from farm.schemas.aliases import (
    AliasList,
    AliasView,
    MovePage,
    PromoteRequest,
    Promotion,
    RollbackRequest,
)
from farm.specs.references import AliasName
from farm.specs.scopes import Scope
from farm.trust import audit
from farm.trust.callers import Caller, allows

T = TypeVar("T")

router = APIRouter(prefix="/v1/models/{model}/aliases", tags=["aliases"])

Alias = Annotated[AliasName, Path()]
IfMatch = Annotated[
    Annotated[str, StringConstraints(pattern=r'^("?\d{1,9}"?|\*)$')] | None,
    Header(
        description='the `ETag` of the alias as you saw it, or `"0"` for none: 409 if it was moved since'
    ),
]


@router.get("", summary="List aliases", response_model=AliasList, responses=problems(404, 409))
def list_aliases(model: ModelName, farm: Farm) -> Response:
    """A model's aliases by name."""
    with farm.db.read() as session:
        return answer(AliasList(items=aliases.all_of(session, model)))


@router.get(
    "/{alias}", summary="Show an alias", response_model=AliasView, responses=problems(404, 409)
)
def show(model: ModelName, alias: Alias, farm: Farm) -> Response:
    """The version that an alias names. `ETag` is its revision."""
    with farm.db.read() as session:
        return _with_etag(aliases.one(session, model, alias))


@router.put(
    "/{alias}",
    summary="Promote a version",
    response_model=Promotion,
    responses=problems(404, 409),
    openapi_extra=json_body(PromoteRequest),
)
def promote(
    model: ModelName,
    alias: Alias,
    body: Body,
    farm: Farm,
    by: By,
    if_match: IfMatch = None,
    dry_run: Annotated[bool, Query(description="only say what would be left out")] = False,
) -> Response:
    """Make an alias name this version, for all GPUs at once.

    409 names each GPU that the version before served and for which this one has no engine that passed its
    gates, or one that is slower than `max_slowdown` or loses more than `max_drop` of the task's metric on the
    same evaluation data. What can't be compared doesn't stop it; `engines` says why. Nothing moves if the
    alias names this version already.
    """
    request = parsed(PromoteRequest, body)
    _check(farm, alias, by)

    def move(session: Session) -> Promotion:
        made = aliases.promote(session, model, alias, request, _by(by, if_match), dry_run=dry_run)
        if made.alias is not None and made.before != made.version:
            subject = f"{made.alias.model}@{alias}"
            audit.record(session, by, "promote", subject, version=request.version)
        return made

    if dry_run:
        with farm.db.read() as session:
            return answer(move(session))
    return answer(_signed(farm, model, alias, move))


@router.post(
    "/{alias}/rollback",
    summary="Roll an alias back",
    response_model=AliasView,
    responses=problems(404, 409),
    openapi_extra=json_body(RollbackRequest),
)
def rollback(
    model: ModelName, alias: Alias, body: Body, farm: Farm, by: By, if_match: IfMatch = None
) -> Response:
    """Have an alias name the version it named before its present one was promoted. Nothing is checked."""
    request = parsed(RollbackRequest, body)
    _check(farm, alias, by)

    def move(session: Session) -> AliasView:
        view = aliases.rollback(session, model, alias, _by(by, if_match), note=request.note)
        audit.record(session, by, "rollback", f"{view.model}@{alias}", version=view.version)
        return view

    return _with_etag(_signed(farm, model, alias, move))


@router.delete("/{alias}", status_code=204, summary="Delete an alias", responses=problems(404, 409))
def delete(
    model: ModelName, alias: Alias, farm: Farm, by: By, if_match: IfMatch = None
) -> Response:
    """Delete an alias. Its history stays, and pulls take the default version again."""
    _check(farm, alias, by)

    def move(session: Session) -> None:
        name = aliases.delete(session, model, alias, _by(by, if_match))
        audit.record(session, by, "unalias", f"{name}@{alias}")

    _signed(farm, model, alias, move)
    return Response(status_code=204)


@router.get(
    "/{alias}/history",
    summary="Show an alias's history",
    response_model=MovePage,
    responses=problems(404, 409),
)
def history(
    model: ModelName,
    alias: Alias,
    farm: Farm,
    limit: Limit = 50,
    cursor: Annotated[
        Annotated[int, Field(ge=1, le=2**31 - 1)] | None,
        Query(description="`cursor` from the previous page"),
    ] = None,
) -> Response:
    """An alias's moves, newest first: who, when, why, and what was left out."""
    with farm.db.read() as session:
        items = aliases.history(session, model, alias, before=cursor, limit=limit + 1)
    more = str(items[limit - 1].revision) if len(items) > limit else None
    return answer(MovePage(items=items[:limit], cursor=more))


def _with_etag(view: AliasView) -> Response:
    return answer(view, headers={"ETag": f'"{view.revision}"'})


def _signed(farm: Services, model: str, alias: str, move: Callable[[Session], T]) -> T:
    """Make a move, which is signed first if the farm has a key.

    What the database says isn't signed later: whoever controls it could have anything signed.

    Raises:
        SigningFailed: nothing was moved.
        Conflict: it was moved by somebody else meanwhile.
    """
    signer = farm.signatory.signer()
    with farm.db.write() as session:
        made = move(session)
        known = names.named(session, model)
        moved = signed_aliases.moved(session, known, alias)
        if signer is None or moved is None or signed_aliases.is_signed(session, known, moved):
            return made
        session.rollback()
    # Not in a transaction: a key service takes its time.
    bundle = farm.signatory.sealed_move(moved, signer)
    with farm.db.write() as session:
        made = move(session)
        if signed_aliases.moved(session, known, alias) != moved:
            raise Conflict(f"{alias} of {known.name} was moved meanwhile", hint="look at it again")
        signed_aliases.keep(session, known, moved, signer.key, bundle)
    return made


def _check(farm: Services, alias: str, by: Caller) -> None:
    """Refuse to move a protected alias without the scope for it.

    Raises:
        ScopeMissing
    """
    if not allows(by.scopes, farm.scope_to_move(alias)):
        err = ScopeMissing(f"{alias} is a protected alias: moving it requires the scope admin")
        err.scope = Scope.ADMIN
        raise err


def _by(by: Caller, if_match: str | None) -> aliases.By:
    """Who asks, and the revision that they saw."""
    revision = None if if_match in (None, "*") else int(if_match.strip('"'))
    return aliases.By(who=by.signature, revision=revision)
