"""An engine: its figures, what it computes in, where it came from, and how to load it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from farm.api import layer_reports, quantization
from farm.api.services import By, EngineId, Farm, Services
from farm.api.web.render import page
from farm.daemon import keeper
from farm.errors import BlobDamaged, NotFound, StorageUnavailable, TooLarge
from farm.keeping import deletion
from farm.keeping.deletion import Deleted
from farm.pictures import sheet
from farm.registry import catalog, loading, provenance, signed
from farm.registry.publish import MIRRORED
from farm.registry.verdicts import verdict
from farm.reports import curves
from farm.reports.layers import LayerReport
from farm.reports.quantization import Quantization
from farm.schemas.deletion import Deletion
from farm.specs import reach
from farm.specs.scopes import Scope
from farm.trust.callers import Caller, allows

router = APIRouter(include_in_schema=False)

_KINDS = 50


@router.get("/engines/{engine_id}")
def engine(
    request: Request,
    farm: Farm,
    by: By,
    engine_id: EngineId,
    delete: Annotated[bool, Query(description="say what deleting it would take along")] = False,
) -> Response:
    with farm.db.read() as session:
        found = catalog.engine(session, engine_id)
        jobs = provenance.jobs_of(session, engine_id)
        values = {
            "jobs": jobs,
            "materials": provenance.materials(found, jobs),
            "mirrored": _mirrored(jobs[0].facts),
            "signature": signed.signature_of(session, engine_id),
            "digest": _layers(session, engine_id),
        }
    figures = curves.curves(found.metrics) if found.metrics else []
    quantised = _quantization(farm, engine_id)
    report, no_report = _report(farm, values.pop("digest"), engine_id)
    return page(
        request,
        by,
        "engine.html",
        engine=found,
        verdict=verdict(found),
        curves=figures,
        charts=curves.charts(figures),
        quantization=quantised,
        pictures=sheet.drawn(quantised) if quantised else None,
        served={str(how.name).lower(): names for how, names in reach.served(found).items()},
        load=loading.text(found),
        report=report,
        kinds=sorted(report.kinds.items(), key=lambda kind: -kind[1])[:_KINDS] if report else (),
        no_report=no_report,
        going=_going(farm, by, engine_id) if delete and allows(by.scopes, Scope.ADMIN) else None,
        base=str(request.base_url).rstrip("/"),
        **values,
    )


def _mirrored(facts: Any) -> Any:
    """Whose work it was, if another farm's. Earlier versions stored anything a stage sent."""
    return facts.get(MIRRORED) if isinstance(facts, dict) else None


def _layers(session: Session, engine_id: str) -> str | None:
    try:
        return provenance.layer_report(session, engine_id)
    except NotFound:
        return None


def _quantization(farm: Services, engine_id: str) -> Quantization | None:
    try:
        return quantization.known(farm, engine_id)
    except NotFound:
        return None


def _report(
    farm: Services, digest: str | None, engine_id: str
) -> tuple[LayerReport | None, str | None]:
    """The layer report, or why it isn't shown."""
    if digest is None:
        return None, "it was built without a layer report"
    try:
        if layer_reports.size(farm.store, digest) > layer_reports.MOST_PARSED_BYTES:
            return None, "its layer report is too long for a page"
        return layer_reports.read(farm.store, digest, engine_id), None
    except (NotFound, TooLarge, BlobDamaged, StorageUnavailable) as err:
        return None, err.detail


def _going(farm: Services, by: Caller, engine_id: str) -> Deletion:
    """What deleting it would take along: a dry run, which changes nothing."""

    def work(session: Session) -> Deleted:
        return deletion.engine(session, engine_id, dry_run=True)

    return keeper.delete(farm.db, farm.store, work, by)
