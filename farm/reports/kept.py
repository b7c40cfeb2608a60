"""What was kept by this farm, or by an earlier one, as far as it can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from farm.reports import extent
from farm.reports.accuracy import Accuracy
from farm.reports.description import Description
from farm.reports.extent import TooMuch
from farm.reports.metrics import Metrics
from farm.reports.records import Texts


def shown(facts: Any) -> dict[str, Any]:
    """Facts as they were kept; none where an earlier farm has kept what can't be answered."""
    return facts if isinstance(facts, dict) and extent.fits(facts) else {}


class Unreadable(ValueError):
    """No version of the farm's stages writes this."""


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What its stages have reported of an engine."""

    accuracy: Accuracy
    metrics: Metrics | None
    description: Description
    doubts: list[str]


_DOUBTS: TypeAdapter[list[str]] = TypeAdapter(Texts)


def engine_record(accuracy: Any, metrics: Any, description: Any, doubts: Any) -> EngineRecord:
    """What was kept of an engine, by whatever version of the farm.

    Raises:
        Unreadable
    """
    try:
        for kept in (accuracy, metrics, description, doubts):
            extent.check(kept)
        return EngineRecord(
            accuracy=Accuracy.model_validate(accuracy, strict=True),
            metrics=None if metrics is None else Metrics.model_validate(metrics, strict=True),
            description=Description.model_validate(description),
            doubts=_DOUBTS.validate_python(doubts or [], strict=True),
        )
    except (TooMuch, ValidationError) as err:
        raise Unreadable from err
