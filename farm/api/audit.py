"""Reading the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field, StringConstraints

from farm.api.services import Farm, Limit, answer
from farm.schemas.keys import AuditEntry, AuditPage
from farm.trust import audit

router = APIRouter(prefix="/v1/audit", tags=["keys"])

Text = Annotated[str, StringConstraints(max_length=100)]


@router.get("", summary="List changes", response_model=AuditPage)
def entries(
    farm: Farm,
    key: Annotated[
        Text | None, Query(description="only changes made with the key of this id")
    ] = None,
    action: Annotated[Text | None, Query(examples=["submit"])] = None,
    limit: Limit = 50,
    cursor: Annotated[
        Annotated[int, Field(ge=1, le=2**63 - 1)] | None,
        Query(description="`cursor` from the previous page"),
    ] = None,
) -> Response:
    """Every change, newest first: who, what, from where and when."""
    with farm.db.read() as session:
        rows = audit.page(session, key=key, action=action, before=cursor, limit=limit + 1)
        items = [AuditEntry.model_validate(row) for row in rows]
    more = len(items) > limit
    return answer(AuditPage(items=items[:limit], cursor=str(items[limit - 1].id) if more else None))
