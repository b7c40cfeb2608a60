"""The types in which a graph multiplies: products per type, and the share of all multiplications.

A strongly typed runtime computes what the graph says, so this is known before an engine has run. A
product is a convolution, a matrix product or an operator made of them; they do nearly all of a
network's arithmetic. A product of dequantised tensors is computed in the quantised type: that is what
Q/DQ around an operator means. A product of integers multiplies them and accumulates in int32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import prod

import onnx
import onnx.inliner
from onnx import TensorProto, numpy_helper

from workers.graphs import files, walk
from workers.graphs.macs import (
    INTEGER_OPERATORS,
    RECURRENT,
    Dims,
    Leading,
    contracts,
    macs_of,
    operands_of,
)
from workers.graphs.shapes import inferred_of, outline_of
from workers.graphs.standard import STANDARD_DOMAINS
from workers.inputs.batch import Shapes

_TYPES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",  # shifted by 128, the form CPUs want
    TensorProto.FLOAT8E4M3FN: "fp8",
}
PRODUCTS = (
    "Conv",
    "ConvTranspose",
    "MatMul",
    "Gemm",
    "Einsum",
    "Attention",
    *RECURRENT,
    *INTEGER_OPERATORS,
)
#: Operators allowed between a DequantizeLinear and its product without changing the product's type.
_PASSED = ("Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A convolution or a matrix product."""

    name: str
    op_type: str
    type: str  #: ``int8``, ``fp16``, …
    macs: int | None  #: multiply-accumulates at the given shapes; None if a shape is unknown
    not_quantized: tuple[str, ...]  #: its inputs that aren't dequantised
    typed: str | None = None  #: the graph's type, if the engine computes in another
    layer: str | None = None  #: the engine layer that computes it


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The products of a graph."""

    products: Sequence[Product]

    def layers(self, type_: str) -> int:
        return sum(product.type == type_ for product in self.products)

    def as_facts(self) -> dict[str, object]:
        """``macs``, and per type ``layers`` and ``share`` of the multiply-accumulates, 0 to 1.

        A share is None if shapes are unknown.
        """
        by_type: defaultdict[str, list[Product]] = defaultdict(list)
        for product in self.products:
            by_type[product.type].append(product)
        known = all(product.macs is not None for product in self.products)
        total = sum(product.macs or 0 for product in self.products)
        types = {
            type_: {
                "layers": len(of_type),
                "share": round(sum(p.macs or 0 for p in of_type) / total, 4)
                if known and total
                else None,
            }
            for type_, of_type in by_type.items()
        }
        return {"macs": total if known else None, "types": types}


def compute_of(model: onnx.ModelProto, shapes: Shapes) -> Compute:
    """The products of a graph and of its bodies.

    Every branch of an If counts as if it ran. The body of a Loop or Scan counts once per iteration; if
    the number of iterations is unknown, its multiply-accumulates are too.

    Parameters:
        shapes: of the inputs.
    """
    fixed = _at(model, shapes)
    nothing = _Lookup(makers={}, dims={}, types={}, values={}, opsets=fixed.opset_import)
    return Compute(products=list(_products(fixed.graph, nothing, 1)))


def _products(graph: onnx.GraphProto, outside: _Lookup, times: int | None) -> Iterator[Product]:
    """The products of a graph that runs ``times`` times and sees the tensors of enclosing graphs."""
    lookup = outside.within(graph)
    for node in graph.node:
        if node.domain in STANDARD_DOMAINS and lookup.is_product(node):
            product = lookup.product(node)
            often = None if product.macs is None or times is None else product.macs * times
            yield replace(product, macs=often)
        runs = lookup.runs(node)
        both = None if times is None or runs is None else times * runs
        for body in walk.bodies(node):
            inside = lookup.body_of_loop(node, body) if node.op_type == "Loop" else body
            yield from _products(inside, lookup, both)


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    """Known facts about the tensors visible to a graph."""

    makers: Mapping[str, onnx.NodeProto]
    dims: Dims
    types: Mapping[str, int]
    values: Mapping[str, onnx.TensorProto]  #: constants available here
    opsets: Sequence[onnx.OperatorSetIdProto]
    leading: Leading = field(default_factory=dict)

    def within(self, graph: onnx.GraphProto) -> _Lookup:
        """This lookup plus a graph's own tensors, which hide outer ones of the same name."""
        infos = [*graph.value_info, *graph.input, *graph.output]
        told = {v.name: v.type.tensor_type for v in infos if v.type.HasField("tensor_type")}
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        constants = {
            node.output[0]: attribute.t
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        return _Lookup(
            makers=dict(self.makers) | {out: node for node in graph.node for out in node.output},
            dims=dict(self.dims)
            | {name: _dims(value) for name, value in told.items()}
            | {name: tuple(tensor.dims) for name, tensor in tensors.items()},
            types=dict(self.types)
            | {name: value.elem_type for name, value in told.items()}
            | {name: tensor.data_type for name, tensor in tensors.items()},
            values=dict(self.values) | tensors | constants,
            opsets=self.opsets,
            leading=dict(self.leading) | {name: _leading(value) for name, value in told.items()},
        )

    def body_of_loop(self, node: onnx.NodeProto, body: onnx.GraphProto) -> onnx.GraphProto:
        """The body with its shapes, if its state keeps its initial shape.

        ONNX infers none, since a state's shape may change between iterations.
        """
        alone = onnx.ModelProto(ir_version=10, opset_import=self.opsets)
        alone.graph.CopyFrom(body)
        alone.graph.name = alone.graph.name or "body"
        for value in [*alone.graph.value_info, *alone.graph.output]:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        pairs = zip(alone.graph.input[2:], node.input[2:], strict=False)
        states = [(value, start) for value, start in pairs if start in self.types]
        for value, start in states:
            _set_type(value, self.types[start], self.dims.get(start))
        own = {value.name for value in alone.graph.input}
        made = {name for inner in body.node for name in inner.output}
        given = {tensor.name for tensor in body.initializer}
        used = {name for inner in walk.all_nodes(body) for name in inner.input}
        for name in sorted(used & set(self.types) - own - made - given):
            _set_type(alone.graph.input.add(name=name), self.types[name], self.dims.get(name))
        try:
            inferred = inferred_of(alone, data_prop=True).graph
        except onnx.shape_inference.InferenceError:
            return body  # its shapes stay unknown
        ends = dict(zip((one.name for one in body.input[2:]), inferred.output[1:], strict=False))
        kept = all(
            _dims(value.type.tensor_type) == _dims(ends[value.name].type.tensor_type)
            for value, _ in states
            if value.name in ends
        )
        return inferred if kept else body

    def is_product(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Einsum":
            return len(node.input) > 1 and contracts(node)
        return node.op_type in PRODUCTS

    def runs(self, node: onnx.NodeProto) -> int | None:
        """How often a node runs each of its bodies; None if that is only known at run time."""
        if node.op_type == "Scan":
            return self._scan_length(node)
        if node.op_type != "Loop":
            return 1
        trips = self._number(node.input[0]) if node.input and node.input[0] else None
        [body] = walk.bodies(node)
        return trips if trips is not None and self._never_ends_early(node, body) else None

    def _scan_length(self, node: onnx.NodeProto) -> int | None:
        count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
        axes = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), [])
        scanned = self.dims.get(node.input[len(node.input) - count]) if count else None
        axis = axes[0] if axes else 0
        return scanned[axis] if scanned and -len(scanned) <= axis < len(scanned) else None

    def _never_ends_early(self, node: onnx.NodeProto, body: onnx.GraphProto) -> bool:
        """Whether the condition stays at its initial value, and that value is true."""
        given = node.input[1] if len(node.input) > 1 else ""
        if given and not self._number(given):
            return False
        makers = {name: maker for maker in body.node for name in maker.output}
        name = body.output[0].name
        while name in makers and makers[name].op_type == "Identity":
            name = makers[name].input[0]
        return name == body.input[1].name or bool(self.within(body)._number(name))

    def _number(self, name: str) -> int | None:
        """The value of a one-element constant; booleans become 0 or 1."""
        tensor = self.values.get(name)
        if tensor is None or prod(tensor.dims) != 1 or files.is_external(tensor):
            return None
        return int(numpy_helper.to_array(tensor).reshape(-1)[0])

    def product(self, node: onnx.NodeProto) -> Product:
        if node.op_type in INTEGER_OPERATORS:
            return Product(
                name=node.name or node.output[0],
                op_type=node.op_type,
                type=_name(self.types.get(operands_of(node)[1], TensorProto.UNDEFINED)),
                macs=macs_of(node, self.dims, self.leading),
                not_quantized=(),
            )
        quantized = [self._quantized_type(name) for name in node.input[:2]]
        missing = tuple(
            name for name, type_ in zip(node.input, quantized, strict=False) if not type_
        )
        type_ = self.types.get(node.output[0], TensorProto.UNDEFINED)
        if type_ == TensorProto.UNDEFINED:
            type_ = self.types.get(node.input[0], TensorProto.UNDEFINED)
        return Product(
            name=node.name or node.output[0],
            op_type=node.op_type,
            type=_name(type_) if missing else _name(quantized[0] or TensorProto.UNDEFINED),
            macs=macs_of(node, self.dims, self.leading),
            not_quantized=missing,
        )

    def _quantized_type(self, name: str) -> int | None:
        """The type from which a tensor is dequantised; None if it isn't."""
        node = self.makers.get(name)
        while node is not None and node.op_type in _PASSED:
            node = self.makers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        if node.input[0] in self.types:
            return self.types[node.input[0]]
        return self.types.get(node.input[2]) if len(node.input) > 2 else TensorProto.UINT8


def _set_type(value: onnx.ValueInfoProto, type_: int, dims: Sequence[int] | None) -> None:
    tensor = value.type.tensor_type
    tensor.elem_type = type_
    tensor.ClearField("shape")
    if dims is not None:
        tensor.shape.SetInParent()
        for size in dims:
            tensor.shape.dim.add(dim_value=size)


def _at(model: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto:
    """A graph with shapes inferred for these input shapes."""
    fixed = outline_of(model)
    if fixed.functions:
        fixed = onnx.inliner.inline_local_functions(fixed)
    for given in fixed.graph.input:
        for dim, size in zip(
            given.type.tensor_type.shape.dim, shapes.get(given.name, ()), strict=False
        ):
            dim.dim_value = size
    # Shapes inferred for arbitrary inputs would hide those that follow from these.
    del fixed.graph.value_info[:]
    for made in fixed.graph.output:
        for dim in made.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    return inferred_of(fixed, data_prop=True)


def _dims(value: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not value.HasField("shape"):
        return None
    dims = value.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _leading(value: onnx.TypeProto.Tensor) -> tuple[int, ...]:
    """The sizes of the leading axes, up to the first unknown one."""
    known = takewhile(lambda dim: dim.HasField("dim_value"), value.shape.dim)
    return tuple(dim.dim_value for dim in known)


def _name(type_: int) -> str:
    return _TYPES.get(type_) or str(TensorProto.DataType.Name(type_)).lower()
