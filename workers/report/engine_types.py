"""The types an engine multiplies in, from its own layers: what the builder made of the typed graph.

An engine's layer names the ONNX nodes that it computes, so each of the graph's products can be found
there. Its type is that of the kernel's operands if the kernel's name has them
(``sm80_xmma_gemm_i8i8_i8i32_f32_…``), otherwise that of the layer's first input: the others may be biases
and residuals. If a layer converts its input itself, or has several products, its inputs don't show it.

A TensorRT-RTX plan lists the operands of each step: a product computes in the type of its first two.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from farm.errors import PrecisionMissed
from farm.reports.layers import Layer
from farm.specs.precision import Precision
from workers.backends.trt.rtx_plan import RtxPlan
from workers.graphs.compute import PRODUCTS, Compute, Product

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
#: Tells the layer that computes a product from others that name it.
_MULTIPLIES = re.compile("conv|gemm|matmul|matrix|attention|mha|fusion", re.IGNORECASE)
_MOVES = re.compile("reformat|reshape|shuffle|noop|constant|copy|cast|quantize", re.IGNORECASE)
_CONVERSIONS = {"Cast", "QuantizeLinear", "DynamicQuantizeLinear"}
_NAMED = 3


def of_engine(
    compute: Compute, layers: Sequence[Layer], typed: onnx.ModelProto
) -> tuple[Compute, int]:
    """The same products in the types the engine computes them in, and how many were found there.

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
    # TensorRT's parser names an unnamed node after its first output.
    candidates = naming.get(product.name) or naming.get(f"node_of_{product.name}") or ()
    ranked = sorted((one for one in candidates if _rank(one) < _NEVER), key=_rank)
    type_ = _type(ranked[0], kinds) if ranked else None
    if type_ is None:
        return product
    other = product.typed if type_ == product.type else product.type
    return replace(product, type=type_, typed=other, layer=ranked[0].name)


#: The steps of a plan that multiply their first two operands.
_MULTIPLYING = {"convolution", "deconvolution", "fully_connected"}
#: Fused kernels that contain products, by the names of their parts.
_FUSED = re.compile(r"gemm|mha|attention|conv|_Fc|Corr|Mul[A-Z]\w*Sum|MulSum", re.ASCII)
#: Parts that convert types: such a kernel doesn't multiply its operands as given.
_CONVERTING = re.compile(r"Cast|Roun|Quan")
#: Two types are both converted to the earlier one.
_WIDTH = ("fp64", "fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4")


def of_plan(compute: Compute, plan: RtxPlan) -> tuple[Compute, int]:
    """The same products in the types of a plan's steps, and how many were found there.

    Those that weren't keep the graph's type.

    Parameters:
        compute: of the typed graph.
    """
    naming: defaultdict[str, list[Layer]] = defaultdict(list)
    for layer in (*plan.layers, *plan.inner):
        # A node in a body is "NODE | body (then_branch) | outer (If)".
        for operator in dict.fromkeys(one.partition(" | ")[0] for one in layer.operators):
            naming[operator].append(layer)
    products = [_in_plan(product, naming) for product in compute.products]
    return Compute(products=products), sum(one.layer is not None for one in products)


def _in_plan(product: Product, naming: Mapping[str, Sequence[Layer]]) -> Product:
    candidates = naming.get(product.name) or naming.get(f"node_of_{product.name}") or ()
    steps = [one for one in candidates if one.type in _MULTIPLYING]
    steps = steps or [one for one in candidates if _FUSED.search(one.name)]
    types = {_operands_type(one) for one in steps}
    [type_] = types if len(types) == 1 else (None,)
    if type_ is None:
        return product
    other = product.typed if type_ == product.type else product.type
    return replace(product, type=type_, typed=other, layer=steps[0].name)


def _operands_type(step: Layer) -> str | None:
    """The type a step multiplies in; None if its operands don't show it."""
    if step.type in _MULTIPLYING:
        operands = [one.type for one in step.inputs[:2]]
    elif _CONVERTING.search(step.name):
        return None
    else:
        # A kernel's arguments include sizes, conditions and scalars.
        tensors = (one for one in step.inputs if one.shape and one.shape != [1])
        operands = [one.type for one in tensors if _name(one.type) in _WIDTH][:2]
    types = {_name(one) for one in operands}
    if len(operands) < 2 or not types.issubset(_WIDTH):
        return None
    return min(types, key=_WIDTH.index)


def _name(type_: str | None) -> str:
    return _TYPES.get(type_, type_) if type_ else "?"


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


def check_rtx(precision: Precision, compute: Compute, compute_capability: str) -> None:
    """Refuse early what TensorRT-RTX is known to build in half precision, whatever the graph says.

    Found in plans of tensorrt-rtx 1.7.1: it has int8 matrix products on every GPU, int8 convolutions from
    sm_80 on, and no int8 transposed convolutions.

    Raises:
        PrecisionMissed
    """
    if precision is not Precision.INT8:
        return
    in_half = {"ConvTranspose"} | ({"Conv"} if compute_capability == "sm_75" else set())
    quantized = [one for one in compute.products if one.type == precision.computes_in]
    left = [one for one in quantized if one.op_type not in in_half]
    if not quantized or len(left) == len(quantized) or not _is_little(left, compute):
        return
    kinds = sorted({one.op_type for one in quantized} & in_half)
    rest = f"only {_share_of(left, compute):.2%} of the arithmetic" if left else "nothing else"
    raise PrecisionMissed(
        f"TensorRT-RTX computes int8 {' and '.join(kinds)} in fp16 on {compute_capability}, and {rest} "
        "in the graph would be int8",
        hint=f"choose fp16 for {compute_capability}, or int8 for sm_80 and later"
        if "Conv" in kinds
        else "choose fp16",
    )


#: An engine with a smaller share of its arithmetic in a quantised type isn't labelled with it.
_MIN_SHARE = 0.01


def _is_little(products: Sequence[Product], compute: Compute) -> bool:
    """Whether these are a negligible share of all products, or none if shapes aren't known."""
    share = _share_of(products, compute)
    return not products or (share is not None and share < _MIN_SHARE)


def _share_of(products: Sequence[Product], compute: Compute) -> float | None:
    if any(one.macs is None for one in compute.products):
        return None
    total = sum(one.macs or 0 for one in compute.products)
    return sum(one.macs or 0 for one in products) / total if total else None


def check_engine(precision: Precision, compute: Compute) -> None:
    """Refuse an engine that multiplies almost nothing in the type it would be labelled with, if the graph
    has more.

    Raises:
        PrecisionMissed: says what the builder chose instead.
    """
    if precision is Precision.FP32 or not compute.products:
        return
    there = [one for one in compute.products if one.type == precision.computes_in]
    elsewhere = [one for one in compute.products if one.typed == precision.computes_in]
    if there and not (elsewhere and _is_little(there, compute)):
        return
    instead = "; ".join(
        f"{one.op_type} {one.name!r} runs in {one.type}"
        for one in (elsewhere or compute.products)[:_NAMED]
    )
    share = _share_of(there, compute)
    little = f"only {share:.2%} of the arithmetic" if there and share is not None else "none"
    raise PrecisionMissed(
        f"the engine computes {little} of its {len(compute.products)} convolutions and matrix "
        f"products in {precision}: {instead}",
        hint="this GPU has no kernel for these shapes in that type: choose fp16",
    )
