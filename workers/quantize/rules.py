"""Which products of a graph stay in floats, as a table: the rule, who applies it, and where it comes from.

ModelOpt applies most of them when it places Q/DQ; the farm adds those that cost nothing. The last ones are
a runtime's: they change no graph, for one calibration serves every architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from workers.graphs import walk
from workers.graphs.compute import PRODUCTS, Compute, compute_of
from workers.graphs.macs import RECURRENT
from workers.inputs.batch import Shapes
from workers.quantize.unquantised import sizes_of

SMALLEST_SIDE = 16
#: Heads may do so much of the multiplications that leaving them in floats costs nothing.
HEADS_SHARE = 0.05
_FEWEST_HEADS = 2
_MODELOPT = "nvidia-modelopt 0.47, modelopt/onnx/quantization/graph_utils.py"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Why a product stays in floats."""

    name: str
    what: str
    by: str  #: who applies it: ModelOpt, the farm, or a runtime
    source: str


HEAD = Rule(
    name="head of a detector",
    what="several convolutions behind which nothing multiplies, of at most "
    f"{HEADS_SHARE:.0%} of all multiplications: no later sum averages their errors out, and boxes and "
    "scores share an output whose ranges differ",
    by="the farm",
    source="TAO Quant, Skipping Layers From Quantization: output heads are sensitive; TAO Toolkit 4, QAT: "
    "output regression nodes aren't quantised",
)
SMALL = Rule(
    name="small product",
    what=f"a matrix product with K or N below {SMALLEST_SIDE}: integer tensor cores need that much",
    by="ModelOpt",
    source=f"{_MODELOPT}, _MIN_MATMUL_DIM",
)
VECTOR = Rule(
    name="product with a vector",
    what="a matrix product with one row or column: it waits for memory, and runs on no tensor core",
    by="ModelOpt",
    source=f"{_MODELOPT}, find_nodes_from_matmul_to_exclude",
)
NARROW = Rule(
    name="narrow convolution",
    what=f"fewer than {SMALLEST_SIDE} channels on a side, unless they fill eights: TensorRT has no integer "
    "kernel for it, and would convert before and after",
    by="ModelOpt",
    source=f"{_MODELOPT}, find_nodes_from_convs_to_exclude",
)
NOT_CONSTANT = Rule(
    name="weights that aren't constant",
    what="a convolution whose weights are computed has no scale per channel",
    by="ModelOpt",
    source=f"{_MODELOPT}, find_nodes_from_convs_to_exclude",
)
BODY = Rule(
    name="in a body",
    what="products in the body of an If, a Loop or a Scan",
    by="ModelOpt",
    source="nvidia-modelopt 0.47 visits the main graph alone",
)
RECURRENCE = Rule(
    name="recurrent",
    what="GRU, LSTM and RNN have no operator on Q/DQ",
    by="ModelOpt",
    source="ONNX Runtime's QDQRegistry, which ModelOpt extends",
)
CONVERSION = Rule(
    name="would convert",
    what="an operator whose neighbours stay in floats, or that ModelOpt's patterns fuse into one that "
    "does: quantising it alone converts twice",
    by="ModelOpt",
    source="nvidia-modelopt 0.47, modelopt/onnx/quantization/partitioning.py",
)
TURING = Rule(
    name="half on sm_75",
    what="TensorRT-RTX multiplies in fp16 for sm_75 what Q/DQ says is int8, all convolutions among it: "
    "choose fp16 for these GPUs, which is as fast and more exact",
    by="TensorRT-RTX",
    source="plans of TensorRT-RTX 1.7.1: 64 convolutions of a detector are int8 × int8 for sm_89 and "
    "sm_120, half × half for sm_75",
)
#: In the order in which they are tried on a product.
RULES = (BODY, RECURRENCE, NOT_CONSTANT, SMALL, VECTOR, NARROW, HEAD, CONVERSION, TURING)


def left_in_float(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Rule's name → the products of a quantised graph that it left in floats, by name."""
    last = _names([node for node in _last(model.graph) if node.op_type == "Conv"])
    heads = last if len(last) >= _FEWEST_HEADS else []
    sizes = sizes_of(model)
    inner = {node.output[0] for node in _inner(model.graph)}
    floats = {p.name for p in compute_of(model, {}).products if p.type not in ("int8", "fp8")}
    found: dict[str, list[str]] = {}
    for node in walk.all_nodes(model.graph):
        name = node.name or (node.output[0] if node.output else "")
        if node.op_type in PRODUCTS and name in floats:
            rule = _rule_of(node, sizes, is_inner=node.output[0] in inner, is_head=name in heads)
            found.setdefault(rule.name, []).append(name)
    return found


def _rule_of(
    node: onnx.NodeProto, sizes: Mapping[str, list[int]], *, is_inner: bool, is_head: bool
) -> Rule:
    if is_inner:
        return BODY
    if node.op_type in RECURRENT:
        return RECURRENCE
    if node.op_type == "Conv":
        rule = _rule_of_convolution(sizes.get(node.input[1]))
        return HEAD if is_head and rule is CONVERSION else rule
    if node.op_type in ("MatMul", "Gemm"):
        sides = [side for name in node.input[:2] for side in sizes.get(name, [])[-2:]]
        if 1 in sides:
            return VECTOR
        if min(sides, default=SMALLEST_SIDE) < SMALLEST_SIDE:
            return SMALL
    return CONVERSION


def _rule_of_convolution(weights: list[int] | None) -> Rule:
    if weights is None or len(weights) < 2:
        return NOT_CONSTANT
    return NARROW if min(weights[:2]) < SMALLEST_SIDE else CONVERSION


def without_heads(model: onnx.ModelProto, shapes: Shapes) -> tuple[str, ...]:
    """Take a detector's head convolutions out of a quantised graph. Returns their names.

    Parameters:
        shapes: of the graph's inputs.
    """
    last = [node for node in _last(model.graph) if node.op_type == "Conv"]
    if len(last) < _FEWEST_HEADS or not _is_light(compute_of(model, shapes), _names(last)):
        return ()
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in last:
        for at, name in enumerate(node.input):
            for kind in ("DequantizeLinear", "QuantizeLinear"):
                maker = makers.get(name)
                if maker is not None and maker.op_type == kind:
                    name = maker.input[0]
            node.input[at] = name
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        _drop_untaken(model.graph, kind)
    walk.drop_unused(model.graph)
    return tuple(_names(last))


def _drop_untaken(graph: onnx.GraphProto, kind: str) -> None:
    used = {name for node in walk.all_nodes(graph) for name in node.input}
    used |= {value.name for value in graph.output}
    walk.drop_nodes(graph, lambda node: node.op_type == kind and node.output[0] not in used)


def _is_light(compute: Compute, names: Collection[str]) -> bool:
    macs = {product.name: product.macs for product in compute.products}
    if any(value is None for value in macs.values()) or not set(names) <= macs.keys():
        return False
    total = sum(value or 0 for value in macs.values())
    return sum(macs[name] or 0 for name in names) <= HEADS_SHARE * total


def _names(nodes: Collection[onnx.NodeProto]) -> list[str]:
    return [node.name or node.output[0] for node in nodes]


def _last(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products from which no other product is reached."""
    reaches: set[str] = set()  #: tensors that a product depends on
    found = []
    for node in reversed(graph.node):
        is_product = node.op_type in PRODUCTS or bool(walk.bodies(node))
        reached = any(name in reaches for name in node.output)
        if is_product and not reached:
            found.append(node)
        if is_product or reached:
            reaches.update(node.input)
    return found


def _inner(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        for body in walk.bodies(node):
            yield from walk.all_nodes(body)
