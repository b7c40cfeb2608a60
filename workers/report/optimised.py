"""The products of an ONNX Runtime engine and their types, read from its optimised graph.

The typed graph says what could be computed in integers; only the runtime's own graph shows where it found
integer kernels. Its own operators are translated to standard ones here, from which their shapes and
multiplications follow.

Source: ContribOperators.md of ONNX Runtime 1.31.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from workers.graphs import walk
from workers.graphs.compute import Compute, compute_of
from workers.graphs.shapes import outline_of
from workers.graphs.standard import STANDARD_DOMAINS
from workers.inputs.batch import Shapes
from workers.quantize.integer_products import OPERANDS

SOURCE = "optimised-graph"

_OWN = "com.microsoft"
_FLOAT, _UINT8, _INT32 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32
#: Runtime operator → the standard operator with the same shapes, and the inputs that this takes.
_LIKE: Mapping[str, tuple[str, Sequence[int]]] = {
    "BiasDropout": ("Identity", [0]),
    "BiasGelu": ("Add", [0, 1]),
    "BiasSoftmax": ("Add", [0, 1]),
    # As a cast, since values still dequantised here are multiplied in floats.
    "DequantizeLinear": ("CastLike", [0, 1]),
    "FastGelu": ("Identity", [0]),
    "FusedConv": ("Conv", [0, 1, 2]),
    "FusedGemm": ("Gemm", [0, 1, 2]),
    "Gelu": ("Identity", [0]),
    "QLinearAdd": ("Add", [0, 3]),
    "QLinearAveragePool": ("AveragePool", [0]),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", [0]),
    "QLinearLeakyRelu": ("Identity", [0]),
    "QLinearMul": ("Add", [0, 3]),
    "QLinearSigmoid": ("Identity", [0]),
    "QLinearSoftmax": ("Identity", [0]),
    "QLinearWhere": ("Where", [0, 1, 4]),
    "QuantizeLinear": ("QuantizeLinear", [0, 1, 2]),
    "QuickGelu": ("Identity", [0]),
    "RotaryEmbedding": ("Identity", [0]),
    "SimplifiedLayerNormalization": ("Identity", [0]),
    "SkipLayerNormalization": ("Identity", [0]),
    "SkipSimplifiedLayerNormalization": ("Identity", [0]),
}
#: Their last output is the sum that they normalise.
_SKIPS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_CONVOLUTIONS = ("ConvInteger", "QLinearConv")
_ROUNDING = ("QLinearConv", "QLinearMatMul")  #: they output 8-bit integers
#: MatMulNBits multiplies 8-bit integers at this accuracy level, and floats below it.
_INTEGERS = 4
_QUERY, _KEY, _VALUE = range(3)

Nodes = Iterator[onnx.NodeProto]


def compute_of_engine(engine: onnx.ModelProto, shapes: Shapes, typed: Compute) -> Compute:
    """The products of an optimised graph, including its bodies.

    Parameters:
        shapes: of the inputs.
        typed: the products of the typed graph it was made from.
    """
    outline = outline_of(engine)
    kinds = {node.name or node.output[0]: node.op_type for node in walk.all_nodes(outline.graph)}
    standard = _Standard()
    standard.rewrite(outline.graph)
    outline.graph.input.extend(standard.weights)
    found = compute_of(outline, shapes)
    before = {product.name: product.type for product in typed.products}
    products = [
        replace(
            product,
            op_type=kinds.get(product.name, product.op_type),
            typed=_if_other(before.get(product.name), product.type),
            not_quantized=(),
            layer=product.name,
        )
        for product in found.products
    ]
    return replace(found, products=products)


def _if_other(typed: str | None, type_: str) -> str | None:
    return None if typed == type_ else typed


class _Standard:
    """Translates ONNX Runtime's own operators to standard ones, above all products."""

    def __init__(self) -> None:
        self.weights: list[onnx.ValueInfoProto] = []  #: weights stored in other shapes
        self._ways: Mapping[str, Callable[[onnx.NodeProto], Nodes]] = {
            **dict.fromkeys(_LIKE, _like),
            **dict.fromkeys(OPERANDS, _multiplied),
            "Attention": _attended,
            "FusedMatMul": _turned,
            "MatMulNBits": self._of_few_bits,
            "MultiHeadAttention": _attended,
            "QAttention": _attended,
            "QGemm": _quantized_gemm,
            "QLinearConcat": _joined,
        }

    def rewrite(self, graph: onnx.GraphProto) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            for body in walk.bodies(node):
                self.rewrite(body)
            if node.op_type in self._ways and _is_put_otherwise(node):
                nodes += self._ways[node.op_type](node)
            else:
                nodes.append(node)
        copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copied)

    def _of_few_bits(self, node: onnx.NodeProto) -> Nodes:
        """A product with packed weights: [K, N] by its attributes."""
        given = {a.name: a.i for a in node.attribute}
        is_integer = given.get("accuracy_level", 0) == _INTEGERS
        name = f"{node.output[0]}__weights"
        kind = _UINT8 if is_integer else _FLOAT
        self.weights.append(helper.make_tensor_value_info(name, kind, [given["K"], given["N"]]))
        if is_integer:
            yield from _product(node, "MatMulInteger", node.input[0], name, _FLOAT)
        else:
            yield _named(node, "MatMul", [node.input[0], name], node.output[:1])


def _is_put_otherwise(node: onnx.NodeProto) -> bool:
    """Whether a node needs translating; a standard operator of the same name, such as Gelu, doesn't."""
    is_standard = node.domain in STANDARD_DOMAINS and onnx.defs.has(node.op_type)
    return not is_standard or node.op_type in OPERANDS or node.op_type == "DequantizeLinear"


def _named(
    node: onnx.NodeProto, kind: str, inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.NodeProto:
    """A standard operator under a node's name, with the attributes that it supports."""
    made = helper.make_node(kind, inputs, outputs, name=node.name or node.output[0])
    known = onnx.defs.get_schema(kind).attributes
    made.attribute.extend(attribute for attribute in node.attribute if attribute.name in known)
    return made


def _like(node: onnx.NodeProto) -> Nodes:
    kind, slots = _LIKE[node.op_type]
    inputs = [node.input[slot] for slot in slots if slot < len(node.input)]
    yield _named(node, kind, inputs, node.output[:1])
    if node.op_type in _SKIPS and len(node.output) > 1:
        yield helper.make_node("Identity", [node.input[0]], [node.output[-1]])


def _multiplied(node: onnx.NodeProto) -> Nodes:
    """An integer operator on 8-bit tensors, signed or unsigned."""
    operands = OPERANDS[node.op_type]
    kind = "ConvInteger" if node.op_type in _CONVOLUTIONS else "MatMulInteger"
    left, right = (0 if operands.left is None else operands.left), operands.right
    if node.op_type == "ConvInteger":
        left, right = right, left
    gives = _UINT8 if node.op_type in _ROUNDING else _FLOAT
    if node.op_type in ("ConvInteger", "MatMulInteger"):
        gives = _INT32
    yield from _product(node, kind, node.input[left], node.input[right], gives)


def _product(node: onnx.NodeProto, kind: str, left: str, right: str, gives: int) -> Nodes:
    made = node.output[0]
    for name, side in ((left, "left"), (right, "right")):
        yield helper.make_node("Cast", [name], [f"{made}__{side}"], to=_UINT8)
    yield _named(node, kind, [f"{made}__left", f"{made}__right"], [f"{made}__sum"])
    yield helper.make_node("Cast", [f"{made}__sum"], [made], to=gives)


def _quantized_gemm(node: onnx.NodeProto) -> Nodes:
    turned = {a.name for a in node.attribute if a.name in ("transA", "transB") and a.i}
    left, right = node.input[0], node.input[3]
    if "transA" in turned:
        left = yield from _transposed(left, f"{node.output[0]}__a")
    if "transB" in turned:
        right = yield from _transposed(right, f"{node.output[0]}__b")
    rounds = len(node.input) > 7 and bool(node.input[7])
    yield from _product(node, "MatMulInteger", left, right, _UINT8 if rounds else _FLOAT)


def _turned(node: onnx.NodeProto) -> Nodes:
    """A MatMul of transposed operands. Transposed batches aren't distinguished, and stay unknown."""
    given = {a.name: a.i for a in node.attribute}
    left, right = node.input[:2]
    if given.get("transBatchA") or given.get("transBatchB"):
        left = f"{node.output[0]}__unknown"
    if given.get("transA"):
        left = yield from _transposed(left, f"{node.output[0]}__a")
    if given.get("transB"):
        right = yield from _transposed(right, f"{node.output[0]}__b")
    yield _named(node, "MatMul", [left, right], node.output[:1])


def _transposed(name: str, made: str) -> Generator[onnx.NodeProto, None, str]:
    # Works for any rank: it isn't known here.
    yield helper.make_node("Einsum", [name], [made], equation="...ij->...ji")
    return made


def _attended(node: onnx.NodeProto) -> Nodes:
    """Queries times keys, and the result times values; preceded by the projection if it is included.

    The number of heads doesn't change the number of multiplications.
    """
    made = node.output[0]
    parts = [f"{made}__{part}" for part in ("query", "key", "value")]
    if node.op_type == "MultiHeadAttention":
        parts = list(node.input[:3])
    else:
        projected = f"{made}__projected"
        if node.op_type == "QAttention":
            inner = onnx.NodeProto(name=node.name, output=[projected])
            yield from _product(inner, "MatMulInteger", node.input[0], node.input[1], _FLOAT)
        else:
            yield _named(node, "MatMul", node.input[:2], [projected])
        yield helper.make_node("Split", [projected], parts, axis=-1, num_outputs=3)
    keys = yield from _transposed(parts[_KEY], f"{made}__keys")
    scores = f"{made}__scores"
    name = node.name or made
    yield helper.make_node("MatMul", [parts[_QUERY], keys], [scores], name=f"{name} (scores)")
    yield helper.make_node("MatMul", [scores, parts[_VALUE]], [made], name=f"{name} (values)")


def _joined(node: onnx.NodeProto) -> Nodes:
    yield _named(node, "Concat", node.input[2::3], node.output[:1])
