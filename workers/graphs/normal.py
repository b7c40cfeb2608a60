"""One normal form for what ONNX can express in many ways, so that later passes handle only one.

In normal form, in the graph and in every body of If, Loop and Scan: nodes follow the producers of their
inputs; constants are dense initializers; a name identifies one tensor, and one node, in the whole model;
and a graph's outputs are produced by its nodes. Nothing that the model computes changes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farm.errors import InvalidModel
from workers.graphs.files import MAX_PROTO_BYTES
from workers.graphs.walk import all_nodes, bodies, drop, graphs_of

EXPORT_AGAIN = "export the model again and check that the upload is complete"
#: A Constant's attributes → the types they imply.
_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def is_normal(model: onnx.ModelProto) -> bool:
    """Whether ``normalised`` would change nothing."""
    names = Counter(name for graph in graphs_of(model) for name in _defined(graph))
    nodes = Counter(node.name for node in all_nodes(model.graph) if node.name)
    return (
        not any(count > 1 for count in (names | nodes).values())
        and not any(graph.sparse_initializer for graph in graphs_of(model))
        and not any(_is_number(node) for node in all_nodes(model.graph))
        and not any(_given_outputs(graph) for graph in graphs_of(model))
        and all(_is_sorted(graph) for graph in graphs_of(model))
    )


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in normal form; the model itself if it already is.

    Raises:
        InvalidModel: if the nodes form a cycle, or a sparse tensor is damaged.
    """
    if is_normal(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for graph in graphs_of(result):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name))
        del graph.sparse_initializer[:]
        _lift_constants(graph)
        _sort(graph)
    used: set[str] = set()
    _name_tensors_apart(result.graph, used, {})
    for graph in graphs_of(result):
        _make_outputs(graph, used)
    _name_nodes_apart(result)
    return result


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that a graph defines; an initializer that is also an input counts once."""
    given = {value.name for value in graph.input}
    yield from given
    yield from (t.name for t in graph.initializer if t.name not in given)
    yield from (t.values.name for t in graph.sparse_initializer if t.values.name not in given)
    yield from (name for node in graph.node for name in node.output if name)


def _given_outputs(graph: onnx.GraphProto) -> list[str]:
    """The outputs that no node of the graph produces, except a model's inputs passed straight through.

    Callers use both names of those, so one can't replace the other.
    """
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in graph.input}
    return [value.name for value in graph.output if value.name not in made]


def _is_number(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and any(
        a.name in ("value", "sparse_value", *_NUMBERS) for a in node.attribute
    )


def _lift_constants(graph: onnx.GraphProto) -> None:
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if _is_number(node) and node.output[0] not in given:
            graph.initializer.append(_value(node))
    drop(graph.node, _is_number)


def _value(node: onnx.NodeProto) -> onnx.TensorProto:
    name = node.output[0]
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = name
            return tensor
        if attribute.name == "sparse_value":
            return _dense(attribute.sparse_tensor, name)
        if attribute.name in _NUMBERS:
            value = np.asarray(helper.get_attribute_value(attribute), _NUMBERS[attribute.name])
            return numpy_helper.from_array(value, name)
    raise AssertionError(node.op_type)


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    shape = [int(size) for size in sparse.dims]
    values = numpy_helper.to_array(sparse.values)
    indices: NDArray[np.int64] = numpy_helper.to_array(sparse.indices).astype(np.int64)
    if prod(shape) * values.itemsize > MAX_PROTO_BYTES:
        raise InvalidModel(
            f"the sparse tensor {name!r} would fill {shape} values", hint=EXPORT_AGAIN
        )
    dense = np.zeros(prod(shape), values.dtype)
    try:
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), tuple(shape))
        dense[indices] = values
    except (IndexError, ValueError) as err:
        raise InvalidModel(
            f"the sparse tensor {name!r} has indices outside its shape {shape}", hint=EXPORT_AGAIN
        ) from err
    return numpy_helper.from_array(dense.reshape(shape), name)


def taken(node: onnx.NodeProto) -> set[str]:
    """The tensors of the enclosing graph that a node needs: its inputs, and its bodies' captures."""
    names = {name for name in node.input if name}
    for body in bodies(node):
        names |= captured(body)
    return names


def captured(body: onnx.GraphProto) -> set[str]:
    """The tensors of outer graphs that a body uses."""
    names = {name for node in body.node for name in taken(node)}
    names |= {value.name for value in body.output}
    return names - set(_defined(body))


def _is_sorted(graph: onnx.GraphProto) -> bool:
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if not later.isdisjoint(taken(node)):
            return False
        later.difference_update(node.output)
    return True


def _sort(graph: onnx.GraphProto) -> None:
    if _is_sorted(graph):
        return
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        at: {maker[name] for name in taken(node) if name in maker}
        for at, node in enumerate(graph.node)
    }
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as err:
        around = [graph.node[at].op_type for at in err.args[1][:4]]
        raise InvalidModel(
            f"the graph has a cycle: {', '.join(around)}",
            hint=EXPORT_AGAIN,
        ) from err
    nodes = [onnx.NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _name_tensors_apart(graph: onnx.GraphProto, used: set[str], outer: dict[str, str]) -> None:
    """Rename what a body defines to names that no earlier graph uses."""
    names = dict(outer)
    for name in dict.fromkeys(_defined(graph)):
        names[name] = _unused(name, used)
        used.add(names[name])
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)
        for body in bodies(node):
            _name_tensors_apart(body, used, names)


def _unused(name: str, used: set[str]) -> str:
    made, number = name, 1
    while made in used:
        number += 1
        made = f"{name}__{number}"
    return made


def _make_outputs(graph: onnx.GraphProto, used: set[str]) -> None:
    """Make every output the result of a node."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made: list[onnx.NodeProto] = []
    for name in dict.fromkeys(_given_outputs(graph)):
        other = _unused(f"{name}__value", used)
        used.add(other)
        if name in tensors:  # the output keeps its name: callers use it
            tensors[name].name = other
            _take_instead(graph, name, other)
            made.append(helper.make_node("Identity", [other], [name], name=other))
        else:  # from an outer graph, where it keeps its name
            for output in graph.output:
                output.name = other if output.name == name else output.name
            made.append(helper.make_node("Identity", [name], [other], name=other))
    graph.node.extend(made)


def _take_instead(graph: onnx.GraphProto, name: str, other: str) -> None:
    for node in graph.node:
        for index, given in enumerate(node.input):
            node.input[index] = other if given == name else given
        for body in bodies(node):
            _take_instead(body, name, other)


def _name_nodes_apart(model: onnx.ModelProto) -> None:
    used: defaultdict[str, int] = defaultdict(int)
    names = {node.name for node in all_nodes(model.graph)}
    for node in all_nodes(model.graph):
        used[node.name] += 1
        if node.name and used[node.name] > 1:
            original = node.name
            while node.name in names:
                node.name = f"{original}__{used[original]}"
                used[original] += 1
            names.add(node.name)
