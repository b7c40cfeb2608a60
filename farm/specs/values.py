"""The base of the farm's values: frozen and strict."""

from __future__ import annotations

from pydantic import (
    BaseModel,
    ConfigDict,
)


class Value(BaseModel):
    """A frozen value. Unknown fields are an error, so that a typo is never silently dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")
