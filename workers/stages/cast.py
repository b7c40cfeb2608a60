"""Cast: an fp32 graph typed fp16 or bf16 by ModelOpt AutoCast, or with int8 weights by ONNX Runtime.

Inputs and outputs stay fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from modelopt.onnx.autocast.convert import DEFAULT_DATA_MAX, DEFAULT_INIT_MAX
from modelopt.onnx.autocast.convert import convert_to_mixed_precision as autocast

from farm.errors import CastFailed, PrecisionMissed
from farm.specs import CastParams, Precision
from workers import graphs
from workers.compute import compute_of
from workers.dynamic import quantize_weights
from workers.profiles import resolve_profiles, shapes_at
from workers.samples import random_arrays
from workers.stages import Stage, StageResult

SEED = 0
#: bf16 has the range of fp32, so no value is too large for it and no run need look for one.
BF16_MAX = float(np.finfo(np.float32).max)


def run(stage: Stage) -> StageResult:
    """Write ``typed`` from ``onnx``.

    Raises:
        CastFailed: if nothing in the graph can be cast.
        PrecisionMissed: if no product of it can have int8 weights.
    """
    params = stage.params
    assert isinstance(params, CastParams)
    file, model = graphs.read_model(stage.inputs["onnx"], stage.workdir)
    _refuse_typed(model, params.precision)
    stage.progress("cast", None)
    path = stage.workdir / "typed.onnx"
    if params.precision is Precision.INT8_DYNAMIC:
        typed, low, floats = _quantize(file, model, path, params)
    else:
        typed, low, floats = _cast_to_half(file, model, path, params)
    share = low / floats
    print(f"{low} of {floats} operators that could be are {params.precision} ({share:.0%})")
    facts = {
        "precision": str(params.precision),
        "low_precision_nodes": low,
        "float_nodes": floats,
        "share": round(share, 4),
        "opset": graphs.opset_of(typed),
        "inputs": graphs.specs_as_json(graphs.input_specs(typed)),
        "outputs": graphs.specs_as_json(graphs.output_specs(typed)),
    }
    return StageResult(outputs={"typed": path}, facts=facts)


def _quantize(
    file: Path, model: onnx.ModelProto, path: Path, params: CastParams
) -> tuple[onnx.ModelProto, int, int]:
    graphs.load_weights(model, file)
    try:
        quantize_weights(model, path)
    except Exception as err:  # onnx.shape_inference and the quantiser raise kinds of their own
        raise CastFailed(
            f"ONNX Runtime can't quantise this graph: {graphs.brief(err)}",
            hint="choose fp32, or int8 with calibration data",
        ) from err
    typed = onnx.load(str(path))
    ranges = graphs.axis_ranges(model)
    graphs.keep_axis_ranges(typed, ranges)
    graphs.save_model(typed, path)
    profile = resolve_profiles(graphs.input_specs(typed), params.profiles, ranges)[0]
    compute = compute_of(typed, shapes_at(profile, "opt"))
    low = compute.layers("int8")
    if not low:
        kinds = ", ".join(sorted({product.op_type for product in compute.products})) or "none"
        raise PrecisionMissed(
            f"none of the graph's products ({kinds}) multiplies by a constant matrix, and only such "
            "are quantised without calibration data: convolutions would be slower than in fp32",
            hint="choose int8 with calibration data, which has convolutions too, or fp32",
        )
    return typed, low, len(compute.products)


def _cast_to_half(
    file: Path, model: onnx.ModelProto, path: Path, params: CastParams
) -> tuple[onnx.ModelProto, int, int]:
    typed = _cast(file, model, params)
    low, floats = low_precision_nodes(typed, params.precision)
    if low == 0:
        raise CastFailed(
            f"none of the graph's {floats} floating-point operators could become "
            f"{params.precision}",
            hint="choose fp32: the values leave the range of fp16, or it computes on integers",
        )
    graphs.keep_axis_ranges(typed, graphs.axis_ranges(model))
    graphs.save_model(typed, path)
    return typed, low, floats


def low_precision_nodes(model: onnx.ModelProto, precision: Precision) -> tuple[int, int]:
    """How many operators give ``precision``, and how many give any floating-point type.

    Casts and constants don't count: they compute nothing.
    """
    low_type = {
        Precision.FP16: onnx.TensorProto.FLOAT16,
        Precision.BF16: onnx.TensorProto.BFLOAT16,
    }[precision]
    types = graphs.types_of(model)
    computing = [node for node in model.graph.node if node.op_type not in ("Cast", "Constant")]
    given = [types.get(node.output[0]) for node in computing]
    low = sum(kind == low_type for kind in given)
    return low, low + sum(kind == onnx.TensorProto.FLOAT for kind in given)


def _cast(file: Path, model: onnx.ModelProto, params: CastParams) -> onnx.ModelProto:
    fp16 = params.precision is Precision.FP16
    profile = resolve_profiles(
        graphs.input_specs(model), params.profiles, graphs.axis_ranges(model)
    )[0]
    arrays = random_arrays(graphs.input_specs(model), shapes_at(profile, "opt"), seed=SEED)
    try:
        typed: onnx.ModelProto = autocast(
            str(file),
            low_precision_type=str(params.precision),
            keep_io_types=True,
            # AutoCast keeps in fp32 what leaves these bounds when it runs the graph on this data.
            data_max=DEFAULT_DATA_MAX if fp16 else np.inf,
            init_max=DEFAULT_INIT_MAX if fp16 else BF16_MAX,
            calibration_data=arrays,  # a dict of arrays is taken as one batch
            providers=["cpu"],
        )
    except Exception as err:  # it raises whatever it comes across, and bare Exceptions of its own
        raise CastFailed(
            f"ModelOpt can't cast this graph to {params.precision}: {graphs.brief(err)}",
            hint="choose fp32, or int8; see the job's log for what it stumbled over",
        ) from err
    return typed


def _refuse_typed(model: onnx.ModelProto, precision: Precision) -> None:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.DOUBLE in kinds:
        raise CastFailed(
            f"the model's weights are fp64, which can't be cast to {precision}",
            hint="export the model in fp32: model.float() in PyTorch",
        )
    if graphs.is_quantized(model) or kinds & {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }:
        raise CastFailed(
            f"the model is quantised or half-precision already, so it can't be cast to {precision}",
            hint="hand in the fp32 model, or build this one as fp32, which keeps its own types",
        )
