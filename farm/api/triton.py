"""Engines as model repositories of Triton Inference Server."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from farm.api import contents
from farm.api.files import not_modified
from farm.api.services import EngineId, Farm, Services, problems
from farm.api.tars import Streamed, TarResponse
from farm.registry import catalog, triton
from farm.registry.triton import Model
from farm.schemas.engines import EngineView
from farm.specs.triton import Backend

router = APIRouter(prefix="/v1", tags=["registry"])


@router.get(
    "/engines/{engine_id}/triton",
    summary="Download an engine for Triton",
    response_class=Response,
    responses=problems(404, 422)
    | {
        200: {
            "content": {"application/x-tar": {}},
            "description": "a folder named like the model, with config.pbtxt and the engine",
        },
        304: {"description": "If-None-Match contains the ETag"},
    }
    | problems(503),
)
def triton_repository(
    engine_id: EngineId,
    farm: Farm,
    backend: Annotated[
        Backend | None,
        Query(
            description="for an engine of ONNX Runtime: Triton's own, or a model.py that imports the "
            "onnxruntime of Triton's Python; by default python for cpu"
        ),
    ] = None,
    if_none_match: contents.IfNoneMatch = None,
) -> Response:
    """A model repository of Triton Inference Server that serves this engine, as a tar.

    Unpack it into the folder that Triton's `--model-repository` names. TensorRT-RTX engines and AOTInductor
    packages are refused, with the reason: Triton doesn't load them.
    """
    with farm.db.read() as session:
        engine = catalog.engine(session, engine_id)
    model = triton.model(engine, backend=backend)
    etag = _etag(model)
    same = not_modified(etag, if_none_match)
    if same is not None:
        return same
    version = f"{model.name}/{model.version}"
    return TarResponse(
        {
            f"{model.name}/{triton.CONFIG}": model.config.encode(),
            **{f"{version}/{name}": content for name, content in model.files.items()},
            **{f"{version}/{name}": _whole(farm, one) for name, one in model.engines.items()},
        },
        etag=etag,
        file_name=f"{model.name}-v{model.version}-triton.tar",
    )


def _whole(farm: Services, engine: EngineView) -> Streamed:
    contents.require_whole(farm, engine.digest, engine.bytes, f"engine {engine.id}")
    return Streamed(read=partial(farm.store.read, engine.digest), bytes=engine.bytes)


def _etag(model: Model) -> str:
    found = hashlib.sha256(model.config.encode())
    for content in model.files.values():
        found.update(hashlib.sha256(content).digest())
    for engine in model.engines.values():
        found.update(engine.digest.encode())
    return f'"{found.hexdigest()}"'
