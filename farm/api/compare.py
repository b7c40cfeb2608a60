"""Two versions of a model beside each other."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from farm.api.services import Farm, ModelName, answer, problems
from farm.registry import compare
from farm.schemas.compare import Compared
from farm.specs import references
from farm.specs.references import VersionOrAlias

router = APIRouter(prefix="/v1/models/{model}/compare", tags=["registry"])

Which = Annotated[VersionOrAlias, Query(description="a version's number, or an alias")]


@router.get(
    "", summary="Compare two versions", response_model=Compared, responses=problems(404, 409)
)
def compared(model: ModelName, a: Which, b: Which, farm: Farm) -> Response:
    """What a pull gets of each version, for each GPU that either serves: size, latency, and the task's metric
    where both were evaluated on the same data."""
    asked = references.parse(a), references.parse(b)
    with farm.db.read() as session:
        return answer(compare.compared(session, model, *asked))
