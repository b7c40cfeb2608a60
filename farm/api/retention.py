"""Rules of what is kept, and their application on demand."""

from __future__ import annotations

from fastapi import APIRouter, Response

from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.services import Body, By, Farm, ModelName, answer, problems
from farm.daemon import keeper
from farm.keeping import retention
from farm.schemas.retention import RetentionReport, RetentionRequest, RetentionView
from farm.specs.retention import Retention
from farm.trust import audit

router = APIRouter(prefix="/v1", tags=["registry"])


@router.get(
    "/models/{model}/retention",
    summary="Show what is kept of a model",
    response_model=RetentionView,
    responses=problems(404, 409),
)
def show_retention(model: ModelName, farm: Farm) -> Response:
    """The rule that holds for a model, and the versions whose engines stay."""
    with farm.db.read() as session:
        return answer(retention.view(session, model, farm.settings.retention))


@router.put(
    "/models/{model}/retention",
    summary="Say what is kept of a model",
    response_model=RetentionView,
    responses=problems(404, 409),
    openapi_extra=json_body(Retention),
)
def put_retention(model: ModelName, body: Body, farm: Farm, by: By) -> Response:
    """Set a model's own rule, whole: what is left out has its default. It is applied every hour."""
    rule = parsed(Retention, body)
    with farm.db.write() as session:
        known = retention.put(session, model, rule, by.signature)
        if known is not None:
            audit.record(session, by, "retention", known.name, **rule.model_dump())
        view = retention.view(session, model, farm.settings.retention)
    return answer(view)


@router.delete(
    "/models/{model}/retention",
    summary="Have the farm's rule hold for a model",
    response_model=RetentionView,
    responses=problems(404, 409),
)
def reset_retention(model: ModelName, farm: Farm, by: By) -> Response:
    """Forget a model's own rule. Idempotent."""
    with farm.db.write() as session:
        known = retention.reset(session, model)
        if known is not None:
            audit.record(session, by, "retention.reset", known.name)
        view = retention.view(session, model, farm.settings.retention)
    return answer(view)


@router.post(
    "/retention",
    summary="Apply the rules of what is kept",
    response_model=RetentionReport,
    responses=problems(507),
    openapi_extra=json_body(RetentionRequest),
)
def apply_retention(body: Body, farm: Farm, by: By) -> Response:
    """Delete what the rules of all models let go, now instead of within the hour.

    Each deletion leaves a row in the audit, with the rule as its reason.
    """
    request = parsed(RetentionRequest, body)
    with farm.one_of(farm.collecting, "another garbage collection is running"):
        done = keeper.retire(
            farm.db, farm.store, farm.settings.retention, dry_run=request.dry_run, by=by
        )
    return answer(done)
