"""The registry: models, engines, and pulls by model and GPU tag."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from farm.api import contents, layer_reports
from farm.api.services import (
    Cursor,
    EngineId,
    Farm,
    GpuTag,
    LabelFilters,
    Limit,
    ModelName,
    answer,
    problems,
)
from farm.builds import views
from farm.errors import Unsigned
from farm.registry import catalog, models, overview, signed
from farm.registry.fits import Where
from farm.registry.match import best_match
from farm.registry.provenance import layer_report
from farm.reports.layers import LayerReport
from farm.schemas.engines import EnginePage, EngineView, Manifest, Match
from farm.schemas.models import ModelDetail, ModelPage
from farm.specs.machines import NAMES, Fact, Machine
from farm.specs.precision import Precision
from farm.specs.references import AliasName
from farm.specs.runtime import Runtime
from farm.specs.words import AnyCase

router = APIRouter(prefix="/v1", tags=["registry"])

Pruned = Annotated[
    Annotated[str, Field(max_length=40), AnyCase] | None,
    Query(description="2:4, l1:0.5, or none for unpruned engines", examples=["2:4"]),
]
_MOST_RUNNING = 50
VersionNumber = Annotated[Annotated[int, Field(ge=1, le=2**31 - 1)] | None, Query()]


@router.get("/models", summary="List models", response_model=ModelPage)
def list_models(
    farm: Farm, label: LabelFilters = (), limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Models by name. A label may be the model's own, or one of its versions'."""
    with farm.db.read() as session:
        items = models.models(session, label=label, after=cursor, limit=limit + 1)
    more = len(items) > limit
    cursor = items[limit - 1].name if more else None
    return answer(ModelPage(items=items[:limit], cursor=cursor))


@router.get(
    "/models/{model}",
    summary="Show a model",
    response_model=ModelDetail,
    responses=problems(404, 409),
)
def show_model(model: ModelName, farm: Farm) -> Response:
    """A model's versions, aliases, and its newest version's engines; what its versions have for which GPU,
    what `prod` lacks beside the newest, and what is being built."""
    with farm.db.read() as session:
        view = overview.overview(session, model)
        running = views.builds(session, model=view.name, live=True, limit=_MOST_RUNNING)
    return answer(view.model_copy(update={"running": running}))


@router.get(
    "/models/{model}/engines",
    summary="List engines",
    response_model=EnginePage,
    responses=problems(404, 409),
)
def list_engines(
    model: ModelName,
    farm: Farm,
    gpu: Annotated[GpuTag | None, Query()] = None,
    precision: Precision | None = None,
    runtime: Runtime | None = None,
    version: VersionNumber = None,
    prune: Pruned = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """A model's engines, newest first; each once, however often it was evaluated."""
    with farm.db.read() as session:
        items = catalog.engines(
            session,
            model,
            gpu=gpu,
            precision=precision,
            runtime=runtime,
            version=version,
            prune=prune,
            before=cursor,
            limit=limit + 1,
        )
    more = len(items) > limit
    cursor = items[limit - 1].id if more else None
    return answer(EnginePage(items=items[:limit], cursor=cursor))


@router.get(
    "/models/{model}/engines/{gpu}",
    summary="Pull",
    response_model=Match,
    responses=problems(404, 409),
)
def match(
    model: ModelName,
    gpu: Annotated[GpuTag, Path()],
    farm: Farm,
    precision: Precision | None = None,
    runtime: Runtime | None = None,
    version: VersionNumber = None,
    alias: Annotated[AliasName | None, Query(description="of the version with this alias")] = None,
    prune: Pruned = None,
    doubtful: Annotated[
        bool, Query(description="accept an engine that failed a gate if no other matches")
    ] = False,
    explain: Annotated[
        bool, Query(description="also list the version's other engines for the GPU, and why not")
    ] = False,
    has: Annotated[
        list[Fact] | None,
        Query(
            max_length=len(NAMES),
            description="what the machine has, so that only what runs there is returned: "
            f"NAME=VALUE, with one of {', '.join(NAMES)}",
        ),
    ] = None,
    for_triton: Annotated[
        Annotated[str, Field(max_length=40)] | None,
        Query(description="only what this release of Triton loads", examples=["25.10"]),
    ] = None,
) -> Response:
    """The best engine for a GPU tag, and why; its bytes are at `/v1/engines/{id}/content`.

    Of one version, whatever the GPU: the given one, or else the one that `prod` names, or else the newest of
    which an ended build has an engine that passed its gates for each of its GPUs.

    Without a precision, it is the best by the goal kept for the version and the GPU (latency by default): the
    winner of its bench. A pruned engine is returned only if requested, or if its version has no other.
    """
    # An alias that moves in between would have another version signed than the answer's.
    with farm.db.read(snapshot=True) as session:
        found = best_match(
            session,
            model,
            gpu,
            precision=precision,
            runtime=runtime,
            version=version,
            alias=alias,
            prune=prune,
            doubtful=doubtful,
            explain=explain,
            where=Where(machine=Machine.of(has or ()), triton=for_triton),
        )
    return answer(found)


@router.get(
    "/engines/{engine_id}",
    summary="Show an engine",
    response_model=EngineView,
    responses=problems(404),
)
def show_engine(engine_id: EngineId, farm: Farm) -> Response:
    """An engine's registry entry."""
    with farm.db.read() as session:
        return answer(catalog.engine(session, engine_id))


@router.get(
    "/engines/{engine_id}/manifest",
    summary="Show an engine's manifest",
    response_model=Manifest,
    responses=problems(404, 503),
)
def manifest(engine_id: EngineId, farm: Farm) -> Response:
    """The engine's description and provenance, to store next to its bytes, and how to run it in Python."""
    with suppress(Unsigned):
        farm.signatory.bundle_of(engine_id)
    with farm.db.read() as session:
        shown = signed.manifest_of(session, engine_id)
    farm.pulled.note(engine_id)
    return answer(shown)


@router.get(
    "/engines/{engine_id}/layers",
    summary="Show an engine's layers",
    response_model=LayerReport,
    responses=problems(404, 413),
)
def layers(engine_id: EngineId, farm: Farm) -> Response:
    """The engine's layers and the types it computes in."""
    with farm.db.read() as session:
        digest = layer_report(session, engine_id)
    size = layer_reports.size(farm.store, digest)
    if size > layer_reports.MOST_PARSED_BYTES:
        what = f"the layer report of engine {engine_id}"
        return contents.sent(
            *(farm, digest, size), what=what, etag=f'"{digest}"', media_type="application/json"
        )
    return answer(layer_reports.read(farm.store, digest, engine_id))


@router.head("/engines/{engine_id}/content", include_in_schema=False)
@router.get(
    "/engines/{engine_id}/content",
    summary="Download an engine",
    response_class=Response,
    responses=contents.ANSWERS,
)
def content(
    engine_id: EngineId,
    farm: Farm,
    if_none_match: contents.IfNoneMatch = None,
) -> Response:
    """The engine itself. `ETag` is its digest; `Range` and `If-Range` resume a download."""
    with farm.db.read() as session:
        engine = catalog.engine(session, engine_id)
    farm.pulled.note(engine_id)
    what = f"engine {engine.id}"
    return contents.content(
        farm, engine.digest, engine.bytes, what=what, if_none_match=if_none_match
    )
