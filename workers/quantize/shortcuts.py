"""What ModelOpt and ONNX Runtime compute of values while they place Q/DQ, left out or done sooner.

The ranges of activations are replaced after placement, so the graph needn't run for them; types and shapes
can be inferred without the weights, and once; and each channel's scale needn't be checked by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from modelopt.onnx.quantization import graph_utils, ort_patching
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.shape_inference import InferenceError
from onnxruntime.quantization import calibrate, qdq_quantizer
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    TensorsData,
)
from onnxruntime.quantization.quant_utils import add_infer_metadata

from farm.specs.precision import Precision
from workers.graphs import shapes
from workers.inputs.samples import Arrays
from workers.quantize import placement

#: From one made-up range to the next; so small that those of 100,000 tensors are of one magnitude.
_STEP = np.float32(2.0**-16)
#: Where ``get_extended_model_outputs`` takes the reader, after the file and the model.
_READER = 2

Values = NDArray[np.generic]


@contextmanager
def taken() -> Iterator[None]:
    """Let ModelOpt take the shortcuts of this module within the block."""
    checked, run = qdq_quantizer.compute_data_quant_params, graph_utils.get_extended_model_outputs
    shorter: dict[tuple[ModuleType, str], Any] = {
        (qdq_quantizer, "compute_data_quant_params"): partial(_scale, checked),
        (graph_utils, "get_extended_model_outputs"): partial(_outputs, run),
        (ort_patching, "load_model_with_shape_infer"): _loaded,
        (ort_patching, "_create_calibrator_with_extra_options"): Ranges,
        # ModelOpt puts the one above here.
        (calibrate, "create_calibrator"): calibrate.create_calibrator,
        # ModelOpt clears at once what this writes into its file, and then writes the file again.
        (onnx.shape_inference, "infer_shapes_path"): lambda *_, **__: None,
    }
    kept = {place: getattr(*place) for place in shorter}
    for place, made in shorter.items():
        setattr(*place, made)
    try:
        yield
    finally:
        for place, made in kept.items():
            setattr(*place, made)


class Ranges:
    """In place of a calibrator: gives each tensor a range that no other has, and runs nothing.

    Equal ranges would say that tensors share a scale. Those that do get the largest of theirs.
    """

    def __init__(
        self, model: Path, nodes: Sequence[str], *, extra_options: Mapping[str, Any], **_: object
    ) -> None:
        self.op_types_to_calibrate = nodes  #: names, not types: so ModelOpt passes them on
        self._names, _ = ort_patching._select_tensors_to_calibrate(self, _loaded(model))
        self._together: Mapping[str, Sequence[str]] = extra_options.get("group_qdq_tensors") or {}

    def collect_data(self, reader: CalibrationDataReader) -> None:
        """Nothing is."""

    def compute_data(self) -> TensorsData:
        own = {n: 1 + at * _STEP for at, n in enumerate(sorted(self._names))}
        most = {
            name: max([one, *(own[other] for other in self._together.get(name, ()))])
            for name, one in own.items()
        }
        return TensorsData(CalibrationMethod.MinMax, {n: (-one, one) for n, one in most.items()})


def _loaded(file: Path) -> onnx.ModelProto:
    """A model with its weights, and types and shapes as far as they can be inferred.

    Inference doesn't see the weights, which it would copy several times.
    """
    model = onnx.load(str(file))
    try:
        found = shapes.inferred_of(model).graph
    except InferenceError as err:
        print(f"shapes can't be inferred: {err}")
        return model
    for field in ("node", "output", "value_info"):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(getattr(found, field))
    add_infer_metadata(model)
    return model


def _outputs(run: Callable[..., Arrays], file: str, model: onnx.ModelProto, *given: Any) -> Arrays:
    """Arrays of the shapes that a model's outputs have for the reader's first batch.

    ModelOpt looks at no more. The model runs only if not all of them can be inferred.
    """
    reader: CalibrationDataReader = given[_READER]
    first: Arrays = reader.get_first()
    found = {value.name: _sizes(value) for value in _at(model, first).graph.output}
    if any(sizes is None for sizes in found.values()):
        return run(file, model, *given)
    zero = np.float32(0)
    return {
        name: np.broadcast_to(zero, sizes) for name, sizes in found.items() if sizes is not None
    }


def _at(model: onnx.ModelProto, batch: Arrays) -> onnx.ModelProto:
    """The outline of a model with the shapes that it has for this batch, as far as they can be inferred."""
    outline = shapes.outline_of(model)
    # What is declared may hold for other batches.
    del outline.graph.value_info[:]
    for value in outline.graph.output:
        value.type.Clear()
    for value in outline.graph.input:
        if value.name in batch:
            value.type.tensor_type.ClearField("shape")
            for size in batch[value.name].shape:
                value.type.tensor_type.shape.dim.add().dim_value = size
    try:
        found: onnx.ModelProto = onnx.shape_inference.infer_shapes(outline, data_prop=True)
    except InferenceError:
        return outline
    return found


def _sizes(value: onnx.ValueInfoProto) -> list[int] | None:
    """A tensor's sizes, if all of them are known."""
    kind = value.type.tensor_type
    dims = kind.shape.dim
    is_known = kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return [dim.dim_value for dim in dims] if is_known else None


def _scale(
    checked: Callable[..., tuple[Values, Values]],
    data: Values,
    quant_type: int,
    symmetric: bool,
    *others: Any,
    **options: Any,
) -> tuple[Values, Values]:
    """The scale of a channel's weights as ONNX Runtime computes it, to the bit, but for its checks.

    These took 40 % of ModelOpt's time on ResNet-50, which has 27,560 channels.
    """
    # What else it may ask for changes the scale.
    is_plain = symmetric and not any(others) and not any(options.values())
    if is_plain and quant_type == TensorProto.INT8 and data.dtype == np.float32 and data.size:
        most = max(-float(np.minimum.reduce(data)), float(np.maximum.reduce(data)))
        if isfinite(most):
            return np.array(0, np.int8), np.array(placement.scale_of(most, Precision.INT8))
    return checked(data, quant_type, symmetric, *others, **options)
