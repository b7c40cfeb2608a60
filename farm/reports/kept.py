"""What was kept by this farm, or by an earlier one, as far as it can be read."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from farm.reports import extent
from farm.reports.accuracy import Accuracy
from farm.reports.extent import TooMuch
from farm.reports.metrics import Metrics


def shown(facts: Any) -> dict[str, Any]:
    """Facts as they were kept; none where an earlier farm has kept what can't be answered."""
    return facts if isinstance(facts, dict) and extent.fits(facts) else {}


def is_readable(accuracy: Any, metrics: Any) -> bool:
    """Whether the farm can work with what was kept of a measurement, by whatever version of it."""
    try:
        for record, kept in ((Accuracy, accuracy), (Metrics, metrics)):
            extent.check(kept)
            if kept is not None:
                record.model_validate(kept, strict=True)
    except (TooMuch, ValidationError):
        return False
    return isinstance(accuracy, dict)
