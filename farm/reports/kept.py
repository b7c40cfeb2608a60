"""Reads records stored by this or an earlier version of the farm, as far as possible."""

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
    """Stored facts; empty if an earlier version stored something that can't be returned."""
    return facts if isinstance(facts, dict) and extent.fits(facts) else {}


class Unreadable(ValueError):
    """No version of the farm's stages writes this."""


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The stages' reports on an engine."""

    accuracy: Accuracy
    metrics: Metrics | None
    description: Description
    doubts: list[str]


_DOUBTS: TypeAdapter[list[str]] = TypeAdapter(Texts)


def engine_record(accuracy: Any, metrics: Any, description: Any, doubts: Any) -> EngineRecord:
    """An engine's stored record, from any version of the farm.

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
