"""Measures how large and how small a graph's values get on data: every tensor, bodies and sums included.

ONNX Runtime reduces each tensor to single numbers while it runs the graph, so memory stays that of one
run. A body passes its numbers to the enclosing graph, a Loop or Scan one per iteration. A branch that no
data take is forced, where possible.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from farm.errors import InvalidModel
from workers.backends.ort.cpu import OrtModel
from workers.graphs import files, shapes, walk
from workers.graphs.floats import narrowed
from workers.inputs.samples import Arrays
from workers.quantize.half_operators import KEEPS_SMALL, NOT_ZERO

#: Enough to see how large values get; the margin covers other data.
MAX_SAMPLES = 256
#: Up to this many untaken branches are forced; any others are measured only if data take them.
MAX_BRANCHES = 8
#: Sums over axes: their result may fit although their magnitudes add up to more.
_SUMS = ("ReduceSum", "ReduceMean", "GlobalAveragePool")
#: Probes only take maxima; the smallest magnitude is the maximum of the negated ones.
_UNKNOWN = -np.inf  #: for a branch that wasn't taken
_LEAST, _MOST, _SUM = "least", "most", "sum"


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The magnitudes of a tensor's values over all data."""

    most: float
    least: float = 0.0  #: 0 where it doesn't count
    inner: float = 0.0  #: the largest sum of magnitudes added up to compute it


Magnitudes = Mapping[str, Magnitude]
"""Tensor → its magnitude; without those that no data reach."""


def measured(
    model: onnx.ModelProto,
    batches: Sequence[Arrays],
    folder: Path,
    largest: Mapping[str, float] | None = None,
) -> dict[str, Magnitude]:
    """The magnitudes of a graph's floats on these batches.

    Parameters:
        model: in normal form, fp32 except for its inputs and outputs.
        folder: for the graph with probes.
        largest: known magnitudes of tensors outside of bodies, of more data, which aren't measured.

    Raises:
        InvalidModel: if the graph can't run on the data.
    """
    known = largest or {}
    found = _run(model, batches, folder, known)
    for name, most in known.items():
        one = found.get(name, Magnitude(most=most))
        found[name] = replace(one, most=max(one.most, most))
    untaken = (
        ways
        for ways, body in _branches(model.graph, {})
        if not any(name in found for node in body.node for name in node.output)
    )
    for ways in islice(untaken, MAX_BRANCHES):
        try:
            forced = _forced(model, ways)
            found = _probed_run(forced, batches[:1], folder, careful=False, quiet=True) | found
        except InvalidModel:  # a branch meant for other data
            continue
    return found | _of_constants(model)


def _branches(
    graph: onnx.GraphProto, ways: Mapping[str, bool]
) -> Iterator[tuple[dict[str, bool], onnx.GraphProto]]:
    """Every branch of every If, with the way each If leading to it must go, by its first output."""
    for node in graph.node:
        for attribute in node.attribute:
            if not attribute.HasField("g"):
                continue
            to = dict(ways)
            if node.op_type == "If":
                to[node.output[0]] = attribute.name == "then_branch"
                yield to, attribute.g
            yield from _branches(attribute.g, to)


def _run(
    model: onnx.ModelProto, batches: Sequence[Arrays], folder: Path, known: Collection[str]
) -> dict[str, Magnitude]:
    try:
        return _probed_run(model, batches, folder, careful=False, quiet=True, known=known)
    except InvalidModel:  # ONNX Runtime can't take the maximum of an empty tensor
        return _probed_run(model, batches, folder, careful=True, quiet=False, known=known)


def _probed_run(
    model: onnx.ModelProto,
    batches: Sequence[Arrays],
    folder: Path,
    *,
    careful: bool,
    quiet: bool,
    known: Collection[str] = (),
) -> dict[str, Magnitude]:
    # NumPy has no bf16: such tensors are passed as fp32.
    probed = narrowed(model, kinds=(TensorProto.BFLOAT16,))
    probes = _Probes(shapes.types_of(model), careful=careful, known=known, small=_near_zero(model))
    names = probes.add(probed.graph)
    if not names:
        return {}
    del probed.graph.output[:]
    for name in names:
        probed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    found: dict[str, Magnitude] = {}
    with files.written(probed, folder / "magnitudes.onnx") as file:
        session = OrtModel(file, optimisation="none", quiet=quiet)
        for batch in batches:
            _merge(found, probes.read(session.run(batch)))
    return found


def _near_zero(model: onnx.ModelProto) -> set[str]:
    """The tensors whose smallest magnitudes count: denominators and such, and what these are made of."""
    nodes = [node for graph in walk.graphs_of(model) for node in graph.node]
    makers = {name: node for node in nodes for name in node.output if name}
    found: set[str] = set()
    left = [node.input[NOT_ZERO[node.op_type]] for node in nodes if node.op_type in NOT_ZERO]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        maker = makers.get(name)
        if maker is not None and maker.op_type in KEEPS_SMALL:
            left += maker.input
    return found


def _merge(found: dict[str, Magnitude], more: Mapping[str, Magnitude]) -> None:
    for name, new in more.items():
        old = found.get(name, new)
        found[name] = Magnitude(
            most=max(old.most, new.most),
            least=min(old.least, new.least),
            inner=max(old.inner, new.inner),
        )


def _of_constants(model: onnx.ModelProto) -> dict[str, Magnitude]:
    found = {}
    for graph in walk.graphs_of(model):
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                value = np.abs(numpy_helper.to_array(tensor))
                found[tensor.name] = Magnitude(
                    most=float(value.max(initial=0)),
                    least=float(value.min(initial=np.inf)) if value.size else 0.0,
                )
    return found


def _forced(model: onnx.ModelProto, ways: Mapping[str, bool]) -> onnx.ModelProto:
    """A copy of the graph in which these Ifs always take the given branches."""
    forced = onnx.ModelProto()
    forced.CopyFrom(model)
    names = {True: "forced__then", False: "forced__else"}
    for way, name in names.items():
        forced.graph.initializer.append(numpy_helper.from_array(np.array(way), name))
    for node in walk.all_nodes(forced.graph):
        if node.op_type == "If" and node.output[0] in ways:
            node.input[0] = names[ways[node.output[0]]]
    return forced


class _Probes:
    """Adds the probes to a graph that measure magnitudes."""

    def __init__(
        self,
        types: Mapping[str, int],
        *,
        careful: bool,
        known: Collection[str],
        small: Collection[str],
    ) -> None:
        self._types, self._careful, self._known, self._small = types, careful, known, small
        self._of: dict[str, tuple[str, str]] = {}  #: probe → tensor, and the figure it measures

    def add(self, graph: onnx.GraphProto) -> list[str]:
        """Probe a graph and its bodies. Returns the scalars with the results, in this graph."""
        nodes: list[onnx.NodeProto] = []
        scalars: list[str] = []
        given = [v.name for v in graph.input]
        for name in self._floats(given):
            scalars += self._probe(name, nodes)
        for node in graph.node:
            bodies = walk.bodies(node)
            told = [(body, self.add(body)) for body in bodies]
            nodes.append(node)
            scalars += self._of_bodies(node, told, nodes)
            for name in self._floats(node.output):
                scalars += self._probe(name, nodes)
            scalars += self._sums(node, nodes)
        made = onnx.GraphProto()
        made.node.extend(nodes)
        del graph.node[:]
        graph.node.extend(made.node)
        return scalars

    def read(self, results: Arrays) -> dict[str, Magnitude]:
        found: dict[str, Magnitude] = {}
        for probe, (name, what) in self._of.items():
            value = float(results[probe])
            if value == _UNKNOWN:
                continue
            old = found.get(name, Magnitude(most=0.0))
            if what == _MOST:
                found[name] = replace(old, most=value)
            elif what == _LEAST:
                found[name] = replace(old, least=-value)
            else:
                found[name] = replace(old, inner=value)
        return found

    def _floats(self, names: Sequence[str]) -> Iterator[str]:
        return (name for name in names if name and self._types.get(name) == TensorProto.FLOAT)

    def _probe(self, name: str, nodes: list[onnx.NodeProto]) -> list[str]:
        is_small = name in self._small
        if name in self._known and not is_small:
            return []
        magnitude, smallest = f"{name}__magnitude", f"{name}__smallest"
        most, least = f"{name}__{_MOST}", f"{name}__{_LEAST}"
        nodes.append(helper.make_node("Abs", [name], [magnitude]))
        magnitude = self._filled(magnitude, nodes)
        nodes.append(helper.make_node("ReduceMax", [magnitude], [most], keepdims=0))
        self._of[most] = name, _MOST
        if not is_small:
            return [most]
        nodes += [
            helper.make_node("ReduceMin", [magnitude], [smallest], keepdims=0),
            helper.make_node("Neg", [smallest], [least]),
        ]
        self._of[least] = name, _LEAST
        return [most, least]

    def _filled(self, name: str, nodes: list[onnx.NodeProto]) -> str:
        """The tensor; when empty ones are possible, a flat copy with a 0 appended."""
        if not self._careful:
            return name
        flat, ends, made = f"{name}__flat", f"{name}__ends", f"{name}__filled"
        nodes += [
            _constant(f"{flat}__shape", [-1], np.int64),
            helper.make_node("Reshape", [name, f"{flat}__shape"], [flat]),
            _constant(ends, [0.0]),
            helper.make_node("Concat", [flat, ends], [made], axis=0),
        ]
        return made

    def _sums(self, node: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> list[str]:
        """The same sum over magnitudes; for a mean, times its divisor."""
        name = node.output[0] if node.output else ""
        if node.op_type not in _SUMS or self._types.get(name) != TensorProto.FLOAT:
            return []
        summed = onnx.NodeProto()
        summed.CopyFrom(node)
        summed.name = ""
        summed.input[0], summed.output[0] = f"{name}__terms", f"{name}__summed"
        nodes.append(helper.make_node("Abs", [node.input[0]], [summed.input[0]]))
        nodes.append(summed)
        probe, largest = f"{name}__{_SUM}", f"{name}__largest"
        filled = self._filled(summed.output[0], nodes)
        nodes.append(helper.make_node("ReduceMax", [filled], [largest], keepdims=0))
        if node.op_type == "ReduceSum":
            nodes.append(helper.make_node("Identity", [largest], [probe]))
        else:
            sizes = [f"{name}__size_in", f"{name}__size_out"]
            for size, of in zip(sizes, (node.input[0], name), strict=True):
                nodes.append(helper.make_node("Size", [of], [f"{size}__whole"]))
                nodes.append(
                    helper.make_node("Cast", [f"{size}__whole"], [size], to=TensorProto.FLOAT)
                )
            nodes.append(helper.make_node("Div", sizes, [f"{name}__terms_each"]))
            nodes.append(helper.make_node("Mul", [largest, f"{name}__terms_each"], [probe]))
        self._of[probe] = (name, _SUM)
        return [probe]

    def _of_bodies(
        self,
        node: onnx.NodeProto,
        told: Sequence[tuple[onnx.GraphProto, list[str]]],
        nodes: list[onnx.NodeProto],
    ) -> list[str]:
        """Bring the scalars of a node's bodies into the graph that contains the node."""
        scalars: list[str] = []
        for body, inside in told:
            for name in inside:
                self._bring(node, body, [other for other, _ in told], name)
                outside = f"{name}__outside"
                what = self._of.pop(name)
                probe = f"{outside}__all"
                if node.op_type == "If":
                    nodes.append(helper.make_node("Identity", [outside], [probe]))
                else:
                    self._over_turns(outside, probe, nodes)
                self._of[probe] = what
                scalars.append(probe)
        return scalars

    def _bring(
        self,
        node: onnx.NodeProto,
        body: onnx.GraphProto,
        bodies: Sequence[onnx.GraphProto],
        name: str,
    ) -> None:
        node.output.append(f"{name}__outside")
        for each in bodies:
            made = name
            if each is not body:
                made = f"{name}__untaken"
                each.node.append(_constant(made, _UNKNOWN))
            each.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, []))
        for attribute in node.attribute:
            if attribute.name in ("scan_output_axes", "scan_output_directions"):
                attribute.ints.append(0)

    def _over_turns(self, given: str, probe: str, nodes: list[onnx.NodeProto]) -> None:
        """The maximum over all iterations; unknown if there were none."""
        none, turns = f"{probe}__none", f"{probe}__turns"
        nodes += [
            _constant(none, [_UNKNOWN]),
            helper.make_node("Concat", [given, none], [turns], axis=0),
            helper.make_node("ReduceMax", [turns], [probe], keepdims=0),
        ]


def _constant(name: str, value: object, dtype: type = np.float32) -> onnx.NodeProto:
    return helper.make_node(
        "Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype), name)
    )
