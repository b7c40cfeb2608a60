"""Checks that the farm can build a graph."""

from __future__ import annotations

import onnx
import onnx.shape_inference

from farm.errors import InvalidModel
from workers.graphs.files import is_large
from workers.graphs.interface import check_is_tensor
from workers.graphs.shapes import inferred_of, opset_of, outline_of
from workers.graphs.standard import ONNXRUNTIME_DOMAIN, STANDARD_DOMAINS
from workers.graphs.walk import all_nodes


def check_model(model: onnx.ModelProto) -> None:
    """Check that a graph is valid and uses only standard operators or ONNX Runtime's own.

    Raises:
        InvalidModel: names the operator and domain, or quotes the checker.
    """
    opset = opset_of(model)
    for node in all_nodes(model.graph):
        _check_operator(node, opset)
    for value in (*model.graph.input, *model.graph.output):
        check_is_tensor(value)
    try:
        _check_proto(model)
        inferred_of(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise InvalidModel(
            f"the ONNX model is invalid: {brief(err)}",
            hint="run onnx.checker.check_model(model, full_check=True) on it and export it again",
        ) from err


def _check_proto(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(outline_of(model) if is_large(model) else model)


def own_operators(model: onnx.ModelProto) -> list[str]:
    """The operator types in the graph that only ONNX Runtime has."""
    nodes = all_nodes(model.graph)
    return sorted({node.op_type for node in nodes if node.domain == ONNXRUNTIME_DOMAIN})


def _check_operator(node: onnx.NodeProto, opset: int) -> None:
    if node.domain == ONNXRUNTIME_DOMAIN:
        return  # ONNX Runtime's session knows them, and one is opened for every graph
    if node.domain not in STANDARD_DOMAINS:
        raise InvalidModel(
            f"operator {node.op_type} of domain {node.domain!r} isn't a standard ONNX operator",
            hint="rewrite it with standard operators and export again: its engine couldn't be checked",
        )
    try:
        onnx.defs.get_schema(node.op_type, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError as err:
        raise InvalidModel(
            f"operator {node.op_type} doesn't exist in ONNX opset {opset}",
            hint="check its spelling, or export with a newer opset",
        ) from err


def brief(err: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(err).__name__
