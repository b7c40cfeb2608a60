"""For administrators: the audit and the keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from farm.api.me import shown_limits
from farm.api.services import By, Cursor, Farm
from farm.api.web.paging import LOOKED_FOR, cut
from farm.api.web.render import page
from farm.database.base import now
from farm.schemas.keys import AuditEntry, KeyView
from farm.specs.limits import LEAST_TOLD, Quota, number
from farm.trust import audit, keys

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Query(max_length=100)]
KeyId = Annotated[str, Path(max_length=100)]


@router.get("/audit")
def changes(
    request: Request,
    farm: Farm,
    by: By,
    key: Text = "",
    action: Text = "",
    cursor: Annotated[Annotated[int, Field(ge=1, le=2**63 - 1)] | None, Query()] = None,
) -> Response:
    with farm.db.read() as session:
        rows = audit.page(
            session, key=key or None, action=action or None, before=cursor, limit=LOOKED_FOR
        )
        entries, older = cut([AuditEntry.model_validate(row) for row in rows], lambda one: one.id)
    return page(
        request,
        by,
        "audit.html",
        entries=entries,
        older=older,
        key=key,
        action=action,
    )


@router.get("/keys")
def all_keys(request: Request, farm: Farm, by: By, cursor: Cursor = None) -> Response:
    with farm.db.read() as session:
        rows = keys.page(session, before=cursor, limit=LOOKED_FOR)
        found, older = cut([KeyView.model_validate(row) for row in rows], lambda one: one.id)
    states = [(one, _state(one)) for one in found]
    return page(request, by, "keys.html", keys=states, older=older)


@router.get("/keys/{key_id}")
async def one_key(request: Request, farm: Farm, by: By, key_id: KeyId) -> Response:
    """A key's limits, and what it uses."""
    row, found = await shown_limits(farm, key_id)
    view = KeyView.model_validate(row)
    return page(
        request,
        by,
        "key.html",
        key=view,
        state=_state(view),
        limits=found.limits,
        own=found.own.model_dump(),
        unset=dict.fromkeys(Quota),
        number=number,
        least_told=LEAST_TOLD,
    )


def _state(key: KeyView) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    return f"until {key.expires_at:%Y-%m-%d}" if key.expires_at > now() else "expired"
