"""Search: what in the farm has this name, label, note, digest or id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from fastapi import Query as InQuery
from pydantic import Field, StringConstraints

from farm.api.services import Farm, LabelFilters, Limit, answer
from farm.registry import search, terms
from farm.schemas.search import Kind, Moment, Query, SearchPage

router = APIRouter(prefix="/v1/search", tags=["registry"])

Kinds = Annotated[
    Annotated[tuple[Kind, ...], Field(max_length=len(Kind))],
    InQuery(description="only these; repeatable"),
]


@router.get("", summary="Search", response_model=SearchPage)
def find(
    farm: Farm,
    q: Annotated[
        Query,
        InQuery(
            description="words, all of which must match: part of a name or a note in any case, the beginning "
            "of a file's digest (8 digits or more) or of a build's or an engine's id; a label, "
            "`team=vision`; `since=2026-11-01`, `until=2026-11-30`"
        ),
    ] = "",
    kind: Kinds = (),
    label: LabelFilters = (),
    since: Annotated[Moment | None, InQuery(description="a day or a time, in UTC")] = None,
    until: Annotated[Moment | None, InQuery(description="a day, which counts, or a time")] = None,
    limit: Limit = 50,
    cursor: Annotated[
        Annotated[str, StringConstraints(max_length=120)] | None,
        InQuery(description="`cursor` from the previous page"),
    ] = None,
) -> Response:
    """Models, versions, engines and builds, in this order.

    The model with exactly that name comes first, then those whose names begin so; of the other kinds the
    newest. A file's digest finds the version whose source it is, engines, and builds that were given it.
    """
    asked = terms.parsed(q, labels=label, since=since, until=until, kinds=kind)
    with farm.db.read() as session:
        items, more = search.search(session, asked, after=cursor, limit=limit)
    return answer(SearchPage(items=items, cursor=more))
