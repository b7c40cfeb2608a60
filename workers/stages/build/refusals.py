"""Refuses graphs that TensorRT builds wrongly or not at all."""

from __future__ import annotations

from collections import defaultdict

import onnx

from farm.errors import EngineBuildFailed
from farm.specs.precision import Precision
from farm.stages import BuildParams
from workers.graphs import check, shapes, walk

_MATRIX_PRODUCTS = ("MatMul", "Gemm")


_KEPT = (
    "its values leave the range of fp16, or no data reach it, so it was kept in fp32: choose a GPU with "
    "bf16 (sm_80 and later)"
)


#: The hint for a type that sm_75 lacks, by requested precision.
_FOR_TURING = defaultdict(
    lambda: _KEPT,
    {
        Precision.FP32: "choose fp16 or int8 for this GPU",
        Precision.BF16: "choose fp16 or int8 for this GPU",
    },
)


def refuse_own_operators(params: BuildParams, model: onnx.ModelProto) -> None:
    own = check.own_operators(model)
    if own:
        raise EngineBuildFailed(
            f"{params.target} lacks operators of the model that ONNX Runtime alone has: {', '.join(own)}",
            hint="build it for onnxruntime:cpu; or submit the model from before ONNX Runtime optimised or "
            "quantised it",
        )


def refuse_given_outputs(model: onnx.ModelProto) -> None:
    given = {value.name for value in model.graph.input}
    through = [value.name for value in model.graph.output if value.name in given]
    if through:
        raise EngineBuildFailed(
            f"the output {through[0]!r} is the input of that name, which TensorRT can't give back",
            hint="leave that output out of the model: who calls it has the value; or give it another name",
        )


def refuse_on_turing(model: onnx.ModelProto, precision: Precision) -> None:
    """Refuse types that sm_75 builds wrongly or not at all, in the graph or in a body.

    Engines for it with bf16 have crashed, and dynamic fp32 matrix products have returned zeros.

    Raises:
        EngineBuildFailed: names the operator.
    """
    types = shapes.types_of(model)
    for node in walk.all_nodes(model.graph):
        kinds = {types.get(name) for name in [*node.input, *node.output] if name}
        if onnx.TensorProto.BFLOAT16 in kinds:
            raise EngineBuildFailed(
                f"sm_75 has no bf16, which {node.op_type} {node.name!r} computes in",
                hint=_FOR_TURING[precision],
            )
        if node.op_type in _MATRIX_PRODUCTS and types.get(node.input[0]) == onnx.TensorProto.FLOAT:
            raise EngineBuildFailed(
                f"TensorRT can't multiply matrices in fp32 on sm_75: {node.op_type} {node.name!r}",
                hint=_FOR_TURING[precision],
            )
