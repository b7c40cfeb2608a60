"""Keys: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Cursor, Farm, Limit, answer, problems
from farm.schemas.keys import KeyPage, KeyRequest, KeyView, NewKey
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


@router.delete(
    "/{key_id}", summary="Revoke a key", response_model=KeyView, responses=problems(404, 409)
)
def revoke(key_id: KeyId, farm: Farm, by: By) -> Response:
    """Revoke a key. Takes effect everywhere within a second. Idempotent."""
    with farm.db.write() as session:
        view = KeyView.model_validate(keys.revoke(session, key_id, by=by))
    farm.ring.forget()
    return answer(view)
