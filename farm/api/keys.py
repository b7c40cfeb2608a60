"""Keys: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Response

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.me import limits_of
from farm.api.services import Body, By, Cursor, Farm, Limit, answer, problems
from farm.schemas.keys import KeyLimits, KeyPage, KeyRequest, KeyView, NewKey
from farm.specs.limits import Limits
from farm.trust import keys

router = APIRouter(prefix="/v1/keys", tags=["keys"])

KeyId = Annotated[str, Path(max_length=100, description="the key's id, which isn't secret")]


@router.post(
    "",
    status_code=201,
    summary="Create a key",
    response_model=NewKey,
    openapi_extra=json_body(KeyRequest),
)
def create(body: Body, farm: Farm, by: By) -> Response:
    """Create a key with these scopes. Only this response contains the key itself."""
    request = parsed(KeyRequest, body)
    with farm.db.write() as session:
        row, text = keys.create(
            session,
            name=request.name,
            scopes=request.scopes,
            expires_in_s=request.expires_in_s,
            limits=request.limits,
            by=by,
        )
        made = NewKey(key=text, **KeyView.model_validate(row).model_dump())
    farm.ring.forget()
    headers = {"Location": f"/v1/keys/{made.id}", "Cache-Control": "no-store"}
    return answer(made, status=201, headers=headers)


@router.get("", summary="List keys", response_model=KeyPage, responses=problems(404))
def list_keys(farm: Farm, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """Keys, newest first, including expired and revoked ones."""
    with farm.db.read() as session:
        items = [
            KeyView.model_validate(row)
            for row in keys.page(session, before=cursor, limit=limit + 1)
        ]
    more = len(items) > limit
    cursor = items[limit - 1].id if more else None
    return answer(KeyPage(items=items[:limit], cursor=cursor))


@router.get("/{key_id}", summary="Show a key", response_model=KeyView, responses=problems(404))
def show(key_id: KeyId, farm: Farm) -> Response:
    """A key's metadata, without its secret."""
    with farm.db.read() as session:
        return answer(KeyView.model_validate(keys.get(session, key_id)))


@router.get(
    "/{key_id}/limits",
    summary="Show a key's limits",
    response_model=KeyLimits,
    responses=problems(404),
)
async def show_limits(key_id: KeyId, farm: Farm) -> Response:
    """What a key may use, and what it uses now."""
    return answer(await limits_of(farm, key_id))


@router.patch(
    "/{key_id}/limits",
    summary="Change a key's limits",
    response_model=KeyLimits,
    responses=problems(404),
    openapi_extra=json_body(Limits),
)
async def change_limits(key_id: KeyId, body: Body, farm: Farm, by: By) -> Response:
    """Change the limits that are given; null lets the farm's default hold again.

    Takes effect everywhere within a second. What has begun goes on.
    """
    changes = parsed(Limits, body)

    def changed() -> None:
        with farm.db.write() as session:
            keys.limit(session, key_id, changes, by=by)
        farm.ring.forget()

    await to_thread.run_sync(changed)
    return answer(await limits_of(farm, key_id))


@router.delete(
    "/{key_id}", summary="Revoke a key", response_model=KeyView, responses=problems(404, 409)
)
def revoke(key_id: KeyId, farm: Farm, by: By) -> Response:
    """Revoke a key. Takes effect everywhere within a second. Idempotent."""
    with farm.db.write() as session:
        view = KeyView.model_validate(keys.revoke(session, key_id, by=by))
    farm.ring.forget()
    return answer(view)
