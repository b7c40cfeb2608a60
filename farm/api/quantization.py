"""How engines were quantised: what calibration told, its histograms, and pictures of both."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field, ValidationError

from farm.api.services import EngineId, Farm, Services, answer, problems
from farm.errors import BlobDamaged, NotFound, StorageUnavailable
from farm.pictures import sheet
from farm.registry import quantised
from farm.reports.histograms import MAX_BYTES, Histograms
from farm.reports.quantization import Quantization

router = APIRouter(prefix="/v1/engines/{engine_id}/quantization", tags=["registry"])

_MEDIA_TYPE = "image/svg+xml"
_UNREADABLE = "unknown: no stage of the farm writes what is stored"


@router.get(
    "",
    summary="Show an engine's calibration",
    response_model=Quantization,
    responses=problems(404),
)
def calibration(engine_id: EngineId, farm: Farm) -> Response:
    """What calibration made of the engine's graph: signal-to-noise by layer, histograms and ranges, what a
    search for an accuracy tried, and what stayed in floats. What isn't known has a reason."""
    return answer(known(farm, engine_id))


@router.get(
    "/picture.svg",
    summary="Draw an engine's calibration",
    response_class=Response,
    responses={200: {"content": {_MEDIA_TYPE: {}}}, **problems(404)},
)
def picture(
    engine_id: EngineId,
    farm: Farm,
    tensor: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Query(description="only the histogram of this tensor, with its ranges"),
    ] = None,
) -> Response:
    """An SVG of it: signal to noise by layer, the noisiest tensors' histograms with their ranges, and
    accuracy against time of what a search tried."""
    found = known(farm, engine_id)
    made = sheet.of(found) if tensor is None else sheet.of_tensor(found, tensor)
    return Response(made, media_type=_MEDIA_TYPE)


def known(farm: Services, engine_id: str) -> Quantization:
    """All that is known of how an engine was quantised.

    Raises:
        NotFound: there is no such engine, or it isn't quantised.
    """
    with farm.db.read() as session:
        found, digest = quantised.of(session, engine_id)
    histograms, reason = _histograms(farm, digest)
    reason = found.histograms_reason or reason
    return found.model_copy(update={"histograms": histograms, "histograms_reason": reason})


def _histograms(farm: Services, digest: str | None) -> tuple[Histograms | None, str | None]:
    """A calibration's histograms, or why there are none."""
    if digest is None:
        return None, "unknown: none were kept when it was quantised"
    held = farm.store.find(digest)
    if held is None:
        return (
            None,
            "unknown: they were deleted with the calibrated graph, or the store has lost them",
        )
    if held.bytes > MAX_BYTES:
        return None, _UNREADABLE
    try:
        with farm.store.local(digest) as file:
            return Histograms.model_validate_json(file.read_bytes()), None
    except (BlobDamaged, NotFound, StorageUnavailable) as err:
        return None, f"unknown: {err.detail}"
    except ValidationError:
        return None, _UNREADABLE
