"""The number formats that engines compute in, and how their ranges are found."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class Precision(StrEnum):
    """The number format that an engine computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"  #: explicit Q/DQ, calibrated; the rest in fp16, or bf16 for its range, and fp32 on CPUs
    FP8 = "fp8"  #: E4M3, explicit Q/DQ, calibrated; the rest in fp16, or bf16 for its range
    INT8_DYNAMIC = "int8-dynamic"  #: int8 weights, activations as they come; the rest in fp32

    @property
    def computes_in(self) -> str:
        """The type of its products, as ``compute`` names them."""
        return "int8" if self is Precision.INT8_DYNAMIC else self.value


#: Those whose ranges come from calibration data.
CALIBRATED = (Precision.INT8, Precision.FP8)


QUANTIZED = (*CALIBRATED, Precision.INT8_DYNAMIC)


CalibrationMethod = Literal["entropy", "max"]
