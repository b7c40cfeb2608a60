"""Search: the same words as ``farm search``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from farm.api.services import By, Farm
from farm.api.web.render import page
from farm.registry import search, terms
from farm.schemas.search import Hit
from farm.schemas.search import Query as Words

router = APIRouter(include_in_schema=False)

_PAGE = 50


@router.get("/search")
def find(
    request: Request,
    farm: Farm,
    by: By,
    q: Annotated[Words, Query()] = "",
    cursor: Annotated[str | None, Query(max_length=120)] = None,
) -> Response:
    hits: Sequence[Hit] = ()
    more = None
    if q.strip():
        asked = terms.parsed(q, labels=(), since=None, until=None, kinds=())
        with farm.db.read() as session:
            hits, more = search.search(session, asked, after=cursor, limit=_PAGE)
    return page(request, by, "search.html", q=q, hits=hits, cursor=more)
