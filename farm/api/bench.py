"""Benches: every engine of a model for a GPU in one table, and what is missing built."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from farm.api.builds import ClientName, IdempotencyKey, OnlyForetell, foreseen, submitted
from farm.api.documents import json_body
from farm.api.extent import parsed
from farm.api.registry import VersionNumber
from farm.api.services import Body, By, Farm, GpuTag, ModelName, answer, problems
from farm.builds import benches
from farm.registry.bench import bench
from farm.schemas.bench import Bench, ModelBench
from farm.schemas.builds import BuildView
from farm.schemas.forecast import DryRun
from farm.specs.goals import Aim, BatchSize, Goal

router = APIRouter(prefix="/v1/models/{model}/bench", tags=["bench"])


@router.get("", summary="Show a bench", response_model=Bench, responses=problems(404, 409))
def show(
    model: ModelName,
    gpu: Annotated[GpuTag, Query(examples=["h100"])],
    farm: Farm,
    goal: Annotated[
        Aim | None,
        Query(description="instead of the goal kept for the version and GPU, or else latency"),
    ] = None,
    batch: Annotated[
        BatchSize | None,
        Query(description="by default the profile's opt, or for throughput the best"),
    ] = None,
    version: VersionNumber = None,
) -> Response:
    """A version's engines for a GPU in every runtime and precision, best first, and the winner.

    Only engines that passed their gates can win, and only comparable figures decide. Without `goal` and
    `batch`, the winner is what a pull for this GPU takes. Nothing is built.
    """
    given = goal is not None or batch is not None
    asked = Goal(aim=goal or Aim.LATENCY, batch=batch) if given else None
    with farm.db.read() as session:
        return answer(bench(session, model, gpu, goal=asked, version=version))


@router.post(
    "",
    status_code=202,
    summary="Bench a model that the farm has",
    response_model=BuildView,
    responses=problems(404, 409)
    | {200: {"model": DryRun, "description": "With `dry_run`: what would be done"}},
    openapi_extra=json_body(ModelBench),
)
def build(
    model: ModelName,
    body: Body,
    farm: Farm,
    by: By,
    idempotency_key: IdempotencyKey = None,
    _client: ClientName = None,
    dry_run: OnlyForetell = False,
) -> Response:
    """Build what is missing of a version, in every runtime and precision of the targets.

    The source, data and profiles are those of the version's builds, whose finished jobs are reused. For a
    new source, submit a build with `bench`.
    """
    asked = parsed(ModelBench, body)
    with farm.one_of(farm.planning, "other builds are being planned"):
        with farm.db.read() as session:
            request = benches.request_of(session, model, asked)
        if dry_run:
            return answer(foreseen(farm, request, by))
        view = submitted(farm, request, by, idempotency_key)
    return answer(view, status=202, headers={"Location": f"/v1/builds/{view.id}"})
