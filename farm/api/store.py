"""The artifact store: which it is, and whether it works."""

from __future__ import annotations

from fastapi import APIRouter, Response

from farm.api.services import Farm, answer, problems
from farm.errors import FarmError
from farm.schemas.storage import StoreProblem, StoreView

router = APIRouter(prefix="/v1/store", tags=["blobs"])


@router.get("", summary="Show the store", response_model=StoreView, responses=problems(503))
def show(farm: Farm) -> Response:
    """Which store it is, and whether it can be read and written now."""
    identity = free = problem = None
    try:
        identity = farm.store.identity()
        farm.store.try_to_write()
        free = farm.store.free_bytes()
    except FarmError as err:
        problem = StoreProblem(code=err.code, detail=err.detail, hint=err.hint)
    return answer(
        StoreView(id=identity, address=farm.store.address, problem=problem, free_bytes=free)
    )
