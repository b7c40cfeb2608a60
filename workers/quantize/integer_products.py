"""Products of 8-bit integers on CPUs: the operators that compute them, and which are exact in every kernel.

Without VNNI, ONNX Runtime's kernels add two products of unsigned and signed 8-bit numbers in 16 bits,
which saturate: 255 × 127 + 255 × 127 yields 32,767. Signed weights of at most 64 can't saturate: twice
255 × 64 is 32,640. They are exact in every kernel (AVX2, AVX-512, VNNI, AMX), and the fastest in each.
Unsigned by unsigned is exact too, at two to eight times the cost; so is signed by signed, which is
slower than fp32.

Source: platform.cpp of MLAS in ONNX Runtime 1.31; each kernel with the largest values, in tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from farm.errors import EngineBuildFailed
from workers.graphs import shapes, walk

#: The largest signed weight: two of its products with unsigned 8-bit numbers fit in 16 bits.
LARGEST_WEIGHT = 64
#: A larger bias, in units of the sum's scale, may overflow int32 together with the products.
LARGEST_BIAS = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Operands:
    """The input positions of an integer operator's operands and their zero points."""

    left: int | None  #: None: quantised inside the operator, unsigned
    left_zero: int | None
    right: int  #: must be unsigned if the left one is
    right_zero: int


#: ONNX Runtime's operators that multiply 8-bit integers. ConvInteger multiplies its weights by its input.
OPERANDS: Mapping[str, Operands] = {
    "ConvInteger": Operands(left=1, left_zero=3, right=0, right_zero=2),
    "DynamicQuantizeMatMul": Operands(left=None, left_zero=None, right=1, right_zero=3),
    "MatMulInteger": Operands(left=0, left_zero=2, right=1, right_zero=3),
    "MatMulIntegerToFloat": Operands(left=0, left_zero=4, right=1, right_zero=5),
    "QAttention": Operands(left=0, left_zero=6, right=1, right_zero=7),
    "QGemm": Operands(left=0, left_zero=2, right=3, right_zero=5),
    "QLinearConv": Operands(left=0, left_zero=2, right=3, right_zero=5),
    "QLinearMatMul": Operands(left=0, left_zero=2, right=3, right_zero=5),
}
#: Two products each: input by its weights, and previous state by its weights.
_RECURRENT: Mapping[str, Sequence[Operands]] = {
    "DynamicQuantizeLSTM": [
        Operands(left=None, left_zero=None, right=1, right_zero=9),
        Operands(left=None, left_zero=None, right=2, right_zero=11),
    ]
}
#: Operators that multiply integers, and their products.
PRODUCTS: Mapping[str, Sequence[Operands]] = {
    **{kind: [operands] for kind, operands in OPERANDS.items()},
    **_RECURRENT,
}


def refuse_saturation(engine: onnx.ModelProto, folder: Path = Path()) -> None:
    """Refuse an engine with an unsigned by signed integer product that could saturate.

    Parameters:
        folder: of the engine's external weights.

    Raises:
        EngineBuildFailed: names the operator.
    """
    tensors = _tensors_below(engine.graph)
    types = element_types(engine) | {name: tensor.data_type for name, tensor in tensors.items()}
    for node in walk.all_nodes(engine.graph):
        for operands in PRODUCTS.get(node.op_type, ()):
            left = _operand_type(node, operands.left, operands.left_zero, types)
            right = _operand_type(node, operands.right, operands.right_zero, types)
            weights = tensors.get(node.input[operands.right])
            if weights is not None and is_small(numpy_helper.to_array(weights, str(folder))):
                continue
            if right == TensorProto.INT8 and left != TensorProto.INT8:
                raise EngineBuildFailed(
                    f"{node.op_type} {node.name!r} multiplies unsigned by signed integers, which saturates "
                    "on processors without VNNI",
                    hint="quantise what is multiplied symmetrically by constant weights, or build the "
                    "unquantised model",
                )


def is_small(weights: NDArray[np.generic]) -> bool:
    """Whether these are signed weights so small that no two products saturate."""
    return weights.dtype == np.int8 and bool(
        (np.abs(weights.astype(np.int16)) <= LARGEST_WEIGHT).all()
    )


def _operand_type(
    node: onnx.NodeProto, slot: int | None, zero: int | None, types: Mapping[str, int]
) -> int | None:
    for index in (slot, zero):
        if index is not None and len(node.input) > index and node.input[index] in types:
            return types[node.input[index]]
    return None


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The known element types, including those in bodies."""
    found: dict[str, int] = {}

    def collect(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.tensor_type.elem_type:
                found[value.name] = value.type.tensor_type.elem_type
        for node in graph.node:
            for body in walk.bodies(node):
                collect(body)

    collect(shapes.inferred_of(model).graph)
    return found


def _tensors_below(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found[node.output[0]] = node.attribute[0].t
        for body in walk.bodies(node):
            found |= _tensors_below(body)
    return found


def fits_int32(
    bias: NDArray[np.generic],
    given: NDArray[np.generic] | None,
    weights: NDArray[np.generic] | None,
) -> bool:
    """Whether a bias, in units of the sum's scale, leaves room for the products."""
    assert given is not None
    assert weights is not None
    scale = given.astype(np.float64) * weights.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.abs(bias.astype(np.float64) / scale)
    return bool((units < LARGEST_BIAS).all())
