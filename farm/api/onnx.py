"""A version's ONNX: what there is, and its bytes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from farm.api import contents
from farm.api.registry import VersionNumber
from farm.api.services import Farm, ModelName, answer, problems
from farm.registry.onnx import onnx_of
from farm.schemas.onnx import OnnxFile
from farm.specs.precision import Precision
from farm.specs.references import AliasName

router = APIRouter(prefix="/v1/models/{model}/onnx", tags=["registry"])
Alias = Annotated[AliasName | None, Query(description="of the version with this alias")]


@router.get(
    "",
    summary="Show a version's ONNX",
    response_model=OnnxFile,
    responses=problems(404, 409),
)
def show_onnx(
    model: ModelName,
    farm: Farm,
    precision: Precision | None = None,
    version: VersionNumber = None,
    alias: Alias = None,
) -> Response:
    """The ONNX of the version that a pull takes, and how to build an engine from it elsewhere.

    For what the farm has no engine for. With a precision, in its types; else as it was exported.
    """
    with farm.db.read() as session:
        found = onnx_of(session, model, precision=precision, version=version, alias=alias)
    return answer(found)


@router.head("/content", include_in_schema=False)
@router.get(
    "/content",
    summary="Download a version's ONNX",
    response_class=Response,
    responses=contents.ANSWERS | problems(409),
)
def onnx_content(
    model: ModelName,
    farm: Farm,
    precision: Precision | None = None,
    version: VersionNumber = None,
    alias: Alias = None,
    if_none_match: contents.IfNoneMatch = None,
) -> Response:
    """The ONNX itself. `ETag` is its digest; `Range` and `If-Range` resume a download."""
    with farm.db.read() as session:
        found = onnx_of(session, model, precision=precision, version=version, alias=alias)
    return contents.content(
        farm, found.digest, found.bytes, what=found.file_name, if_none_match=if_none_match
    )
