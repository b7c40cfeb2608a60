"""An engine's layer report: its layers and the types it computes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from farm.errors import PrecisionMissed
from farm.reports.layers import Layer, LayerReport, LayerTensor, ProductView
from farm.specs.precision import QUANTIZED, Precision
from workers.graphs.compute import Compute, Product
from workers.graphs.interface import input_specs, output_specs
from workers.graphs.macs import INTEGER_OPERATORS
from workers.graphs.walk import all_nodes

#: ONNX Runtime's integer multiplication operators.
INTEGER_KERNELS = (
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
_NAMED = 3


def check_precision(precision: Precision, compute: Compute) -> None:
    """Refuse a graph that multiplies nothing in the type its engine would be labelled with.

    A graph without products passes in any type; fp32 means the graph as its author wrote it, without Q/DQ.

    Raises:
        PrecisionMissed: says why, for the first products.
    """
    if precision is Precision.FP32:
        _refuse_quantized(compute)
    if precision is Precision.FP32 or not compute.products or compute.layers(precision.computes_in):
        return
    why = "; ".join(_why_not(product, precision) for product in compute.products[:_NAMED])
    raise PrecisionMissed(
        f"none of the graph's {len(compute.products)} convolutions and matrix products would "
        f"compute in {precision}: {why}"
    )


def _refuse_quantized(compute: Compute) -> None:
    for quantized in QUANTIZED:
        of_type = (one for one in compute.products if one.type == quantized.computes_in)
        found = [one for one in of_type if one.op_type not in INTEGER_OPERATORS]
        if found:
            raise PrecisionMissed(
                f"the model is quantised: {len(found)} of its {len(compute.products)} convolutions and "
                f"matrix products compute in {quantized}, so it isn't an fp32 engine",
                hint=f"submit it as {quantized}: it needs no calibration data",
            )


def _why_not(product: Product, precision: Precision) -> str:
    said = f"{product.op_type} {product.name!r} computes in {product.type}"
    if product.not_quantized and precision in QUANTIZED:
        said += f", since {', '.join(product.not_quantized)} isn't quantised"
    return said


def check_integer_kernels(engine: onnx.ModelProto, precision: Precision) -> None:
    """Refuse an int8 engine in which ONNX Runtime used no integer kernel.

    Raises:
        PrecisionMissed
    """
    kinds = {node.op_type for node in all_nodes(engine.graph)}
    if precision.computes_in == "int8" and kinds.isdisjoint(INTEGER_KERNELS):
        raise PrecisionMissed(
            "ONNX Runtime found no integer kernel for any operator, so nothing would compute in int8"
        )


def report(
    layers: Sequence[Layer],
    compute: Compute,
    typed: onnx.ModelProto,
    *,
    compute_source: str = "graph",
    found: int | None = None,
    **more: Any,
) -> LayerReport:
    """Build the report.

    Parameters:
        typed: the graph that the engine was built from.
        compute_source: where the types come from, as in ``ComputeView``.
        found: how many products that source names.
        more: further fields of the report.
    """
    return LayerReport.model_validate(
        {
            "compute": compute.as_facts() | {"source": compute_source, "found": found},
            "products": [ProductView.model_validate(product) for product in compute.products],
            "layers": layers,
            "kinds": Counter(layer.type for layer in layers),
            "fusions": Counter(layer.type for layer in layers if len(layer.operators) > 1),
            "operators": len(list(all_nodes(typed.graph))),
            "weights": weights_of(typed),
            "inputs": input_specs(typed),
            "outputs": output_specs(typed),
        }
        | more
    )


def weights_of(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """A graph's constants, including subgraphs: type → ``parameters`` and ``bytes``."""
    constants = [
        *model.graph.initializer,
        *(a.t for node in all_nodes(model.graph) for a in node.attribute if a.HasField("t")),
        *(tensor for graph in _subgraphs(model) for tensor in graph.initializer),
    ]
    found: dict[str, dict[str, int]] = {}
    for tensor in constants:
        of_type = found.setdefault(_type(tensor.data_type), {"parameters": 0, "bytes": 0})
        of_type["parameters"] += prod(tensor.dims)
        of_type["bytes"] += ceil(prod(tensor.dims) * _bits(tensor.data_type) / 8)
    return found


def _subgraphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    for node in all_nodes(model.graph):
        for attribute in node.attribute:
            yield from attribute.graphs
            if attribute.HasField("g"):
                yield attribute.g


def _bits(data_type: int) -> int:
    if data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return 4
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def fused_by_onnxruntime(engine: onnx.ModelProto, typed: onnx.ModelProto) -> dict[str, int]:
    """The operators that ONNX Runtime put in place of others: kind → count."""
    before = {node.op_type for node in all_nodes(typed.graph)}
    after = Counter(node.op_type for node in all_nodes(engine.graph))
    return {kind: count for kind, count in after.items() if kind not in before}


def write(made: LayerReport, path: Path) -> Path:
    path.write_text(made.model_dump_json() + "\n")
    return path


def of_onnx(model: onnx.ModelProto) -> list[Layer]:
    """The nodes of a graph as layers."""
    graph = model.graph
    values = {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def tensor(name: str) -> LayerTensor:
        if name in tensors:
            return LayerTensor(
                name=name, type=_type(tensors[name].data_type), shape=list(tensors[name].dims)
            )
        if name in values:
            kind = values[name].type.tensor_type
            shape: list[Any] = [
                dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim
            ]
            return LayerTensor(name=name, type=_type(kind.elem_type), shape=shape)
        return LayerTensor(name=name, type=None, shape=None)

    return [
        Layer(
            name=node.name or node.output[0],
            type=node.op_type,
            inputs=[tensor(name) for name in node.input if name],
            outputs=[tensor(name) for name in node.output if name],
        )
        for node in graph.node
    ]


def _type(data_type: int) -> str:
    if data_type in (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN):
        return str(TensorProto.DataType.Name(data_type)).lower()
    return str(helper.tensor_dtype_to_np_dtype(data_type).name)
