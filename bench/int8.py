"""What int8 gives on this machine's processor: engines for ``cpu`` in int8 beside the same in fp32.

Layers as in a ResNet-50 and in a transformer, Q/DQ as ModelOpt places it, built as the farm builds them,
and run by a session with default options but one thread. With VNNI other kernels run than without it;
all are exact, since the engines' weights are unsigned.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.table import Row, row
from workers.backends.ort import cpu
from workers.quantize.cpu_integers import integer_graph
from workers.quantize.saturation import exact_graph

ROUNDS, RUNS = 5, 6
_CPUINFO = Path("/proc/cpuinfo")
_VNNI = ("avx512_vnni", "avx_vnni")
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Products one after the other, a Relu between them."""

    name: str
    operator: str
    shape: tuple[int, ...]  #: of the input
    weights: Sequence[tuple[int, ...]]
    strides: int = 1
    group: int = 1


LAYERS = (
    Layers(
        name="ResNet-50: 7×7, 3 to 64, 224²",
        operator="Conv",
        shape=(1, 3, 224, 224),
        weights=[(64, 3, 7, 7)],
        strides=2,
    ),
    Layers(
        name="ResNet-50: bottleneck of 64, 56²",
        operator="Conv",
        shape=(1, 256, 56, 56),
        weights=[(64, 256, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1)],
    ),
    Layers(
        name="ResNet-50: bottleneck of 256, 14²",
        operator="Conv",
        shape=(1, 1024, 14, 14),
        weights=[(256, 1024, 1, 1), (256, 256, 3, 3), (1024, 256, 1, 1)],
    ),
    Layers(
        name="depthwise 3×3 of 256, 28²",
        operator="Conv",
        shape=(1, 256, 28, 28),
        weights=[(256, 1, 3, 3)],
        group=256,
    ),
    Layers(
        name="transformer: MLP of 768, 128 tokens",
        operator="MatMul",
        shape=(1, 128, 768),
        weights=[(768, 3072), (3072, 768)],
    ),
    Layers(
        name="transformer: MLP of 768, 1 token",
        operator="MatMul",
        shape=(1, 1, 768),
        weights=[(768, 3072), (3072, 768)],
    ),
)


def ratios() -> Iterator[Row]:
    """The time of a run in int8 over that in fp32, for each of the layers."""
    print(processor(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            whole, floats = _timed(layers, Path(folder))
            yield row(f"int8 over fp32: {layers.name}", whole, floats, " ms", digits=2)


def processor() -> str:
    """The processor's name, and whether it has VNNI."""
    told = _CPUINFO.read_text()
    name = next(
        (line.partition(":")[2].strip() for line in told.splitlines() if "model name" in line),
        "an unnamed processor",
    )
    flags = told.split()
    has = "with VNNI" if any(flag in flags for flag in _VNNI) else "without VNNI"
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "SSE"
    return f"{name}: {wide}, {has}; one thread; ONNX Runtime {cpu.VERSION}"


def _timed(layers: Layers, folder: Path) -> tuple[float, float]:
    """The milliseconds of a run in int8 and in fp32, taken by turns: the best of each.

    Of one thread's time on a core, which other work on the machine changes little.
    """
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal(shape) / np.sqrt(np.prod(shape[-3:]))).astype(np.float32)
        for shape in layers.weights
    ]
    x = np.abs(rng.standard_normal(layers.shape)).astype(np.float32)
    integers = integer_graph(_quantized(layers, weights), lambda names: dict.fromkeys(names, 6.0))
    sessions = [
        _session(model, folder / f"{name}.onnx")
        for name, model in (("int8", exact_graph(integers)), ("fp32", _floats(layers, weights)))
    ]
    best = [float("inf")] * len(sessions)
    for _ in range(ROUNDS):
        for index, session in enumerate(sessions):
            session.run(None, {"x": x})
            for _ in range(RUNS):
                start = time.thread_time()
                session.run(None, {"x": x})
                best[index] = min(best[index], time.thread_time() - start)
    return best[0] * 1e3, best[1] * 1e3


def _session(model: onnx.ModelProto, engine: Path) -> onnxruntime.InferenceSession:
    typed = engine.with_suffix(".typed.onnx")
    onnx.save(model, str(typed))
    cpu.build_engine(typed, engine)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])


def _floats(layers: Layers, weights: Sequence[Array]) -> onnx.ModelProto:
    nodes, given = [], "x"
    for n in range(len(weights)):
        nodes += _product(layers, n, given, f"w{n}")
        given = f"r{n}"
    return _model(layers, nodes, given, {f"w{n}": value for n, value in enumerate(weights)})


def _quantized(layers: Layers, weights: Sequence[Array]) -> onnx.ModelProto:
    """Each product's operands quantised symmetrically, as ModelOpt does it; the last result too."""
    tensors: dict[str, NDArray[np.generic]] = {
        "scale": np.asarray(np.float32(6 / 127)),
        "zero": np.asarray(np.int8(0)),
    }
    nodes, given = [], "x"
    axis = 0 if layers.operator == "Conv" else 1
    for n, weight in enumerate(weights):
        others = tuple(a for a in range(weight.ndim) if a != axis)
        scale = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
        sizes = [-1 if a == axis else 1 for a in range(weight.ndim)]
        tensors[f"w{n}"] = np.rint(weight / scale.reshape(sizes)).astype(np.int8)
        tensors[f"w{n}_scale"] = scale
        tensors[f"w{n}_zero"] = np.zeros(scale.shape, np.int8)
        names = [f"w{n}", f"w{n}_scale", f"w{n}_zero"]
        nodes += _pair(given)
        nodes.append(helper.make_node("DequantizeLinear", names, [f"w{n}_f"], axis=axis))
        nodes += _product(layers, n, f"{given}_d", f"w{n}_f")
        given = f"r{n}"
    nodes += _pair(given)
    return _model(layers, nodes, f"{given}_d", tensors)


def _pair(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]),
    ]


def _product(layers: Layers, n: int, given: str, weight: str) -> list[onnx.NodeProto]:
    options = {}
    if layers.operator == "Conv":
        size = layers.weights[n][-1]
        options = {
            "pads": [size // 2] * 4,
            "strides": [layers.strides] * 2,
            "group": layers.group,
        }
    return [
        helper.make_node(layers.operator, [given, weight], [f"p{n}"], **options),
        helper.make_node("Relu", [f"p{n}"], [f"r{n}"]),
    ]


def _model(
    layers: Layers,
    nodes: Sequence[onnx.NodeProto],
    last: str,
    tensors: dict[str, NDArray[np.generic]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", [last], ["y"])],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, layers.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
