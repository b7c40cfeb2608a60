"""Fuses attention: MatMul, scale, mask, Softmax, MatMul become ONNX Runtime's ``MultiHeadAttention``.

PyTorch's exporter writes ``scaled_dot_product_attention`` out, with a scale on both queries and keys and
with a guard against rows that are NaN; ONNX Runtime's own optimiser doesn't recognise that. Its operator
runs as one kernel on GPUs (cuDNN's, flash attention or CUTLASS's), and on the CPU too.

Only what is equal for every input is fused. A row whose keys are all masked is the hard case:

- masked with minus infinity its Softmax is NaN, which the guard makes 0;
- masked with the type's lowest number, all scores become that number, and the result is the mean.

A kernel may give anything there. So masks become finite, and such rows are put right beside the kernel.

Source: ContribOperators.md and multihead_attention.cc of ONNX Runtime 1.31.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workers.graphs import walk
from workers.graphs.dimensions import Sizes, sizes_of
from workers.graphs.normal import taken
from workers.graphs.shapes import opset_of, types_of
from workers.graphs.standard import STANDARD_DOMAINS

DOMAIN = "com.microsoft"
OPERATOR = "MultiHeadAttention"

_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FIRST_OPSET = 18  #: ReduceMax takes its axes as an input
_HEADS_SECOND, _KEYS_TURNED = [0, 2, 1, 3], [0, 2, 3, 1]
_RANK = 4
#: At or below these, a score added in the type disappears in the sum, or overflows: what masks use.
_LOWEST = {TensorProto.FLOAT: -1e9, TensorProto.BFLOAT16: -6e4, TensorProto.FLOAT16: -6e4}
#: Finite, and low enough that a masked key's share is exactly 0 beside any other.
_FLOORS = {TensorProto.FLOAT: -1e30, TensorProto.BFLOAT16: -1e30, TensorProto.FLOAT16: -6e4}
#: A bias above this is added to scores as any other number.
_ORDINARY = -1e4


def fused(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy with its attention fused, and the number of places; the model itself if there are none.

    Parameters:
        model: in normal form, with its weights' values where a mask may be among them.
    """
    if opset_of(model) < _FIRST_OPSET:
        return model, 0
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = _Graph.of(made)
    count = sum(_fuse(graph, node) for node in list(made.graph.node) if node.op_type == "MatMul")
    if not count:
        return model, 0
    nodes = _needed(graph)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(graph.constants)
    walk.drop_unused(made.graph)
    if DOMAIN not in {entry.domain for entry in made.opset_import}:
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made, count


def _needed(graph: _Graph) -> list[onnx.NodeProto]:
    """The nodes that lead to an output."""
    needed, wanted = [], set(graph.outputs)
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.output):
            needed.append(node)
            wanted |= taken(node)
    return needed[::-1]


@dataclass(kw_only=True)
class _Graph:
    """A graph's values by name, and what is put before its nodes."""

    makers: Mapping[str, onnx.NodeProto]
    tensors: Mapping[str, onnx.TensorProto]
    sizes: Sizes
    types: Mapping[str, int]
    outputs: set[str]
    used_in_bodies: set[str]
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto] = field(default_factory=list)
    masks: dict[tuple[object, ...], _Mask | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Graph:
        graph = model.graph
        return cls(
            makers={name: node for node in graph.node for name in node.output if name},
            tensors={tensor.name: tensor for tensor in graph.initializer},
            sizes=sizes_of(model),
            types=types_of(model),
            outputs={value.name for value in graph.output},
            used_in_bodies={name for node in graph.node for name in taken(node) - set(node.input)},
            nodes=list(graph.node),
        )

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        node = self.makers.get(name)
        is_one = node is not None and node.op_type in kinds and node.domain in STANDARD_DOMAINS
        return node if is_one else None

    def without_casts(self, name: str) -> str:
        """The value before casts between float types."""
        while (node := self.maker(name, "Cast")) and self.types.get(node.input[0]) in _TYPES:
            name = node.input[0]
        return name

    def constant(self, name: str) -> NDArray[np.generic] | None:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        array: NDArray[np.generic] = numpy_helper.to_array(tensor)
        return array

    def number(self, name: str) -> float | None:
        """A constant's only value, as cast on the way."""
        node = self.maker(name, "Cast")
        if node is not None:
            inner = self.number(node.input[0])
            return None if inner is None else rounded(inner, self.types.get(name, 0))
        array = self.constant(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def known(self, name: str, rank: int) -> Sequence[int | str] | None:
        """A value's sizes, if all are known and it has this rank."""
        sizes = self.sizes.get(name, ())
        if len(sizes) != rank:
            return None
        known = [size for size in sizes if size is not None]
        return known if len(known) == rank else None

    def add(self, before: onnx.NodeProto, kind: str, inputs: Sequence[str], **more: object) -> str:
        """Put a node before another; returns its output."""
        name = f"{before.output[0]}__fused_{kind.lower()}_{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [name], name=name, **more)
        self.nodes.insert(self.nodes.index(before), node)
        return name

    def keep(self, values: object, dtype: np.typing.DTypeLike = np.int64) -> str:
        """Add a constant; returns its name."""
        name = f"attention__constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def rounded(value: float, kind: int) -> float:
    """A number as one of a float type."""
    with np.errstate(over="ignore"):
        return float(np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(kind)))


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    name: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Attention, written out. Sizes are batch, heads, sequence, head."""

    query: str
    key: str
    key_turned: bool  #: whether the key is batch, sequence, heads, head
    value: str
    scale: float
    bias: str | None
    added_in: int  #: the type in which the bias is added
    guarded: bool
    heads: int
    head: int
    value_head: int
    batch: int | str
    queries: int | str
    keys: int | str
    type: int


def _fuse(graph: _Graph, node: onnx.NodeProto) -> bool:
    found = _found(graph, node)
    if found is None:
        return False
    mask: _Mask | None = None
    if found.bias is not None:
        mask = _mask(graph, found, node)
        if mask is None:
            return False
    _replace(graph, node, found, mask)
    return True


def _found(graph: _Graph, node: onnx.NodeProto) -> _Found | None:
    """The attention whose last product this is, if every size and type is as the operator wants it."""
    shares, guarded = _unguarded(graph, graph.without_casts(node.input[0]))
    softmax = graph.maker(shares, "Softmax")
    if softmax is None or not _is_last(softmax):
        return None
    summed = _sum(graph, graph.without_casts(softmax.input[0]))
    if summed is None:
        return None
    product, scale, bias, added_in = summed
    query = _unscaled(graph, product.input[0])
    key = _unscaled(graph, product.input[1])
    turned = _key(graph, key.name)
    if turned is None:
        return None
    name, key_turned = turned
    sizes = [graph.known(one, _RANK) for one in (query.name, name, node.input[1])]
    if any(one is None for one in sizes):
        return None
    (batch, heads, queries, head), of_key, (batch_v, heads_v, keys_v, value_head) = (
        one for one in sizes if one is not None
    )
    if key_turned:
        of_key = [of_key[0], of_key[2], of_key[1], of_key[3]]
    types = {graph.types.get(one) for one in (query.name, name, node.input[1])}
    scale = scale * query.scale * key.scale
    is_plain = (
        0 < scale < inf  # to the operator 0 means its default
        and list(of_key) == [batch, heads, keys_v, head]
        and (batch_v, heads_v) == (batch, heads)
        and len(types) == 1
        and types <= set(_TYPES)
    )
    if not (is_plain and isinstance(heads, int) and isinstance(head, int)):
        return None
    if not isinstance(value_head, int):
        return None
    return _Found(
        query=query.name,
        key=name,
        key_turned=key_turned,
        value=node.input[1],
        scale=scale,
        bias=bias,
        added_in=added_in,
        guarded=guarded,
        heads=heads,
        head=head,
        value_head=value_head,
        batch=batch,
        queries=queries,
        keys=keys_v,
        type=graph.types[query.name],
    )


def _unguarded(graph: _Graph, name: str) -> tuple[str, bool]:
    """The value before ``Where(IsNaN(x), 0, x)``, and whether there was that guard."""
    where = graph.maker(name, "Where")
    if where is None:
        return name, False
    test = graph.maker(where.input[0], "IsNaN")
    inner = graph.without_casts(where.input[2])
    if test is None or graph.number(where.input[1]) != 0:
        return name, False
    return (inner, True) if graph.without_casts(test.input[0]) == inner else (name, False)


def _is_last(softmax: onnx.NodeProto) -> bool:
    axis = next((one.i for one in softmax.attribute if one.name == "axis"), -1)
    return axis in (-1, _RANK - 1)


def _sum(graph: _Graph, name: str) -> tuple[onnx.NodeProto, float, str | None, int] | None:
    """The product of queries and keys, its scale, and what is added to it, in which type."""
    added_in = graph.types.get(name, 0)
    plain = _product(graph, name)
    if plain:
        return *plain, None, added_in
    add = graph.maker(name, "Add")
    for one, other in ((0, 1), (1, 0)) if add else ():
        assert add is not None
        scores = _product(graph, graph.without_casts(add.input[one]))
        if scores:
            return *scores, add.input[other], added_in
    return None


def _product(graph: _Graph, name: str) -> tuple[onnx.NodeProto, float] | None:
    scaled = _unscaled(graph, name)
    product = graph.maker(graph.without_casts(scaled.name), "MatMul")
    return (product, scaled.scale) if product is not None else None


def _unscaled(graph: _Graph, name: str) -> _Scaled:
    """The value before multiplications by, and divisions by, numbers."""
    scale = 1.0
    while (node := graph.maker(name, "Mul", "Div")) is not None:
        first, second = graph.number(node.input[0]), graph.number(node.input[1])
        if second is not None and second != 0 and _keeps_rank(graph, node, 1):
            scale = scale * second if node.op_type == "Mul" else scale / second
            name = node.input[0]
        elif first is not None and node.op_type == "Mul" and _keeps_rank(graph, node, 0):
            scale, name = scale * first, node.input[1]
        else:
            break
    return _Scaled(name=name, scale=scale)


def _keeps_rank(graph: _Graph, node: onnx.NodeProto, number: int) -> bool:
    """Whether the number, which may have axes, adds none to the other operand."""
    array = graph.constant(node.input[number])
    return array is not None and array.ndim <= _RANK


def _key(graph: _Graph, name: str) -> tuple[str, bool] | None:
    """The key before its last two axes were swapped, and whether its heads come after its sequence."""
    turn = graph.maker(name, "Transpose")
    if turn is not None:
        perm = _perm(turn)
        if perm == [0, 1, 3, 2]:
            return turn.input[0], False
        return (turn.input[0], True) if perm == _KEYS_TURNED else None
    # PyTorch's exporter swaps them in three dimensions.
    last = graph.maker(name, "Reshape")
    turn = graph.maker(last.input[0], "Transpose") if last is not None else None
    first = graph.maker(turn.input[0], "Reshape") if turn is not None else None
    if last is None or turn is None or first is None or _perm(turn) != [0, 2, 1]:
        return None
    key, middle = first.input[0], graph.sizes.get(first.output[0], ())
    sizes, end = graph.known(key, _RANK), graph.known(name, _RANK)
    if sizes is None or end is None or len(middle) != _RANK - 1:
        return None
    batch, heads, keys, head = sizes
    is_swap = list(middle[1:]) == [keys, head] and list(end) == [batch, heads, head, keys]
    return (key, False) if is_swap else None


def _perm(node: onnx.NodeProto) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == "perm"), [])


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """What the operator adds to the scores, and what becomes of rows that are masked throughout."""

    bias: str | None = None  #: None: nothing
    masked: str | None = None  #: batch, sequence, 1: which rows these are; None: there can be none
    result: float | None = None  #: theirs; None: the mean of the values


def _mask(graph: _Graph, found: _Found, node: onnx.NodeProto) -> _Mask | None:
    """The bias for the operator; None if it can't be shown to do the same."""
    key = (found.bias, found.type, found.guarded, found.added_in, found.queries, found.keys)
    if key not in graph.masks:
        graph.masks[key] = _made_mask(graph, found, node)
    return graph.masks[key]


def _made_mask(graph: _Graph, found: _Found, node: onnx.NodeProto) -> _Mask | None:
    assert found.bias is not None
    sizes = graph.sizes.get(found.bias, ())
    full = [found.batch, found.heads, found.queries, found.keys]
    padded = [1] * (_RANK - len(sizes)) + list(sizes)
    if not sizes or len(sizes) > _RANK or padded[-1] != found.keys:
        return None
    if any(size not in (1, whole) for size, whole in zip(padded, full, strict=True)):
        return None
    source = graph.without_casts(found.bias)
    constant = graph.constant(source)
    if constant is not None:
        is_ordinary = bool((constant.astype(np.float64).max(-1) > _ORDINARY).all())
        bias = graph.keep(np.maximum(constant.astype(np.float32), _FLOORS[found.type]), np.float32)
        return _Mask(bias=_shaped(graph, found, node, bias, padded)) if is_ordinary else None
    choice = graph.maker(source, "Where")
    return None if choice is None else _chosen(graph, found, node, choice, padded)


def _chosen(
    graph: _Graph,
    found: _Found,
    node: onnx.NodeProto,
    choice: onnx.NodeProto,
    padded: Sequence[int | str | None],
) -> _Mask | None:
    """The bias for a mask of two numbers: 0 for keys to attend to, and the lowest for others."""
    condition, first, second = choice.input
    numbers = [
        None if number is None else rounded(number, found.added_in)
        for number in (graph.number(first), graph.number(second))
    ]
    if numbers[0] == 0:
        keeps, lowest = True, numbers[1]
    elif numbers[1] == 0:
        keeps, lowest = False, numbers[0]
    else:
        return None
    if lowest is None or isnan(lowest) or lowest > _LOWEST[found.added_in]:
        return None
    if keeps and _is_all_true(graph, condition):
        return _Mask()
    floor = max(lowest, _FLOORS[found.type])
    low, zero = (graph.keep(value, np.float32) for value in (floor, 0.0))
    pair = [zero, low] if keeps else [low, zero]
    bias = graph.add(node, "Where", [condition, *pair])
    shaped = _shaped(graph, found, node, bias, padded)
    is_mean = np.isfinite(lowest)
    # The kernel's sums are fp32, in which such a number takes all of a score, as in the graph.
    if is_mean and floor <= _LOWEST[found.added_in] and found.type != TensorProto.FLOAT16:
        return _Mask(bias=shaped)
    if padded[1] != 1:
        return None  # rows that differ between heads
    masked = _masked_rows(graph, node, bias, len(graph.sizes[found.bias or ""]), found.type)
    result = None if is_mean else 0.0 if found.guarded else nan
    return _Mask(bias=shaped, masked=masked, result=result)


def _is_all_true(graph: _Graph, name: str) -> bool:
    array = graph.constant(name)
    if array is not None:
        return bool(array.all())
    node = graph.maker(name, "And", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")
    if node is None:
        return False
    given = node.input if node.op_type == "And" else node.input[:1]
    return all(_is_all_true(graph, one) for one in given)


def _shaped(
    graph: _Graph,
    found: _Found,
    node: onnx.NodeProto,
    bias: str,
    padded: Sequence[int | str | None],
) -> str:
    """The bias with four axes, all rows written out, in the operator's type."""
    missing = _RANK - len(graph.sizes[found.bias or ""])
    if missing:
        bias = graph.add(node, "Unsqueeze", [bias, graph.keep(list(range(missing)))])
    if padded[2] != found.queries:
        rows = graph.add(node, "Shape", [found.query], start=2, end=3)
        one = graph.keep([1])
        shape = graph.add(node, "Concat", [one, one, rows, one], axis=0)
        bias = graph.add(node, "Expand", [bias, shape])
    if found.type != TensorProto.FLOAT:
        bias = graph.add(node, "Cast", [bias], to=found.type)
    return bias


def _masked_rows(graph: _Graph, node: onnx.NodeProto, bias: str, rank: int, kind: int) -> str:
    """Which rows are masked throughout, as batch, sequence, 1."""
    best = graph.add(node, "ReduceMax", [bias, graph.keep([-1])], keepdims=1)
    masked = graph.add(node, "Less", [best, graph.keep(_FLOORS[kind] / 2, np.float32)])
    if rank < _RANK:
        masked = graph.add(node, "Unsqueeze", [masked, graph.keep(list(range(_RANK - rank)))])
    return graph.add(node, "Squeeze", [masked, graph.keep([1])])


def _replace(graph: _Graph, node: onnx.NodeProto, found: _Found, mask: _Mask | None) -> None:
    mask = mask or _Mask()
    query = _flat(graph, node, found.query, found.heads * found.head)
    key = _flat(graph, node, found.key, found.heads * found.head, turned=found.key_turned)
    value = _flat(graph, node, found.value, found.heads * found.value_head)
    if mask.masked is not None and mask.result is None:
        # Scores of 0 give the mean.
        query = graph.add(node, "Where", [mask.masked, _number(graph, node, 0.0, found), query])
    inputs = [query, key, value]
    if mask.bias is not None:
        inputs += ["", "", mask.bias]
    out = graph.add(node, OPERATOR, inputs, domain=DOMAIN, num_heads=found.heads, scale=found.scale)
    if mask.masked is not None and mask.result is not None:
        other = _number(graph, node, mask.result, found)
        out = graph.add(node, "Where", [mask.masked, other, out])
    shape = graph.keep([0, 0, found.heads, found.value_head])
    apart = graph.add(node, "Reshape", [out, shape])
    turned = helper.make_node(
        "Transpose", [apart], [node.output[0]], name=f"{node.output[0]}__fused", perm=_HEADS_SECOND
    )
    graph.nodes[graph.nodes.index(node)] = turned
    _rejoin(graph, node.output[0], out, found)


def _number(graph: _Graph, node: onnx.NodeProto, value: float, found: _Found) -> str:
    name = graph.keep(value, np.float32)
    if found.type == TensorProto.FLOAT:
        return name
    return graph.add(node, "Cast", [name], to=found.type)


def _flat(
    graph: _Graph, node: onnx.NodeProto, name: str, hidden: int, *, turned: bool = False
) -> str:
    """A value as batch, sequence, heads × head; without a copy where the graph had it so."""
    if not turned:
        turn = graph.maker(name, "Transpose")
        if turn is not None and _perm(turn) == _HEADS_SECOND:
            name = turn.input[0]
        else:
            name = graph.add(node, "Transpose", [name], perm=_HEADS_SECOND)
    before = graph.maker(name, "Reshape")
    apart = graph.known(name, _RANK)
    if before is not None and apart is not None:
        flat = graph.known(before.input[0], _RANK - 1)
        if flat is not None and list(flat) == [apart[0], apart[1], hidden]:
            return str(before.input[0])
    return graph.add(node, "Reshape", [name, graph.keep([0, 0, hidden])])


def _rejoin(graph: _Graph, name: str, out: str, found: _Found) -> None:
    """Have whoever puts the heads back together take the operator's result as it is."""
    sizes = [found.batch, found.heads, found.queries, found.value_head]
    for reshape in _users(graph, name, "Reshape"):
        if graph.known(reshape.output[0], _RANK) == sizes:  # as the exporter copies
            _rejoin(graph, reshape.output[0], out, found)
    flat = [found.batch, found.queries, found.heads * found.value_head]
    for turn in _users(graph, name, "Transpose"):
        if _perm(turn) != _HEADS_SECOND:
            continue
        for reshape in _users(graph, turn.output[0], "Reshape"):
            joined = reshape.output[0]
            if graph.known(joined, _RANK - 1) != flat:
                continue
            if joined in graph.outputs or joined in graph.used_in_bodies:
                continue
            for user in graph.nodes:
                for at, given in enumerate(user.input):
                    if given == joined:
                        user.input[at] = out


def _users(graph: _Graph, name: str, kind: str) -> list[onnx.NodeProto]:
    return [
        node
        for node in graph.nodes
        if node.op_type == kind and node.domain in STANDARD_DOMAINS and node.input[0] == name
    ]
