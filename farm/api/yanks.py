"""Yanks: what no pull takes by default any more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import Field

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, EngineId, Farm, ModelName, answer, problems
from farm.registry import catalog, models, yanks
from farm.schemas.engines import EngineView
from farm.schemas.models import ModelDetail
from farm.schemas.yanks import YankRequest
from farm.trust import audit

router = APIRouter(prefix="/v1", tags=["registry"])

Number = Annotated[int, Path(ge=1, le=2**31 - 1), Field(description="the version")]


@router.post(
    "/engines/{engine_id}/yank",
    summary="Yank an engine",
    response_model=EngineView,
    responses=problems(404),
    openapi_extra=json_body(YankRequest),
)
def yank_engine(engine_id: EngineId, body: Body, farm: Farm, by: By) -> Response:
    """Have no pull take an engine. Its bytes stay, and can be had by its id. Idempotent."""
    reason = parsed(YankRequest, body).reason
    with farm.db.write() as session:
        if yanks.yank_engine(session, engine_id, reason, by.signature):
            audit.record(session, by, "yank", engine_id, reason=reason)
        view = catalog.engine(session, engine_id)
    return answer(view)


@router.delete(
    "/engines/{engine_id}/yank",
    summary="Take an engine's yank back",
    response_model=EngineView,
    responses=problems(404),
)
def restore_engine(engine_id: EngineId, farm: Farm, by: By) -> Response:
    """Have pulls take an engine again. Idempotent."""
    with farm.db.write() as session:
        if yanks.restore_engine(session, engine_id):
            audit.record(session, by, "unyank", engine_id)
        view = catalog.engine(session, engine_id)
    return answer(view)


@router.post(
    "/models/{model}/versions/{version}/yank",
    summary="Yank a version",
    response_model=ModelDetail,
    responses=problems(404, 409),
    openapi_extra=json_body(YankRequest),
)
def yank_version(model: ModelName, version: Number, body: Body, farm: Farm, by: By) -> Response:
    """Have no pull take a version unless it asks for it by its number. Idempotent.

    A pull of an alias that names it fails with the reason until the alias is moved.
    """
    reason = parsed(YankRequest, body).reason
    with farm.db.write() as session:
        changed = yanks.yank_version(session, model, version, reason, by.signature)
        view = models.model(session, model)
        if changed:
            audit.record(session, by, "yank", f"{view.name}@{version}", reason=reason)
    return answer(view)


@router.delete(
    "/models/{model}/versions/{version}/yank",
    summary="Take a version's yank back",
    response_model=ModelDetail,
    responses=problems(404, 409),
)
def restore_version(model: ModelName, version: Number, farm: Farm, by: By) -> Response:
    """Have pulls take a version again. Idempotent."""
    with farm.db.write() as session:
        changed = yanks.restore_version(session, model, version)
        view = models.model(session, model)
        if changed:
            audit.record(session, by, "unyank", f"{view.name}@{version}")
    return answer(view)
