"""Labels and notes of models and versions."""

from __future__ import annotations

from fastapi import APIRouter, Response

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, ModelName, answer, problems
from farm.api.yanks import Number
from farm.registry import labels, models
from farm.schemas.labels import DescriptionChanges
from farm.schemas.models import ModelDetail
from farm.trust import audit

router = APIRouter(prefix="/v1/models/{model}", tags=["registry"])


@router.patch(
    "",
    summary="Describe a model",
    response_model=ModelDetail,
    responses=problems(404, 409),
    openapi_extra=json_body(DescriptionChanges),
)
def describe_model(model: ModelName, body: Body, farm: Farm, by: By) -> Response:
    """Change a model's labels and note. Idempotent."""
    changes = parsed(DescriptionChanges, body)
    with farm.db.write() as session:
        changed = labels.describe_model(session, model, changes)
        view = models.model(session, model)
        if changed:
            said = changes.model_dump(exclude_unset=True)
            audit.record(session, by, "describe", view.name, **said)
    return answer(view)


@router.patch(
    "/versions/{version}",
    summary="Describe a version",
    response_model=ModelDetail,
    responses=problems(404, 409),
    openapi_extra=json_body(DescriptionChanges),
)
def describe_version(model: ModelName, version: Number, body: Body, farm: Farm, by: By) -> Response:
    """Change a version's labels and note. Idempotent."""
    changes = parsed(DescriptionChanges, body)
    with farm.db.write() as session:
        changed = labels.describe_version(session, model, version, changes)
        view = models.model(session, model)
        if changed:
            said = changes.model_dump(exclude_unset=True)
            audit.record(session, by, "describe", f"{view.name}@{version}", **said)
    return answer(view)
