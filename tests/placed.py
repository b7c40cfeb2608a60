"""A small graph with Q/DQ, as the stage that calibrates makes it."""

from __future__ import annotations

from pathlib import Path

import onnx

from farm.specs.precision import Precision
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import calibrated, modelopt


def int8_graph(model: onnx.ModelProto, samples: Arrays, folder: Path) -> onnx.ModelProto:
    """Placed by ModelOpt, with the ranges of these samples' largest values.

    Parameters:
        samples: of the input ``x``.
    """
    quantized = modelopt.placed(model, samples, Precision.INT8, folder)
    calibrated.calibrate(
        quantized,
        samples,
        Batch(axes={"x": 0}, min=1, opt=8, max=64, is_dynamic=True),
        size=8,
        method="max",
        percentile=None,
        precision=Precision.INT8,
        folder=folder,
        seen=lambda _: None,
    )
    return quantized
