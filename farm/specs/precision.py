"""The number formats engines compute in, with the traits that don't depend on the target.

``farm.planning.policy`` says where each can be built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from farm.specs.words import AnyCase, Folded


class Precision(Folded):
    """The number format that an engine computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"  #: explicit Q/DQ, calibrated; the rest in fp16, or bf16 for its range, and fp32 on CPUs
    FP8 = "fp8"  #: E4M3, explicit Q/DQ, calibrated; the rest in fp16, or bf16 for its range
    INT8_DYNAMIC = "int8-dynamic"  #: int8 weights, activations as they come; the rest in fp32

    @property
    def computes_in(self) -> str:
        """The type of its products, as named in ``compute``."""
        return TRAITS[self].computes_in or self.value


@dataclass(frozen=True, kw_only=True)
class Traits:
    """A precision's properties on every target."""

    typed_by: Literal["export", "cast", "calibrate"]  #: the stage that types the graph
    quantized: bool = False
    computes_in: str = ""  #: if it differs from its name


TRAITS: dict[Precision, Traits] = {
    Precision.FP32: Traits(typed_by="export"),
    Precision.FP16: Traits(typed_by="cast"),
    Precision.BF16: Traits(typed_by="cast"),
    Precision.INT8: Traits(typed_by="calibrate", quantized=True),
    Precision.FP8: Traits(typed_by="calibrate", quantized=True),
    Precision.INT8_DYNAMIC: Traits(typed_by="cast", quantized=True, computes_in="int8"),
}

#: Precisions whose ranges come from calibration data.
CALIBRATED = tuple(one for one, traits in TRAITS.items() if traits.typed_by == "calibrate")
QUANTIZED = tuple(one for one, traits in TRAITS.items() if traits.quantized)

CalibrationMethod = Annotated[Literal["auto", "max", "percentile", "entropy", "mse"], AnyCase]

#: What calibration takes: samples, or the ranges that TensorRT 10 or earlier found.
CalibrationFormat = Annotated[Literal["samples", "tensorrt-cache"], AnyCase]

Percentile = Annotated[
    float,
    Field(
        ge=50,
        le=100,
        description="the percentage of a tensor's values that isn't clipped; 99.99 by default",
    ),
]
