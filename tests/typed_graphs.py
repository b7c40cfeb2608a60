"""Graphs of chosen types and bodies, their data, and builds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from farm.specs.precision import Precision
from tests.zoo import runner

F, H, BF, D = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)


I64, BOOL = TensorProto.INT64, TensorProto.BOOL


Shape = Sequence[int | str] | None


Tensors = Mapping[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    fan = np.prod(shape[:-1]) if len(shape) > 1 else shape[0]
    made = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)
    return made.astype(np.float32)


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def value(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    tensors: Tensors | None = None,
    name: str = "graph",
) -> onnx.GraphProto:
    made = [numpy_helper.from_array(np.asarray(v), n) for n, v in (tensors or {}).items()]
    return helper.make_graph(nodes, name, inputs, outputs, made)


def model(made: onnx.GraphProto, opset: int = 20) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(made, opset_imports=imports, ir_version=6 if opset < 13 else 9)


def branches() -> onnx.ModelProto:
    """An If whose branches multiply an outer activation by weights of their own."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        nodes = [node("Gemm", "r w", "g"), node("Relu", "g", "o")]
        return graph(nodes, [], [value("o", F, ["n", 32])], {"w": random(32, 32, seed=seed)}, name)

    nodes = [
        node("Gemm", "x v", "h"),
        node("Relu", "h", "r"),
        node("ReduceMean", "x", "m", keepdims=0),
        node("Greater", "m zero", "c"),
        node("If", "c", "f", then_branch=branch("then", 1), else_branch=branch("else", 2)),
        node("Gemm", "f k", "y"),
    ]
    tensors = {"v": random(16, 32), "k": random(32, 8), "zero": np.float32(0)}
    inputs = [value("x", F, ["n", 16])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))


def turns() -> onnx.ModelProto:
    """A Loop that multiplies a state which it carries."""
    body = graph(
        [
            node("MatMul", "s u", "su"),
            node("Add", "su r", "sa"),
            node("Tanh", "sa", "sn"),
            node("Identity", "ci", "co"),
        ],
        [value("it", I64, []), value("ci", BOOL, []), value("s", F, ["n", 32])],
        [value("co", BOOL, []), value("sn", F, ["n", 32])],
    )
    nodes = [
        node("Gemm", "x v", "h"),
        node("Relu", "h", "r"),
        node("Loop", "trips true r", "f", body=body),
        node("Gemm", "f k", "y"),
    ]
    tensors = {
        "v": random(16, 32),
        "u": random(32, 32),
        "k": random(32, 8),
        "trips": np.array(3),
        "true": np.array(True),
    }
    inputs = [value("x", F, ["n", 16])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))


def norm(summed: bool = False) -> onnx.ModelProto:
    """A norm that is written out, after activations of some hundreds: the square leaves fp16."""
    mean = [node("ReduceMean", "t last", "mu")]
    square = [node("Pow", "df two", "sq"), node("ReduceMean", "sq last", "var")]
    if summed:
        mean = [node("ReduceSum", "t last", "total"), node("Mul", "total share", "mu")]
        square = [
            node("Mul", "df df", "sq"),
            node("ReduceSum", "sq last", "energy"),
            node("Mul", "energy share", "var"),
        ]
    nodes = [
        node("Conv", "x w", "a", strides=[4, 4]),
        node("Reshape", "a flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        *mean,
        node("Sub", "t mu", "df"),
        *square,
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "sd"),
        node("Div", "df sd", "nm"),
        node("MatMul", "nm u", "v"),
        node("Relu", "v", "vr"),
        node("ReduceMean", "vr one", "p", keepdims=0),
        node("MatMul", "p k", "y"),
    ]
    tensors = {
        "w": random(64, 3, 4, 4) * 8,
        "flat": np.array([0, 64, -1]),
        "last": np.array([-1]),
        "one": np.array([1]),
        "two": np.float32(2),
        "share": np.float32(1 / 64),
        "eps": np.float32(1e-6),
        "u": random(64, 64),
        "k": random(64, 10),
    }
    inputs = [value("x", F, ["n", 3, 32, 32])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 10])], tensors))


def pixels(count: int = 32) -> np.ndarray:
    """Smooth images in 0 to 255."""
    numbers = np.random.default_rng(5)
    low = np.kron(numbers.random((count, 3, 8, 8)) * 255, np.ones((1, 1, 4, 4)))
    noise = numbers.standard_normal((count, 3, 32, 32)) * 10
    return np.clip(low + noise, 0, 255).astype(np.float32)


def noise(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def build(
    folder: Path,
    made: onnx.ModelProto | Path,
    samples: Tensors,
    precisions: Sequence[str],
    gpus: Sequence[str],
) -> dict[tuple[str, str], runner.Built]:
    folder = Path(mkdtemp(dir=folder))
    path = made if isinstance(made, Path) else folder / "model.onnx"
    if isinstance(made, onnx.ModelProto):
        onnx.save(made, str(path))
    kind = "pt2" if path.suffix == ".pt2" else "onnx"
    source = runner.Source(name="types", path=path, format=kind, samples=samples)
    wanted = [Precision(one) for one in precisions]
    built = runner.build(source, precisions=wanted, gpus=gpus, folder=folder)
    return {(str(one.precision), one.target.partition(":")[2]): one for one in built}


def all_right(built: Mapping[object, runner.Built], cosine: float) -> None:
    for key, one in built.items():
        assert one.error is None, (key, one.error, one.error and one.error.hint)
        assert one.accuracy.cosine_min > cosine, key
