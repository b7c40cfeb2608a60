"""Benching a version that the farm has: the same source and data once more, in every runtime."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build
from farm.errors import InvalidRequest
from farm.registry import names, versions
from farm.registry.names import Named
from farm.schemas.bench import ModelBench
from farm.schemas.submission import BenchOptions, BuildRequest
from farm.specs import faults

_MOST = 200  #: builds to look through
_OF_THE_BENCH = set(BenchOptions.model_fields)


def request_of(session: Session, model: str, asked: ModelBench) -> BuildRequest:
    """The submission that benches a version.

    What the bench doesn't give is as in the version's newest build with calibration data, or else with
    evaluation data, or else the newest: so its finished jobs are reused.

    Raises:
        NotFound: there is no such model or version.
        NameAmbiguous
        InvalidRequest: what the bench gives doesn't fit the version.
    """
    known = names.named(session, model)
    first = _of_the_best_build(session, known, asked.version)
    given = asked.model_dump(mode="json", exclude_none=True, exclude={"version"})
    bench = {name: given.pop(name) for name in _OF_THE_BENCH & given.keys()}
    kept = {name: first.get(name) for name in _KEPT if first.get(name) is not None}
    try:
        return BuildRequest.model_validate(kept | given | {"model": known.name, "bench": bench})
    except ValidationError as err:
        # Each part is valid by itself, so these are messages of the request's own.
        said = "; ".join(faults.told(one) for one in err.errors())
        raise InvalidRequest(
            f"this doesn't fit the builds of {known.name}: {said}",
            hint="the version's fixed inputs and data stand where the bench gives none",
        ) from err


_KEPT = ("source", "profiles", "fixed_inputs", "calibration", "evaluation", "gates", "options")


def _of_the_best_build(session: Session, model: Named, version: int | None) -> dict[str, Any]:
    """The request of the build whose data say most about the version."""
    version_id, _ = versions.given_or_newest(session, model, version)
    newest = select(Build.request).where(Build.version_id == version_id).order_by(Build.id.desc())
    requests = session.scalars(newest.limit(_MOST)).all()
    return max(requests, key=_said)


def _said(request: dict[str, Any]) -> tuple[bool, bool, bool]:
    unpruned, calibrated, evaluated = (
        request.get("prune") is None,
        request.get("calibration") is not None,
        request.get("evaluation") is not None,
    )
    return unpruned, calibrated, evaluated
