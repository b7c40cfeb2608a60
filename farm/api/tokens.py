"""Join tokens: create, list, revoke; and what a machine gets that joins by one."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response

from farm import __version__
from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Cursor, Farm, Limit, Services, answer, problems
from farm.errors import JoinRefused
from farm.fleet import joining
from farm.schemas.tokens import (
    JoinRequest,
    JoinView,
    NewToken,
    SharedSettings,
    TokenPage,
    TokenRequest,
    TokenView,
)
from farm.trust import join_tokens
from farm.trust.callers import Caller

router = APIRouter(prefix="/v1", tags=["keys"])

TokenId = Annotated[str, Path(max_length=100, description="the token's id, which isn't secret")]


@router.post(
    "/tokens",
    status_code=201,
    summary="Create a join token",
    response_model=NewToken,
    openapi_extra=json_body(TokenRequest),
)
def create(body: Body, farm: Farm, by: By) -> Response:
    """Create a token by which machines join as workers. Only this response contains the token itself."""
    request = parsed(TokenRequest, body)
    with farm.db.write() as session:
        row, text = join_tokens.create(
            session, expires_in_s=request.expires_in_s, uses=request.uses, by=by
        )
        made = NewToken(token=text, **TokenView.model_validate(row).model_dump())
    headers = {"Location": f"/v1/tokens/{made.id}", "Cache-Control": "no-store"}
    return answer(made, status=201, headers=headers)


@router.get(
    "/tokens", summary="List join tokens", response_model=TokenPage, responses=problems(404)
)
def list_tokens(farm: Farm, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """Join tokens, newest first, including expired, used and revoked ones."""
    with farm.db.read() as session:
        items = [
            TokenView.model_validate(row)
            for row in join_tokens.page(session, before=cursor, limit=limit + 1)
        ]
    cursor = items[limit - 1].id if len(items) > limit else None
    return answer(TokenPage(items=items[:limit], cursor=cursor))


@router.get(
    "/tokens/{token_id}",
    summary="Show a join token",
    response_model=TokenView,
    responses=problems(404),
)
def show(token_id: TokenId, farm: Farm) -> Response:
    """A join token's metadata, without its secret."""
    with farm.db.read() as session:
        return answer(TokenView.model_validate(join_tokens.get(session, token_id)))


@router.delete(
    "/tokens/{token_id}",
    summary="Revoke a join token",
    response_model=TokenView,
    responses=problems(404),
)
def revoke(token_id: TokenId, farm: Farm, by: By) -> Response:
    """Revoke a join token. Machines that have joined by it stay: their keys end them. Idempotent."""
    with farm.db.write() as session:
        return answer(TokenView.model_validate(join_tokens.revoke(session, token_id, by=by)))


@router.post(
    "/join",
    status_code=201,
    summary="Join as a worker",
    response_model=JoinView,
    responses=problems(409),
    openapi_extra=json_body(JoinRequest),
)
async def join(request: Request, body: Body, farm: Farm, by: By) -> Response:
    """Spend a use of a join token: the answer has a worker's settings and a key of its own.

    It needs no key. Whoever sends ten wrong tokens must wait for a minute.
    """
    asked = parsed(JoinRequest, body)
    await farm.rates.require_guess(by.address)
    is_near = joining.is_loopback(request.url.hostname or "")
    try:
        made = await to_thread.run_sync(lambda: _joined(farm, asked, by, is_near=is_near))
    except JoinRefused:
        await farm.rates.guessed(by.address)
        raise
    farm.ring.forget()
    headers = {"Location": f"/v1/keys/{made.key_id}", "Cache-Control": "no-store"}
    return answer(made, status=201, headers=headers)


def _joined(farm: Services, asked: JoinRequest, by: Caller, *, is_near: bool) -> JoinView:
    settings = farm.settings
    with farm.db.write() as session:
        key, text = join_tokens.use(session, asked.token.strip(), name=asked.name, by=by)
        # Only now: what the farm has, and who works for it, is nobody's who has no token.
        joining.require_free(session, asked.name, asked.holder, ttl_s=settings.worker_ttl_s)
        found = joining.places(settings, is_near=is_near)
        return JoinView(
            version=__version__,
            key_id=key.id,
            key=text,
            broker_url=found.broker_url,
            database_url=found.database_url,
            store=found.store,
            settings=SharedSettings(**{name: getattr(settings, name) for name in joining.SHARED}),
        )
