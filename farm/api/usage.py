"""What takes the store's disk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import StringConstraints

from farm.api.services import Farm, Services, answer, problems
from farm.daemon import gc
from farm.keeping import usage
from farm.schemas.storage import GcRequest
from farm.schemas.usage import Usage

router = APIRouter(prefix="/v1/usage", tags=["fleet"])


@router.get(
    "",
    summary="Show what takes disk space",
    response_model=Usage,
    responses=problems(404, 409),
)
def show_usage(
    farm: Farm,
    model: Annotated[
        Annotated[str, StringConstraints(max_length=100)] | None,
        Query(description="list this model alone"),
    ] = None,
) -> Response:
    """The store's files by kind and by model, each counted once, and what gc would free now."""
    return answer(measured(farm, model))


def measured(farm: Services, model: str | None = None) -> Usage:
    """What takes the store's disk now.

    Raises:
        Busy: a garbage collection is running.
        NotFound, NameAmbiguous: of the model.
    """
    with farm.one_of(farm.collecting, "a garbage collection is running"):
        grace_s = GcRequest.model_validate({}).older_than_s
        collected = gc.collect(farm.db, farm.store, older_than_s=grace_s, dry_run=True)
        with farm.db.read() as session:
            most = farm.settings.max_unused_bytes
            return usage.usage(session, farm.store, collected, model, most_unused=most)
