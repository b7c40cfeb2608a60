"""Cast: types a graph fp16 or bf16 by its value ranges, or with int8 weights by ONNX Runtime.

Inputs and outputs keep their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypedDict

import onnx
from onnx import TensorProto

from farm.errors import CastFailed, FarmError, PrecisionMissed
from farm.reports.records import tensors
from farm.specs.precision import Precision
from farm.specs.roles import Role
from farm.specs.source import DataKind
from farm.stages import CastFacts, CastParams
from workers.graphs import casting, check, files, floats, interface, opsets, shapes, walk
from workers.graphs.compute import PRODUCTS, compute_of
from workers.inputs.batch import Batch
from workers.inputs.profiles import resolve_profiles, shapes_at
from workers.inputs.samples import Arrays, samples_for
from workers.quantize import choosing
from workers.quantize.dynamic_ranges import quantize_weights
from workers.quantize.magnitudes import MAX_SAMPLES, Magnitudes, measured
from workers.sources import reference
from workers.stages.base import Stage, StageResult

HALF = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}


def run(stage: Stage) -> StageResult:
    """Write ``typed`` from ``onnx``.

    Raises:
        CastFailed: nothing in the graph can be cast.
        PrecisionMissed: none of its products can have int8 weights.
        InvalidData: the data don't fit the graph's inputs.
    """
    params = stage.params
    assert isinstance(params, CastParams)
    file, model = files.read_model(stage.inputs[Role.ONNX], stage.workdir)
    _refuse_quantized(model, params.precision)
    _refuse_own_operators(model, params.precision)
    files.load_weights(model, file)
    stage.progress("cast", None)
    path = stage.workdir / "typed.onnx"
    made = _MAKERS[params.precision](stage, model, params, path)
    typed, share = made.model, made.low / made.total
    print(
        f"{made.low} of {made.total} operators that could be are {params.precision} ({share:.0%})"
    )
    facts = CastFacts(
        precision=str(params.precision),
        low_precision_nodes=made.low,
        float_nodes=made.total,
        share=round(share, 4),
        opset=shapes.opset_of(typed),
        inputs=tensors(interface.input_specs(typed)),
        outputs=tensors(interface.output_specs(typed)),
        **made.ranges,
    )
    return StageResult(outputs={Role.TYPED: path}, facts=facts)


class _Ranges(TypedDict, total=False):
    """Of the facts, what says from which data the types were chosen."""

    own_types: list[str]
    data: str
    samples: int
    kept_in_fp32: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Typed:
    """A typed graph, as written."""

    model: onnx.ModelProto
    low: int  #: operators in the precision
    total: int  #: operators that could be
    ranges: _Ranges = field(default_factory=_Ranges)


def _in_half(stage: Stage, given: onnx.ModelProto, params: CastParams, path: Path) -> _Typed:
    typed, ranges = _half_of(stage, given, params)
    low, total = low_precision_nodes(typed, params.precision)
    interface.keep_axis_ranges(typed, interface.axis_ranges(given))
    files.save_model(typed, path)
    return _Typed(model=typed, low=low, total=total, ranges=ranges)


def _half_of(
    stage: Stage, given: onnx.ModelProto, params: CastParams
) -> tuple[onnx.ModelProto, _Ranges]:
    """The typed graph, and the data that its types are based on."""
    kind = HALF[params.precision]
    if _is_of(given, params.precision):
        print(f"the source computes in {params.precision} itself, and is taken as it is")
        return given, {"own_types": floats.float_types(given)}
    try:
        model = floats.in_fp32(_for_type(given, kind))
        magnitudes, data, count = _measured(stage, model, params)
        chosen = choosing.choose(model, magnitudes, kind, data)
        _refuse_unfit(model, magnitudes, chosen, params.precision, data)
        typed = casting.typed(model, chosen.types)
        check.check_model(typed)
    except FarmError:
        raise
    except Exception as err:  # onnx's inference and converter may raise anything
        raise CastFailed(
            f"this graph can't be cast to {params.precision}: {check.brief(err)}",
            hint="choose fp32, and report the graph's operators",
        ) from err
    if chosen.why:
        print(f"{len(chosen.why)} operators stay in fp32: {_listed(chosen.counts())}")
    print(f"ranges are from {count} samples of {data} data")
    return typed, {"data": str(data), "samples": count, "kept_in_fp32": chosen.counts()}


def _for_type(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    if kind == TensorProto.BFLOAT16 and shapes.opset_of(model) < casting.BF16_OPSET:
        return opsets.upgraded(model, casting.BF16_OPSET)
    return model


def _measured(
    stage: Stage, model: onnx.ModelProto, params: CastParams
) -> tuple[Magnitudes, DataKind, int]:
    inputs = interface.input_specs(model)
    profile = resolve_profiles(inputs, params.profiles, interface.axis_ranges(model))[0]
    batch = Batch.of(inputs, profile)
    samples, data = samples_for(
        stage.inputs,
        inputs,
        profile,
        hold_out=params.hold_out,
        preprocess=params.preprocess,
        fixed=params.fixed_inputs,
        source=lambda: reference.onnx_model(
            *files.read_model(stage.inputs[Role.ONNX], stage.workdir), {}, stage.workdir
        ),
    )
    size = batch.opt
    every = batch.split(samples, size, smallest=batch.min)
    batches: list[Arrays] = list(islice(every, max(1, MAX_SAMPLES // size)))
    count = sum(map(batch.count, batches))
    if not batches:  # too few for a batch, and enough to run the graph
        batches, count = [batch.repeated(samples, batch.min)], batch.count(samples)
    stage.progress("measure ranges", None)
    magnitudes = measured(model, batches, stage.workdir)
    return magnitudes, data, count


def _is_of(model: onnx.ModelProto, precision: Precision) -> bool:
    """Whether most of a graph's operators, and at least one product if any, already output this type."""
    low, total = low_precision_nodes(model, precision)
    products = low_precision_nodes(model, precision, PRODUCTS)
    return 2 * low > total and (products[0] > 0 or products[1] == 0)


def _refuse_unfit(
    model: onnx.ModelProto,
    magnitudes: Magnitudes,
    chosen: choosing.Chosen,
    precision: Precision,
    data: DataKind,
) -> None:
    """Refuse a cast that would leave every product, or everything, in fp32.

    Raises:
        CastFailed: suggests bf16 where that works.
    """
    nodes = list(walk.all_nodes(model.graph))
    products = {node.output[0] for node in nodes if node.op_type in PRODUCTS}
    if (products or set(chosen.types)) & set(chosen.types):
        return
    reasons = Counter(why for name, why in chosen.why.items() if name in products or not products)
    what = f"{len(products)} convolutions and matrix products" if products else "operators"
    hint = "choose fp32"
    if precision is Precision.FP16:
        wide = choosing.choose(
            _for_type(model, TensorProto.BFLOAT16), magnitudes, TensorProto.BFLOAT16, data
        )
        if products & set(wide.types):
            hint = "choose bf16, which has the range of fp32, on GPUs from sm_80 on; or fp32"
    raise CastFailed(
        f"none of the graph's {what} can be {precision}: {_listed(reasons)}", hint=hint
    )


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{why} ({count})" for why, count in sorted(reasons.items())) or "it has none"


def _with_integer_weights(
    _stage: Stage, given: onnx.ModelProto, params: CastParams, path: Path
) -> _Typed:
    try:
        model = floats.in_fp32(given)
        quantize_weights(model, path)
    except Exception as err:  # onnx.shape_inference and the quantiser raise their own error types
        raise CastFailed(
            f"ONNX Runtime can't quantise this graph: {check.brief(err)}",
            hint="choose fp32, or int8 with calibration data",
        ) from err
    typed = onnx.load(str(path))
    ranges = interface.axis_ranges(model)
    interface.keep_axis_ranges(typed, ranges)
    files.save_model(typed, path)
    profile = resolve_profiles(interface.input_specs(typed), params.profiles, ranges)[0]
    compute = compute_of(typed, shapes_at(profile, "opt"))
    low = compute.layers("int8")
    if not low:
        kinds = ", ".join(sorted({product.op_type for product in compute.products})) or "none"
        raise PrecisionMissed(
            f"none of the graph's products ({kinds}) multiplies by a constant matrix, and only such "
            "are quantised without calibration data: convolutions would be slower than in fp32",
            hint="choose int8 with calibration data, which has convolutions too, or fp32",
        )
    return _Typed(model=typed, low=low, total=len(compute.products))


#: Precision → function that makes its graph.
_MAKERS: Mapping[Precision, Callable[[Stage, onnx.ModelProto, CastParams, Path], _Typed]] = {
    Precision.FP16: _in_half,
    Precision.BF16: _in_half,
    Precision.INT8_DYNAMIC: _with_integer_weights,
}


def low_precision_nodes(
    model: onnx.ModelProto, precision: Precision, kinds: Collection[str] = ()
) -> tuple[int, int]:
    """Count operators that output ``precision``, and any floating-point type, including in bodies.

    Casts and constants don't count, since they compute nothing. Neither do operators with bodies: the
    operators inside count instead.

    Parameters:
        kinds: count only these.
    """
    types = shapes.types_of(model)
    given = [
        types.get(node.output[0])
        for node in walk.all_nodes(model.graph)
        if node.op_type not in ("Cast", "Constant") and not walk.bodies(node)
        if not kinds or node.op_type in kinds
    ]
    return given.count(HALF[precision]), sum(kind in floats.NAMES for kind in given)


def _refuse_own_operators(model: onnx.ModelProto, precision: Precision) -> None:
    own = check.own_operators(model)
    if own:
        raise CastFailed(
            f"the model has operators of ONNX Runtime's own ({', '.join(own)}), and what they give in "
            f"{precision} isn't known",
            hint="choose fp32 for onnxruntime:cpu, which takes it as it is; or submit the model "
            "from before ONNX Runtime optimised or quantised it, which can be had in every precision",
        )


def _refuse_quantized(model: onnx.ModelProto, precision: Precision) -> None:
    if walk.is_quantized(model):
        raise CastFailed(
            f"the model is quantised already, so it can't be cast to {precision}",
            hint="submit it as int8, which it is: it needs no calibration data, and what it doesn't "
            "quantise becomes fp16 for GPUs; or submit the model that it was made from",
        )
