"""What is kept of a model, and for how long."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.specs.values import Value

_Days = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)]


class Retention(Value):
    """Versions that an alias names, and a few more, keep their engines; of the others they go after a while.

    Without either number of days nothing is ever deleted.
    """

    history: Annotated[int, Field(ge=0, le=1000)] = Field(
        1, description="of each alias, so many of the versions it named before are kept as well"
    )
    newest: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="so many of the newest versions are kept as well"
    )
    engines_days: _Days | None = Field(
        None,
        description="the other versions' engines are deleted after so many days without a pull; null for "
        "never",
    )
    intermediates_days: _Days | None = Field(
        None,
        description="what was made between source and engines is deleted so many days after a version's "
        "last build, whatever the version; null for never",
    )

    @property
    def is_off(self) -> bool:
        return self.engines_days is None and self.intermediates_days is None
