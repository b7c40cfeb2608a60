"""Imports ranges: gives a Q/DQ graph's activations the scales of a TensorRT calibration cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from farm.errors import CalibrationFailed
from workers.graphs import walk
from workers.quantize import placement

#: Whose output has the very values of its input.
_SAME_VALUES = (
    *("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Dropout"),
    *walk.QDQ_OPS,
)
_MOST_TOLD = 10


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a cache's ranges."""

    given: int  #: tensors, or groups of them, with a scale of the cache
    absent: Sequence[str]  #: quantised tensors that it lacks: what takes them computes in floats
    unused: int  #: the cache's tensors that aren't quantised


def scales(quantized: onnx.ModelProto, cache: Mapping[str, float]) -> Imported:
    """Rescale a graph's activations, and take out the Q/DQ of those without a range.

    Tensors that share a scale take the largest of theirs.

    Parameters:
        quantized: as ModelOpt wrote it; names are those of the ONNX tensors, which TensorRT kept.
        cache: tensor → scale.

    Raises:
        CalibrationFailed: no name in the cache is one of a quantised tensor.
    """
    where = placement.placed(quantized)
    known = _spread(quantized.graph, cache)
    found: dict[str, np.float32] = {}
    given = 0
    for group in where.groups:
        there = [known[name] for name in group if name in known]
        if there:
            given += 1
            found |= dict.fromkeys(group, _usable(max(there)))
    absent = sorted(set(where.tensors) - found.keys())
    if not found:
        raise CalibrationFailed(
            f"the calibration cache has no range for any of the {len(where.tensors)} tensors to quantise: it "
            f"names {_listed(list(cache))}; the model has {_listed(absent)}",
            hint="submit the ONNX file that the cache was made of, with its tensors' names; or pass "
            "calibration data instead",
        )
    placement.rescale(quantized, found)
    if absent:
        _take_out(quantized, set(absent))
    return Imported(given=given, absent=absent, unused=len(cache.keys() - found.keys()))


def told(made: Imported) -> list[str]:
    """What to know of an import, in words."""
    lines = [f"{made.given} ranges come from the calibration cache"]
    if made.absent:
        lines.append(
            f"{len(made.absent)} tensors have no range there, and what takes them computes in floats: "
            f"{_listed(made.absent)}"
        )
    if made.unused:
        lines.append(f"{made.unused} of the cache's tensors aren't quantised here")
    return lines


def _spread(graph: onnx.GraphProto, cache: Mapping[str, float]) -> dict[str, float]:
    """The scales, also of tensors that hold the same values in another shape."""
    known = dict(cache)
    same = [node for node in graph.node if node.op_type in _SAME_VALUES and node.input]
    for node in same:
        if node.input[0] in known:
            known.setdefault(node.output[0], known[node.input[0]])
    for node in reversed(same):
        if node.output[0] in known:
            known.setdefault(node.input[0], known[node.output[0]])
    return known


def _usable(scale: float) -> np.float32:
    """As for a calibration on zeros alone: they are exact in any scale."""
    found = np.float32(scale)
    return found if found >= np.finfo(np.float32).tiny else np.float32(1)


def _take_out(model: onnx.ModelProto, tensors: Collection[str]) -> None:
    """Let what takes these tensors compute in floats, with its weights and other inputs as they were."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in walk.all_nodes(graph):
        behind = [placement.dequantized(name, makers) for name in node.input]
        if node.op_type not in walk.QDQ_OPS and any(
            name != source and source in tensors
            for name, source in zip(node.input, behind, strict=True)
        ):
            node.input[:] = behind
    _drop_idle_pairs(graph)


def _drop_idle_pairs(graph: onnx.GraphProto) -> None:
    """Drop what dequantises for nobody, and then what quantises for it."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        used = {name for node in walk.all_nodes(graph) for name in node.input}
        used |= {value.name for value in graph.output}
        idle = {
            node.output[0]
            for node in graph.node
            if node.op_type == kind and used.isdisjoint(node.output)
        }
        walk.drop_nodes(graph, partial(_gives, idle))
    walk.drop_unused(graph)


def _gives(names: Collection[str], node: onnx.NodeProto) -> bool:
    return bool(node.output) and node.output[0] in names


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:_MOST_TOLD])
    return f"{shown}, …" if len(names) > _MOST_TOLD else shown
