"""Exports PyTorch programs as ONNX graphs."""

from __future__ import annotations

import time

import onnx
import torch
from torch.export import ExportedProgram

from farm.errors import InvalidModel
from workers.graphs import interface
from workers.programs.eager import SYMBOL, axis_names, input_names, output_names

#: Every runtime of the farm reads this opset, and its Q/DQ may have fp16 scales.
EXPORT_OPSET = 20


def to_onnx(program: ExportedProgram) -> onnx.ModelProto:
    """Convert a program with PyTorch's exporter.

    Raises:
        InvalidModel: if the exporter rejects it.
    """
    start = time.monotonic()
    _lay_attention_out(program)
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=EXPORT_OPSET,
            input_names=input_names(program),
            output_names=output_names(program),
            optimize=True,
            verify=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as err:
        raise InvalidModel(
            f"PyTorch can't export this program to ONNX: {_reason(err)}",
            hint="rewrite that operator with others, or submit an ONNX model",
        ) from err
    assert exported is not None
    print(f"exported to opset {EXPORT_OPSET} in {time.monotonic() - start:.1f} s", flush=True)
    return exported.model_proto


def _lay_attention_out(program: ExportedProgram) -> None:
    """Make attention's result contiguous, as ONNX's is.

    PyTorch's CPU kernel returns it transposed. The exporter would take a reshape after it for a view,
    which it isn't for ONNX's result, and fail (torch 2.13, with a bias shared by the batch, as in T5).
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            with graph.inserting_after(node):
                laid_out = graph.call_function(
                    torch.ops.aten.clone.default,
                    (node,),
                    {"memory_format": torch.contiguous_format},
                )
            value = node.meta["val"].clone(memory_format=torch.contiguous_format)
            laid_out.meta = node.meta | {"val": value}
            node.replace_all_uses_with(laid_out, lambda user, kept=laid_out: user is not kept)
    program.graph_module.recompile()


def name_axes(model: onnx.ModelProto) -> None:
    """Name the batch ``batch`` and other axes after their input, as ``EagerModel`` does."""
    graph = model.graph
    names = axis_names(
        {
            value.name: [interface.axis_of(dim) for dim in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
    )
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = SYMBOL.sub(
                    lambda match: names.get(match[0], match[0]), dim.dim_param
                )


def _reason(err: BaseException) -> str:
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(err).__name__
