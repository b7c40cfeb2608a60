"""The base class of all reports."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    """What was found. A reader ignores fields that it doesn't know."""

    model_config = ConfigDict(frozen=True, from_attributes=True)
