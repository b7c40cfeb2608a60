"""An fp32 graph retyped operator by operator, bodies included.

Each value is computed in its operator's type and cast once per other type that consumers need. If a
cast's input already has the needed type, that input is used. A dequantised value is dequantised again
rather than cast: builders look for the DequantizeLinear right before an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import onnx
from onnx import TensorProto, helper

from workers.graphs.floats import HALVES, NAMES, of_type
from workers.graphs.shapes import opset_of, types_of
from workers.graphs.walk import bodies, drop, drop_unused

#: Output → the type its operator computes in; fp32 if not listed.
Choice = Mapping[str, int]

#: The first opset with bf16 convolutions.
BF16_OPSET = 22
_FLOATS = tuple(NAMES)
#: Slots that stay fp32 although the schema allows halves: LayerNormalization's have its ``stash_type``.
_STASHED = {"LayerNormalization": "U"}


def typed(model: onnx.ModelProto, choice: Choice) -> onnx.ModelProto:
    """A copy of the graph with each operator in its chosen type.

    Inputs and outputs keep their types.

    Parameters:
        model: in normal form, fp32 except for its inputs and outputs.
        choice: keyed by an operator's first output.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    types = types_of(model)
    _Scope(result.graph, None, types, choice, opset_of(model)).rewrite({})
    drop_unused(result.graph)
    return result


def low_slots(op_type: str, opset: int, kind: int, count: int, *, inputs: bool) -> list[bool]:
    """Per input (or output) of an operator, whether it may have this half type."""
    names = _slots(op_type, opset, kind, inputs)
    if not names:
        return [False] * count
    return [names[min(index, len(names) - 1)] for index in range(count)]


@cache
def _slots(op_type: str, opset: int, kind: int, inputs: bool) -> tuple[bool, ...]:
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError:
        return ()
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if f"tensor({NAMES[kind]})" in constraint.allowed_type_strs
    } - {_STASHED.get(op_type)}
    return tuple(p.type_str in allowed for p in (schema.inputs if inputs else schema.outputs))


class _Scope:
    """A graph or body, rewritten in place."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        outer: _Scope | None,
        types: Mapping[str, int],
        choice: Choice,
        opset: int,
    ) -> None:
        self._graph, self._outer, self._types = graph, outer, types
        self._choice, self._opset = choice, opset
        self._nodes: list[onnx.NodeProto] = []
        self._makers: dict[str, onnx.NodeProto] = {}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        #: Name and type → the tensor's name in that type. The first entry is the computed one.
        self._versions: dict[str, dict[int, str]] = {
            name: {tensor.data_type: name}
            for name, tensor in self._tensors.items()
            if tensor.data_type in _FLOATS
        }

    def rewrite(self, wanted: Mapping[int, int]) -> None:
        """Rewrite the graph.

        Parameters:
            wanted: the types of a body's outputs, by position.
        """
        graph = self._graph
        for value in graph.input:
            kind = value.type.tensor_type.elem_type
            if kind in _FLOATS:
                self._versions.setdefault(value.name, {kind: value.name})
        public = {value.name for value in graph.output} if self._outer is None else set()
        for node in list(graph.node):
            self._rewrite_node(node, public)
        for index, value in enumerate(graph.output):
            kind = wanted.get(index, value.type.tensor_type.elem_type)
            if value.name not in self._versions or kind not in _FLOATS:
                continue
            name = self.version(value.name, kind)
            if self._outer is not None:  # a model's outputs keep their names
                value.name = name
                value.type.tensor_type.elem_type = kind
        del graph.node[:]
        graph.node.extend(self._nodes)
        self._drop_stale()

    def _drop_stale(self) -> None:
        """Drop the declarations of values whose type has changed."""
        for index in reversed(range(len(self._graph.value_info))):
            if self._graph.value_info[index].type.tensor_type.elem_type in _FLOATS:
                del self._graph.value_info[index]

    def _rewrite_node(self, node: onnx.NodeProto, public: set[str]) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        kind = self._choice.get(node.output[0], TensorProto.FLOAT) if node.output else 0
        inner = bodies(made)
        if inner:
            self._enter(node, inner, kind)
            gives = [True] * len(node.output)
            takes = [True] * len(node.input)
        elif kind in HALVES:
            takes = low_slots(node.op_type, self._opset, kind, len(node.input), inputs=True)
            gives = low_slots(node.op_type, self._opset, kind, len(node.output), inputs=False)
        else:
            takes, gives = [False] * len(node.input), [False] * len(node.output)
        for index, name in enumerate(node.input):
            if self._native(name) is not None:
                made.input[index] = self._taken(node, name, kind if takes[index] else 1)
        if node.op_type == "Cast":
            self._retype_cast(made, kind)
        for index, name in enumerate(node.output):
            before = self._types.get(name, 0)
            if before not in _FLOATS:
                continue
            native = before
            if before == TensorProto.FLOAT and gives[index] and kind in HALVES:
                native = kind
            own = name
            if name in public and native != before:
                own = made.output[index] = f"{name}__{NAMES[native]}"
            self._versions[name] = {native: own}
            self._makers[own] = made
        self._nodes.append(made)
        self._pass_through(node)

    def _taken(self, node: onnx.NodeProto, name: str, kind: int) -> str:
        """The name of an input in the type in which the operator consumes it."""
        if node.op_type in ("Cast", "Shape", "Size"):  # accept any type
            to = next((a.i for a in node.attribute if a.name == "to"), 0)
            if to in HALVES:
                return self.version(name, to)
            return self.version(name, self._native(name) or kind)
        if self._types.get(name, TensorProto.FLOAT) != TensorProto.FLOAT:
            return name  # an input that had another type already
        return self.version(name, kind)

    def _retype_cast(self, made: onnx.NodeProto, kind: int) -> None:
        to = next(a for a in made.attribute if a.name == "to")
        if to.i == TensorProto.FLOAT and kind in HALVES:
            to.i = kind
        if self._kind_of(made.input[0]) == to.i:
            made.op_type = "Identity"
            del made.attribute[:]

    def _pass_through(self, node: onnx.NodeProto) -> None:
        """Reuse a Cast's input for consumers that need its type, if that type is a half."""
        if node.op_type != "Cast" or self._types.get(node.output[0]) != TensorProto.FLOAT:
            return
        given = self._types.get(node.input[0], 0)
        if given in HALVES and (outer := self._find(node.input[0])):
            name = outer.get(given)
            if name:
                self._versions[node.output[0]].setdefault(given, name)

    def _enter(self, node: onnx.NodeProto, bodies: list[onnx.GraphProto], kind: int) -> None:
        """Rewrite the bodies of an operator whose floats share one type."""
        wanted = {}
        shift = 1 if node.op_type == "Loop" else 0  # its first output is the condition
        for index, name in enumerate(node.output):
            if self._types.get(name) == TensorProto.FLOAT:
                wanted[index + shift] = kind
        for body in bodies:
            if kind in HALVES:
                for value in body.input:
                    if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                        value.type.tensor_type.elem_type = kind
                for index, value in enumerate(body.output):
                    if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                        wanted.setdefault(index, kind)
            _Scope(body, self, self._types, self._choice, self._opset).rewrite(wanted)

    def _find(self, name: str) -> dict[int, str] | None:
        found = self._versions.get(name)
        return found if found is not None or self._outer is None else self._outer._find(name)

    def _kind_of(self, own: str) -> int | None:
        """The type of the tensor that now has this name."""
        for versions in self._versions.values():
            for kind, name in versions.items():
                if name == own:
                    return kind
        return self._outer._kind_of(own) if self._outer else None

    def _native(self, name: str) -> int | None:
        """The type in which a float is computed; None if it isn't a float."""
        versions = self._find(name)
        return next(iter(versions)) if versions else None

    def version(self, name: str, kind: int) -> str:
        """The name of a float in the given type; casts it where it is computed if necessary."""
        if name not in self._versions and self._outer is not None:
            return self._outer.version(name, kind)
        versions = self._versions[name]
        if kind not in versions:
            versions[kind] = self._cast(name, versions, kind)
        return versions[kind]

    def _cast(self, name: str, versions: dict[int, str], kind: int) -> str:
        own = next(iter(versions.values()))
        made = name if kind == TensorProto.FLOAT and own != name else f"{name}__{NAMES[kind]}"
        if name in self._tensors:
            self._graph.initializer.append(of_type(self._tensors[name], kind, made))
            return made
        maker = self._makers.get(own)
        if maker is not None and maker.op_type == "DequantizeLinear":
            again = onnx.NodeProto()
            again.CopyFrom(maker)
            again.name, again.output[0] = f"{made}__dequantized", made
            again.input[1] = self._scale(maker, kind)
            self._nodes.append(again)
        else:
            self._nodes.append(
                helper.make_node("Cast", [own], [made], name=f"{made}__cast", to=kind)
            )
        return made

    def _scale(self, dequantize: onnx.NodeProto, kind: int) -> str:
        scale = dequantize.input[1]
        for name, versions in self._versions.items():
            if scale in versions.values():
                return self.version(name, kind)
        assert self._outer is not None, scale
        return self._outer._scale(dequantize, kind)


def merge_casts(graph: onnx.GraphProto) -> bool:
    """Cast each value at most once per type, in place. Returns whether there were duplicate casts.

    ONNX Runtime adds casts of its own. In a norm written out as single operators its fusion takes two
    casts of one value for two values, makes a LayerNormalization of mixed types, and then can't load
    its own output.
    """
    made: dict[tuple[str, int], str] = {}
    renamed: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type != "Cast":
            continue
        key = (node.input[0], next(a.i for a in node.attribute if a.name == "to"))
        if key in made and node.output[0] not in outputs:
            renamed[node.output[0]] = made[key]
        else:
            made.setdefault(key, node.output[0])
    if renamed:
        for body in (body for node in graph.node for body in bodies(node)):
            _rename(body, renamed)
        drop(graph.node, lambda node: node.op_type == "Cast" and node.output[0] in renamed)
    return bool(renamed)


def _rename(body: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in body.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for nested in bodies(node):
            _rename(nested, renamed)
