"""In which type an engine multiplies, by its own layers: what the builder made of the typed graph.

A layer of the engine names the ONNX nodes that it computes, so that each product of the graph can be
found there. Its type is that of the kernel's operands where the kernel's name has them
(``sm80_xmma_gemm_i8i8_i8i32_f32_…``), else that of the layer's first input: the others may be biases
and residuals. Where a layer converts its input itself, or has several products, its inputs tell nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from farm.errors import PrecisionMissed
from farm.schemas import Layer
from farm.specs import Precision
from workers.compute import PRODUCTS, Compute, Product

_OPERAND = {
    "i8": "int8",
    "u8": "int8",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "f16": "fp16",
    "bf16": "bf16",
    "tf32": "tf32",
    "f32": "fp32",
    "f64": "fp64",
}
_KERNEL = re.compile(rf"_({'|'.join(_OPERAND)})(?:{'|'.join(_OPERAND)}|i32)_")
_TYPES = {"float": "fp32", "half": "fp16", "uint8": "int8"}
#: Of the layers that name a product, the one that computes it.
_MULTIPLIES = re.compile("conv|gemm|matmul|matrix|attention|mha|fusion", re.IGNORECASE)
_MOVES = re.compile("reformat|reshape|shuffle|noop|constant|copy|cast|quantize", re.IGNORECASE)
_CONVERSIONS = {"Cast", "QuantizeLinear", "DynamicQuantizeLinear"}
_NAMED = 3


def of_engine(
    compute: Compute, layers: Sequence[Layer], typed: onnx.ModelProto
) -> tuple[Compute, int]:
    """The same products in the types that the engine computes them in, and how many were found there.

    Those that weren't keep the graph's type.

    Parameters:
        compute: of the typed graph.
    """
    naming: defaultdict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        for operator in layer.operators:
            naming[operator].append(layer)
    kinds = {node.name or f"node_of_{node.output[0]}": node.op_type for node in typed.graph.node}
    products = [_found(product, naming, kinds) for product in compute.products]
    return Compute(products=products), sum(one.layer is not None for one in products)


def _found(
    product: Product, naming: Mapping[str, Sequence[Layer]], kinds: Mapping[str, str]
) -> Product:
    # TensorRT's parser calls a node without a name by its first output.
    candidates = naming.get(product.name) or naming.get(f"node_of_{product.name}") or ()
    ranked = sorted((one for one in candidates if _rank(one) < _NEVER), key=_rank)
    type_ = _type(ranked[0], kinds) if ranked else None
    if type_ is None:
        return product
    other = product.typed if type_ == product.type else product.type
    return replace(product, type=type_, typed=other, layer=ranked[0].name)


_NEVER = 3


def _rank(layer: Layer) -> int:
    if layer.kernel and _KERNEL.search(layer.kernel):
        return 0
    if _MULTIPLIES.search(layer.type):
        return 1
    return _NEVER if _MOVES.search(layer.type) else 2


def _type(layer: Layer, kinds: Mapping[str, str]) -> str | None:
    kernel = _KERNEL.search(layer.kernel or "")
    if kernel:
        return _OPERAND[kernel[1]]
    inside = [kinds.get(operator) for operator in layer.operators]
    if sum(kind in PRODUCTS for kind in inside) > 1 or not _CONVERSIONS.isdisjoint(inside):
        return None
    first = layer.inputs[0].type if layer.inputs else None
    return _TYPES.get(first, first) if first else None


def check_engine(precision: Precision, compute: Compute) -> None:
    """Refuse an engine that multiplies nothing in the type which it would be called by.

    Raises:
        PrecisionMissed: saying what the builder chose instead.
    """
    if precision is Precision.FP32 or not compute.products or compute.layers(precision.computes_in):
        return
    instead = "; ".join(
        f"{one.op_type} {one.name!r} runs in {one.type}" for one in compute.products[:_NAMED]
    )
    raise PrecisionMissed(
        f"the engine computes none of its {len(compute.products)} convolutions and matrix "
        f"products in {precision}: {instead}",
        hint="this GPU has no kernel for these shapes in that type: choose fp16",
    )
