"""What engines are held to."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
)

from farm.specs.precision import QUANTIZED, Precision
from farm.specs.values import Value

#: Output → the largest error of its floats, or share of its integers that differ.
OfOutputs = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=200)],
        Annotated[float, Field(ge=0, allow_inf_nan=False)],
    ],
    Field(max_length=512),
]


class Gates(Value):
    """An engine that fails one of these isn't broken, and doubtful: no pull takes it by default.

    A share that few samples leave open counts as passed.
    """

    agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.98,
        description="smallest share of classes, integers or matched items equal to the source's",
    )
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.1,
        description="largest error of floats: RMS error over the standard deviation of the "
        "source's values; 0.1 is a cosine similarity of about 0.995",
    )
    drop: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="largest allowed drop of the task's metric, if there are labels; of `mae` and `rmse` "
        "as a share of the source's",
    )
    outputs: OfOutputs = Field(
        {},
        description="output → its own tolerance, with labels and without: the largest error of its floats, "
        "or share of its integers that differ. Other gates leave it out",
    )


class QuantizedGates(Gates):
    """Of engines that compute in int8 or fp8: an error of 0.35 is a cosine similarity of about 0.94."""

    agreement: Annotated[float, Field(ge=0, le=1)] = 0.9
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.35
    drop: Annotated[float, Field(ge=0, le=1)] = 0.03


class GateSet(Value):
    """The gates of a build's engines, by what they compute in."""

    floats: Gates = Gates()
    quantized: QuantizedGates = QuantizedGates()

    def of(self, precision: Precision) -> Gates:
        return self.quantized if precision in QUANTIZED else self.floats

    def changed(self, changes: GateChanges) -> GateSet:
        """The same with some gates set for all precisions."""
        given = changes.model_dump(exclude_none=True)
        return GateSet.model_validate(
            {family: gates | given for family, gates in self.model_dump().items()}
        )


class GateChanges(Value):
    """What a build sets instead of the farm's gates."""

    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    drop: Annotated[float, Field(ge=0, le=1)] | None = None
    outputs: OfOutputs | None = None
