"""In which type a graph multiplies: how many of its products, and what share of all multiplications.

Strongly typed, a runtime computes what the graph says, so this is known before an engine has run. A
product is a convolution or a matrix product; nearly all of a network's arithmetic is in them. One of
dequantised tensors is computed in the quantised type: that is what Q/DQ around an operator means. One
that takes integers multiplies these, and adds them up in int32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto

from workers import graphs
from workers.batch import Shapes

_TYPES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",  # shifted by 128, as CPUs want it
    TensorProto.FLOAT8E4M3FN: "fp8",
}
_INTEGER = ("ConvInteger", "MatMulInteger")
PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", *_INTEGER)
#: What may stand between a DequantizeLinear and its product without making it another type.
_PASSED = ("Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A convolution or a matrix product."""

    name: str
    op_type: str
    type: str  #: ``int8``, ``fp16``, …
    macs: int | None  #: multiply-accumulates at the given shapes; None when a shape isn't known
    not_quantized: tuple[str, ...]  #: its inputs that aren't dequantised
    typed: str | None = None  #: the graph's type, where the engine computes in another
    layer: str | None = None  #: of the engine, that computes it


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The products of a graph."""

    products: Sequence[Product]

    def layers(self, type_: str) -> int:
        return sum(product.type == type_ for product in self.products)

    def as_facts(self) -> dict[str, object]:
        """``macs``, and for each type ``layers`` and ``share`` of the multiply-accumulates, 0 to 1.

        A share is None where shapes aren't known.
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
    """The products of a graph, those of its subgraphs left out.

    Parameters:
        shapes: of the inputs.
    """
    inferred = _at(model, shapes).graph
    values = {v.name: v.type.tensor_type for v in [*inferred.value_info, *inferred.input]}
    values |= {v.name: v.type.tensor_type for v in inferred.output}
    tensors = {tensor.name: tensor for tensor in inferred.initializer}
    lookup = _Lookup(
        makers={name: node for node in inferred.node for name in node.output},
        dims={name: _dims(value) for name, value in values.items()}
        | {name: tuple(tensor.dims) for name, tensor in tensors.items()},
        types={name: value.elem_type for name, value in values.items()}
        | {name: tensor.data_type for name, tensor in tensors.items()},
    )
    return Compute(
        products=[lookup.product(node) for node in inferred.node if node.op_type in PRODUCTS]
    )


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    makers: Mapping[str, onnx.NodeProto]
    dims: Mapping[str, tuple[int, ...] | None]
    types: Mapping[str, int]

    def product(self, node: onnx.NodeProto) -> Product:
        if node.op_type in _INTEGER:
            return Product(
                name=node.name or node.output[0],
                op_type=node.op_type,
                type=_name(self.types.get(node.input[1], TensorProto.UNDEFINED)),
                macs=self._macs(node),
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
            macs=self._macs(node),
            not_quantized=missing,
        )

    def _quantized_type(self, name: str) -> int | None:
        """The type that a tensor is dequantised from, or None when it isn't."""
        node = self.makers.get(name)
        while node is not None and node.op_type in _PASSED:
            node = self.makers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        if node.input[0] in self.types:
            return self.types[node.input[0]]
        return self.types.get(node.input[2]) if len(node.input) > 2 else TensorProto.UINT8

    def _macs(self, node: onnx.NodeProto) -> int | None:
        left, right = (self.dims.get(name) for name in node.input[:2])
        made = self.dims.get(node.output[0])
        if left is None or right is None or made is None:
            return None
        if node.op_type in ("Conv", "ConvInteger"):
            return prod(made) * prod(right[1:])
        if node.op_type == "ConvTranspose":
            return prod(left) * prod(right[1:])
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(made) * (left[-2] if transposed else left[-1])


def _at(model: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto:
    """A graph with shapes inferred at these of its inputs."""
    fixed = graphs.outline(model)
    for given in fixed.graph.input:
        for dim, size in zip(
            given.type.tensor_type.shape.dim, shapes.get(given.name, ()), strict=False
        ):
            dim.dim_value = size
    # What was inferred for any shape would hide what follows from these.
    del fixed.graph.value_info[:]
    for made in fixed.graph.output:
        for dim in made.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    return graphs.inferred(fixed, data_prop=True)


def _dims(value: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not value.HasField("shape"):
        return None
    dims = value.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _name(type_: int) -> str:
    return _TYPES.get(type_) or str(TensorProto.DataType.Name(type_)).lower()
