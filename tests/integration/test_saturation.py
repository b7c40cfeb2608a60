"""Engines for CPUs multiply integers exactly, with the largest values too, on every processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import EngineBuildFailed
from tests import emulated
from workers.backends.ort import cpu
from workers.backends.ort.cpu import OrtModel
from workers.quantize.cpu_integers import integer_graph
from workers.quantize.integer_products import LARGEST_WEIGHT, PRODUCTS, refuse_saturation
from workers.quantize.saturation import exact_file, exact_graph
from workers.report.layers import INTEGER_KERNELS

EMULATOR = shutil.which("qemu-x86_64")
#: No VNNI in the one, nor AVX2 in the other, whose kernels differ again.
PROCESSORS = ("Haswell", "Nehalem")
LENGTH, ROWS, COLUMNS = 512, 5, 24
SCALE = np.float32(2.0**-5)
node = helper.make_node


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    tensors: dict[str, np.ndarray],
    *,
    kind: int = TensorProto.FLOAT,
    shape: Sequence[int] | None = None,
    opset: int = 21,
) -> onnx.ModelProto:
    given = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in inputs.items()
    ]
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    output = helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph(list(nodes), "products", given, [output], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def built(model: onnx.ModelProto, folder: Path, name: str = "engine") -> Path:
    """The engine, as the build stage makes it."""
    typed, engine = folder / "typed.onnx", folder / f"{name}.onnx"
    onnx.save(exact_graph(model), str(typed))
    cpu.build_engine(typed, engine)
    refuse_saturation(onnx.load(str(engine)))
    typed.unlink()
    return engine


def kinds(engine: Path) -> list[str]:
    return [made.op_type for made in onnx.load(str(engine)).graph.node]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A graph, its inputs, and what integers of any width would give."""

    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    expected: np.ndarray
    kernel: str


def pair(name: str, zero: str) -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", [name, "scale", zero], [f"{name}_q"]),
        node("DequantizeLinear", [f"{name}_q", "scale", zero], [f"{name}_d"]),
    ]


def largest(signed: bool, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Whole numbers, most of them the largest that the type has, some any."""
    rng = np.random.default_rng(seed)
    low, high = (-128, 127) if signed else (0, 255)
    values = np.full(shape, high)
    values[..., ::3] = rng.integers(low, high + 1, values[..., ::3].shape)
    return values


def weights(shape: tuple[int, ...], axis: int, least: int = -128, most: int = 127) -> np.ndarray:
    """All the most in one channel, all the least in the next, then any."""
    made = np.random.default_rng(7).integers(least, most + 1, shape)
    channels = np.moveaxis(made, axis, 0)
    channels[::4], channels[1::4] = most, least
    return made


def quantized(
    product: onnx.NodeProto, whole: np.ndarray, weight: np.ndarray, *, signed: bool, axis: int,
    sums: np.ndarray, rounded: bool, kernel: str, per_channel: bool = True,
) -> Case:  # fmt: skip
    """Q/DQ around a product of ``x`` and ``w``, and around its result where that is rounded."""
    kind = np.int8 if signed else np.uint8
    channels = weight.shape[axis]
    scales = np.full(channels, 2.0**-6, np.float32)
    tensors = {
        "scale": SCALE,
        "zero": kind(0),
        "weight": weight.astype(np.int8),
        "weight_scale": scales if per_channel else scales[0],
        "weight_zero": np.zeros(channels, np.int8) if per_channel else np.int8(0),
    }
    nodes = [
        *pair("x", "zero"),
        node(
            "DequantizeLinear",
            ["weight", "weight_scale", "weight_zero"],
            ["w"],
            **({"axis": axis} if per_channel else {}),
        ),
        product,
    ]
    expected = sums * 2.0**-11
    if rounded:
        step = np.float32(2.0 ** np.ceil(np.log2(np.abs(expected).max() / 120)))
        tensors |= {"step": step, "middle": np.int8(0) if signed else np.uint8(128)}
        nodes += [
            node("QuantizeLinear", ["p", "step", "middle"], ["p_q"]),
            node("DequantizeLinear", ["p_q", "step", "middle"], ["y"]),
        ]
        expected = np.rint(expected / step) * step
    else:
        nodes += [node("Identity", ["p"], ["y"])]
    inputs = {"x": whole.astype(np.float32) * SCALE}
    model = model_of(nodes, inputs, tensors, shape=expected.shape)
    return Case(model=model, inputs=inputs, expected=expected, kernel=kernel)


NARROW = (-LARGEST_WEIGHT, LARGEST_WEIGHT)
WIDE = (-128, 127)


def matrix(
    operator: str, *, signed: bool, rounded: bool, rows: int = ROWS, limits: tuple[int, int] = WIDE
) -> Case:
    whole = largest(signed, (rows, LENGTH), 1)
    weight = weights((LENGTH, COLUMNS), 1, *limits)
    kernel = {("MatMul", True): "QLinearMatMul", ("MatMul", False): "MatMulIntegerToFloat"}
    return quantized(
        node(operator, ["x_d", "w"], ["p"]),
        whole,
        weight,
        signed=signed,
        axis=1,
        sums=whole @ weight,
        rounded=rounded,
        kernel=kernel.get((operator, rounded), "QGemm"),
    )


def convolved(whole: np.ndarray, weight: np.ndarray, group: int) -> np.ndarray:
    """A convolution in integers of 64 bits."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, weight.shape[2:], axis=(2, 3))
    inputs, outputs = (size // group for size in (whole.shape[1], weight.shape[0]))
    parts = [
        np.einsum(
            "nchwij,ocij->nohw",
            windows[:, part * inputs : (part + 1) * inputs],
            weight[part * outputs : (part + 1) * outputs],
        )
        for part in range(group)
    ]
    return np.concatenate(parts, axis=1)


def convolution(
    inputs: int, outputs: int, size: int, group: int = 1, *, signed: bool, per_channel: bool = True,
    limits: tuple[int, int] = WIDE,
) -> Case:  # fmt: skip
    whole = largest(signed, (2, inputs, 7, 7), 2)
    weight = weights((outputs, inputs // group, size, size), 0, *limits)
    return quantized(
        node("Conv", ["x_d", "w"], ["p"], group=group),
        whole,
        weight,
        signed=signed,
        axis=0,
        sums=convolved(whole, weight, group),
        rounded=True,
        kernel="QLinearConv",
        per_channel=per_channel,
    )


def between_activations() -> Case:
    """Both operands unsigned and signed activations: x uint8, v int8."""
    whole, other = largest(False, (ROWS, LENGTH), 3), weights((LENGTH, COLUMNS), 1)
    inputs = {
        "x": whole.astype(np.float32) * SCALE,
        "v": other.astype(np.float32) * SCALE,
    }
    tensors = {"scale": SCALE, "zero": np.uint8(0), "signed": np.int8(0)}
    nodes = [*pair("x", "zero"), *pair("v", "signed"), node("MatMul", ["x_d", "v_d"], ["y"])]
    expected = (whole @ other) * 2.0**-10
    model = model_of(nodes, inputs, tensors, shape=expected.shape)
    return Case(model=model, inputs=inputs, expected=expected, kernel="MatMulIntegerToFloat")


def integers(
    operator: str, *, constant: bool = True, zeros: bool = True, limits: tuple[int, int] = WIDE
) -> Case:
    """MatMulInteger or ConvInteger as people write it, the right operand signed."""
    if operator == "MatMulInteger":
        left, right = largest(False, (ROWS, LENGTH), 4), weights((LENGTH, COLUMNS), 1, *limits)
        expected, names = left @ right, ["left", "right"]
    else:
        # It multiplies its weights by its input.
        right, left = largest(True, (2, 16, 7, 7), 4), largest(False, (8, 16, 3, 3), 5)
        expected, names = convolved(right, left, 1), ["right", "left"]
    values = {"left": left.astype(np.uint8), "right": right.astype(np.int8)}
    inputs = {"left": values["left"]} if constant else values
    tensors = {name: value for name, value in values.items() if name not in inputs}
    if zeros:
        kinds = {"left": np.uint8, "right": np.int8}
        tensors |= {f"{name}_zero": kinds[name](0) for name in names}
        names = [*names, *(f"{name}_zero" for name in names)]
    model = model_of(
        [node(operator, names, ["y"])],
        inputs,
        tensors,
        kind=TensorProto.INT32,
        shape=expected.shape,
    )
    return Case(model=model, inputs=inputs, expected=expected, kernel=operator)


def dynamic(limits: tuple[int, int] = WIDE) -> Case:
    """A product whose activations are quantised as they come."""
    whole, weight = largest(False, (ROWS, LENGTH), 6), weights((LENGTH, COLUMNS), 1, *limits)
    whole[0, 0], whole[0, 1] = 0, 255
    tensors = {
        "weight": weight.astype(np.int8),
        "weight_zero": np.zeros(COLUMNS, np.int8),
        "weight_scale": np.full(COLUMNS, 2.0**-6, np.float32),
    }
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "weight", "z", "weight_zero"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["s", "weight_scale"], ["ss"]),
        node("Mul", ["f", "ss"], ["y"]),
    ]
    inputs = {"x": whole.astype(np.float32)}
    expected = (whole @ weight) * 2.0**-6
    model = model_of(nodes, inputs, tensors, shape=expected.shape)
    return Case(model=model, inputs=inputs, expected=expected, kernel="DynamicQuantizeMatMul")


def operators() -> Case:
    """QLinearMatMul as people write it, unsigned by signed."""
    whole, weight = largest(False, (ROWS, LENGTH), 1), weights((LENGTH, COLUMNS), 1)
    sums = (whole @ weight) * 2.0**-11
    step = np.float32(2.0 ** np.ceil(np.log2(np.abs(sums).max() / 120)))
    tensors = {
        "scale": SCALE,
        "zero": np.uint8(0),
        "weight": weight.astype(np.int8),
        "weight_scale": np.float32(2.0**-6),
        "weight_zero": np.int8(0),
        "step": step,
        "middle": np.uint8(128),
    }
    names = ["x", "scale", "zero", "weight", "weight_scale", "weight_zero", "step", "middle"]
    inputs = {"x": whole.astype(np.uint8)}
    model = model_of(
        [node("QLinearMatMul", names, ["y"])],
        inputs,
        tensors,
        kind=TensorProto.UINT8,
        shape=sums.shape,
    )
    expected = np.rint(sums / step) + 128
    return Case(model=model, inputs=inputs, expected=expected, kernel="QLinearMatMul")


def recurrent(limits: tuple[int, int] = WIDE) -> Case:
    """One step of an LSTM whose weights, of input and state, are integers, and its activations linear."""
    hidden = COLUMNS
    whole, state = largest(False, (ROWS, LENGTH), 8), largest(False, (ROWS, hidden), 9)
    whole[0, 0], state[0, 0] = 0, 0
    weight, again = (weights((length, 4 * hidden), 1, *limits) for length in (LENGTH, hidden))
    scale = np.array([2.0**-10], np.float32)
    tensors = {
        "w": weight[None].astype(np.int8),
        "r": again[None].astype(np.int8),
        "before": np.ones((1, ROWS, hidden), np.float32),
        "scale": scale,
        "zero": np.zeros(1, np.int8),
    }
    names = ["x", "w", "r", "", "", "h", "before", "", "scale", "zero", "scale", "zero"]
    linear = {"activations": ["Affine"] * 3, "activation_alpha": [1.0] * 3}
    made = node(
        "DynamicQuantizeLSTM",
        names,
        ["", "y"],
        domain="com.microsoft",
        hidden_size=hidden,
        activation_beta=[0.0] * 3,
        **linear,
    )
    gates = (whole @ weight + state @ again) * float(scale[0])
    given, shown, forgotten, new = np.split(gates, 4, axis=1)
    expected = (shown * (forgotten + given * new))[None]
    inputs = {"x": whole[None].astype(np.float32), "h": state[None].astype(np.float32)}
    model = model_of([made], inputs, tensors, shape=expected.shape)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return Case(model=model, inputs=inputs, expected=expected, kernel=made.op_type)


def network() -> Case:
    """Two convolutions and a Gemm as ModelOpt quantises them, made integers as the build stage does it.

    What comes of it is what its Q/DQ say in floats, whose sums are exact: they are below 2²⁴.
    """
    rng = np.random.default_rng(3)
    tensors = {"scale": SCALE, "zero": np.int8(0), "ones": np.ones(16, np.float32)}
    nodes, given = [], "x"
    for name, size in (("first", (16, 32, 3, 3)), ("second", (16, 16, 3, 3)), ("last", (16, 8))):
        is_conv = len(size) > 2
        axis = 0 if is_conv else 1
        weight = weights(size, axis)
        tensors |= {
            name: np.maximum(weight, -127).astype(np.int8),
            f"{name}_scale": np.full(size[axis], 2.0**-12, np.float32),
            f"{name}_zero": np.zeros(size[axis], np.int8),
        }
        if not is_conv:
            nodes.append(node("GlobalMaxPool", [given], ["pooled"]))
            nodes.append(node("Flatten", ["pooled"], ["flat"]))
            given = "flat"
        stored = [name, f"{name}_scale", f"{name}_zero"]
        nodes += [*pair(given, "zero"), node("DequantizeLinear", stored, [f"{name}_w"], axis=axis)]
        kind = "Conv" if is_conv else "Gemm"
        bias = ["ones"] if is_conv else []
        nodes.append(node(kind, [f"{given}_d", f"{name}_w", *bias], [f"{name}_p"]))
        given = f"{name}_r" if is_conv else f"{name}_p"
        if is_conv:
            nodes.append(node("Relu", [f"{name}_p"], [given]))
    nodes[-1].output[0] = "y"
    whole = np.where(rng.random((2, 32, 7, 7)) < 0.5, 127, -127)
    inputs = {"x": whole.astype(np.float32) * SCALE}
    model = model_of(nodes, inputs, tensors, shape=(2, 8))
    made = integer_graph(model, lambda names: dict.fromkeys(names, 4.0))
    expected = OrtModel(made.SerializeToString(), optimisation="none").run(inputs)["y"]
    return Case(model=made, inputs=inputs, expected=expected, kernel="QLinearConv")


CASES = {
    "network": network(),
    "conv": convolution(64, 16, 3, signed=True),
    "conv-unsigned": convolution(64, 16, 3, signed=False),
    "conv-one-scale": convolution(64, 16, 3, signed=False, per_channel=False),
    "conv-few-channels": convolution(3, 8, 5, signed=False),
    "conv-1x1": convolution(256, 16, 1, signed=False),
    "conv-grouped": convolution(64, 16, 3, 2, signed=False),
    "conv-depthwise": convolution(32, 32, 3, 32, signed=False),
    "conv-depthwise-5x5": convolution(32, 32, 5, 32, signed=True),
    "conv-depthwise-multiplied": convolution(16, 32, 3, 16, signed=False),
    "matmul": matrix("MatMul", signed=True, rounded=False),
    "matmul-unsigned": matrix("MatMul", signed=False, rounded=False),
    "matmul-rounded": matrix("MatMul", signed=False, rounded=True),
    "matmul-signed-rounded": matrix("MatMul", signed=True, rounded=True),
    "matmul-of-one-row": matrix("MatMul", signed=False, rounded=False, rows=1),
    "matmul-between-activations": between_activations(),
    "gemm": matrix("Gemm", signed=True, rounded=False),
    "gemm-rounded": matrix("Gemm", signed=False, rounded=True),
    "dynamic": dynamic(),
    "matmulinteger": integers("MatMulInteger"),
    "matmulinteger-without-zeros": integers("MatMulInteger", zeros=False),
    "matmulinteger-of-inputs": integers("MatMulInteger", constant=False),
    "convinteger": integers("ConvInteger", constant=False),
    "convinteger-without-zeros": integers("ConvInteger", constant=False, zeros=False),
    "qlinearmatmul": operators(),
    "lstm": recurrent(),
}
#: Whose weights stay signed, since they can't saturate: the same kernels' faster ways.
NARROW_CASES = {
    "narrow-conv": convolution(64, 16, 3, signed=False, limits=NARROW),
    "narrow-conv-signed": convolution(64, 16, 3, signed=True, limits=NARROW),
    "narrow-conv-one-scale": convolution(64, 16, 3, signed=False, per_channel=False, limits=NARROW),
    "narrow-conv-few-channels": convolution(3, 8, 5, signed=False, limits=NARROW),
    "narrow-conv-1x1": convolution(256, 16, 1, signed=False, limits=NARROW),
    "narrow-conv-grouped": convolution(64, 16, 3, 2, signed=False, limits=NARROW),
    "narrow-conv-depthwise": convolution(32, 32, 3, 32, signed=False, limits=NARROW),
    "narrow-conv-depthwise-5x5": convolution(32, 32, 5, 32, signed=True, limits=NARROW),
    "narrow-conv-multiplied": convolution(16, 32, 3, 16, signed=False, limits=NARROW),
    "narrow-matmul": matrix("MatMul", signed=True, rounded=False, limits=NARROW),
    "narrow-matmul-unsigned": matrix("MatMul", signed=False, rounded=False, limits=NARROW),
    "narrow-matmul-rounded": matrix("MatMul", signed=False, rounded=True, limits=NARROW),
    "narrow-matmul-of-one-row": matrix(
        "MatMul", signed=False, rounded=False, rows=1, limits=NARROW
    ),
    "narrow-gemm": matrix("Gemm", signed=True, rounded=False, limits=NARROW),
    "narrow-gemm-rounded": matrix("Gemm", signed=False, rounded=True, limits=NARROW),
    "narrow-dynamic": dynamic(NARROW),
    "narrow-lstm": recurrent(NARROW),
    "narrow-matmulinteger": integers("MatMulInteger", limits=NARROW),
}
CASES |= NARROW_CASES


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engine of every case, and beside it what it is run with and what comes of it."""
    folder = tmp_path_factory.mktemp("engines")
    for name, case in CASES.items():
        built(case.model, folder, name)
        np.savez(folder / f"{name}.npz", expected=case.expected, **case.inputs)
    return folder


def test_the_largest_values_are_added_up_exactly_in_whatever_session(engines: Path) -> None:
    assert emulated.differences(engines) == []


@pytest.mark.parametrize("name", CASES)
def test_the_products_are_computed_in_integers(name: str, engines: Path) -> None:
    assert CASES[name].kernel in kinds(engines / f"{name}.onnx")


@pytest.mark.parametrize("name", NARROW_CASES)
def test_weights_that_cannot_saturate_stay_signed(name: str, engines: Path) -> None:
    """Such kernels are two to eight times as fast as those of unsigned weights."""
    held = {t.data_type for t in onnx.load(str(engines / f"{name}.onnx")).graph.initializer}
    assert TensorProto.INT8 in held


def test_every_integer_kernel_that_an_engine_may_hold_is_among_the_cases() -> None:
    assert {case.kernel for case in CASES.values()} | {"QAttention"} == set(PRODUCTS)
    assert set(INTEGER_KERNELS) <= set(PRODUCTS)


def emulate(processor: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if EMULATOR is None:
        if os.environ.get("CI"):
            pytest.fail("no qemu-x86_64: apt-get install qemu-user")
        pytest.skip("no qemu-x86_64, as the package qemu-user has it")
    # Kernels that were chosen for this machine's processor, the emulated one may lack.
    chosen = {"OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    return subprocess.run(
        [EMULATOR, "-cpu", processor, sys.executable, emulated.__file__, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("processor", PROCESSORS)
def test_engines_are_exact_on_an_emulated_processor(processor: str, engines: Path) -> None:
    ended = emulate(processor, engines)
    assert (ended.returncode, ended.stdout.split("\n")[0]) == (0, ""), ended.stderr[-2000:]


def test_an_emulated_processor_without_vnni_saturates_what_is_signed(tmp_path: Path) -> None:
    case = integers("MatMulInteger")
    onnx.save(case.model, str(tmp_path / "signed.onnx"))
    np.savez(tmp_path / "signed.npz", expected=case.expected, **case.inputs)
    ended = emulate("Haswell", tmp_path)
    assert ended.returncode == 1
    assert ended.stdout.startswith("signed ORT_DISABLE_ALL: ")


def as_written(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What a graph gives in floats, operator by operator."""
    result: np.ndarray = OrtModel(model.SerializeToString(), optimisation="none").run(inputs)["y"]
    return result


def assert_as_written(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path) -> Path:
    """Check that an engine gives what its graph says in whatever session; return it."""
    engine = built(model, folder)
    expected = as_written(model, inputs)
    for level in emulated.LEVELS:
        actual = emulated.run(engine, inputs, level)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    return engine


def activations(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).uniform(0, 255 * SCALE, shape).astype(np.float32)}


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_activations_in_floats_stay_so_where_only_weights_are_quantised(
    operator: str, kind: type[np.generic], tmp_path: Path
) -> None:
    weight = np.random.default_rng(1).integers(-120, 120, (LENGTH, COLUMNS)).astype(kind)
    zero = np.arange(COLUMNS).astype(kind)
    scale = np.geomspace(1e-3, 1e-1, COLUMNS, dtype=np.float32)
    nodes = [
        node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=1),
        node(operator, ["x", "w"], ["y"]),
    ]
    tensors = {"weight": weight, "weight_scale": scale, "weight_zero": zero}
    inputs = activations(ROWS, LENGTH)
    model = model_of(nodes, inputs, tensors, shape=(ROWS, COLUMNS))
    assert kinds(assert_as_written(model, inputs, tmp_path)) == [operator]


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
def test_weights_in_floats_between_quantised_activations_stay_so(
    operator: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    size = (16, 8) if operator == "Gemm" else (16, 16, 3, 3)
    inputs = activations(4, 16, *((5, 5) if operator != "Gemm" else ()))
    weight = rng.standard_normal(size).astype(np.float32)
    tensors = {"scale": SCALE, "zero": np.uint8(0), "w": weight, "step": np.float32(2.0**-4)}
    tensors |= {"b": rng.standard_normal(8 if operator == "Gemm" else 16).astype(np.float32)}
    nodes = [
        *pair("x", "zero"),
        node(operator, ["x_d", "w", "b"], ["p"]),
        node("Relu", ["p"], ["r"]),
        node("QuantizeLinear", ["r", "step", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
    ]
    model = model_of(nodes, inputs, tensors, shape=as_shape(operator))
    assert_as_written(model, inputs, tmp_path)


def as_shape(operator: str) -> tuple[int, ...]:
    return {"Gemm": (4, 8), "Conv": (4, 16, 3, 3), "ConvTranspose": (4, 16, 7, 7)}[operator]


def quantized_conv(**changes: np.ndarray) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    tensors = {
        "scale": SCALE,
        "zero": np.uint8(0),
        "weight": rng.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8),
        "weight_scale": np.full(4, 2.0**-6, np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "b": np.ones(4, np.float32),
        "step": np.float32(0.5),
        "middle": np.uint8(128),
    } | changes
    nodes = [
        *pair("x", "zero"),
        node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0),
        node("Conv", ["x_d", "w", "b"], ["p"]),
        node("QuantizeLinear", ["p", "step", "middle"], ["q"]),
        node("DequantizeLinear", ["q", "step", "middle"], ["y"]),
    ]
    inputs = activations(2, 8, 5, 5)
    return model_of(nodes, inputs, tensors, shape=(2, 4, 3, 3)), inputs


def test_a_bias_that_int32_cant_hold_stays_in_floats(tmp_path: Path) -> None:
    # A channel that training has silenced: its weights are 0, and its scale next to nothing.
    scale = np.array([2.0**-6, 2.0**-6, 1e-12, 2.0**-6], np.float32)
    model, inputs = quantized_conv(weight_scale=scale, b=np.full(4, 20, np.float32))
    engine = assert_as_written(model, inputs, tmp_path)
    assert "QLinearConv" not in kinds(engine)


def test_weights_with_a_zero_point_a_channel_stay_in_floats_where_no_kernel_takes_them(
    tmp_path: Path,
) -> None:
    model, inputs = quantized_conv(weight_zero=np.array([0, 3, -5, 7], np.int8))
    assert "QLinearConv" not in kinds(assert_as_written(model, inputs, tmp_path))
    model, inputs = quantized_conv()
    assert "QLinearConv" in kinds(assert_as_written(model, inputs, tmp_path))


def test_what_bodies_of_control_flow_multiply_is_exact(tmp_path: Path) -> None:
    case = matrix("MatMul", signed=True, rounded=False)
    inner = case.model.graph
    body = helper.make_graph(
        [n for n in inner.node if n.op_type != "QuantizeLinear"], "body", [], list(inner.output)
    )
    quantize = [n for n in inner.node if n.op_type == "QuantizeLinear"]
    choice = node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    inputs = {**case.inputs, "flag": np.array(True)}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in inner.initializer}
    model = model_of([*quantize, choice], inputs, tensors, shape=case.expected.shape)
    engine = built(model, tmp_path)
    for level in emulated.LEVELS:
        np.testing.assert_allclose(emulated.run(engine, inputs, level), case.expected, rtol=1e-6)
    [branch] = [n for n in onnx.load(str(engine)).graph.node if n.op_type == "If"]
    assert "MatMulIntegerToFloat" in [n.op_type for n in branch.attribute[0].g.node]


def test_what_local_functions_multiply_is_exact(tmp_path: Path) -> None:
    case = matrix("MatMul", signed=True, rounded=False)
    constants = [node("Constant", [], [t.name], value=t) for t in case.model.graph.initializer]
    made = helper.make_function(
        "own", "product", ["x"], ["y"], [*constants, *case.model.graph.node],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    graph = helper.make_graph(
        [node("product", ["x"], ["y"], domain="own")],
        "g",
        list(case.model.graph.input),
        list(case.model.graph.output),
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=[made], opset_imports=imports, ir_version=10)
    engine = built(model, tmp_path)
    for level in emulated.LEVELS:
        actual = emulated.run(engine, case.inputs, level)
        np.testing.assert_allclose(actual, case.expected, rtol=1e-6)


@pytest.mark.parametrize("scale", ["constant", "computed"])
def test_int8_that_isnt_a_constant_is_shifted_where_it_is_dequantised(
    scale: str, tmp_path: Path
) -> None:
    """Without a zero point, and given as an input."""
    left, right = largest(False, (ROWS, LENGTH), 3), weights((LENGTH, COLUMNS), 1)
    inputs = {"x": left.astype(np.float32) * SCALE, "v": right.astype(np.int8)}
    if scale == "computed":
        inputs["v_scale"] = np.full(COLUMNS, 2.0**-6, np.float32)
    tensors = {"scale": SCALE, "zero": np.uint8(0)}
    if scale == "constant":
        tensors["v_scale"] = np.full(COLUMNS, 2.0**-6, np.float32)
    nodes = [
        *pair("x", "zero"),
        node("DequantizeLinear", ["v", "v_scale"], ["v_d"], axis=1),
        node("MatMul", ["x_d", "v_d"], ["y"]),
    ]
    expected = (left @ right) * 2.0**-11
    model = model_of(nodes, inputs, tensors, shape=expected.shape)
    engine = built(model, tmp_path)
    for level in emulated.LEVELS:
        np.testing.assert_allclose(emulated.run(engine, inputs, level), expected, rtol=1e-6)


def test_a_graph_without_integers_is_taken_as_it_is(tmp_path: Path) -> None:
    inputs = activations(ROWS, LENGTH)
    file = tmp_path / "floats.onnx"
    onnx.save(model_of([node("Relu", ["x"], ["y"])], inputs, {}, shape=(ROWS, LENGTH)), str(file))
    assert exact_file(file, tmp_path) == file


def test_an_engine_that_would_saturate_is_refused() -> None:
    signed = integers("MatMulInteger").model
    with pytest.raises(EngineBuildFailed, match=r"MatMulInteger .* unsigned by signed"):
        refuse_saturation(signed)
    refuse_saturation(exact_graph(signed))


def test_what_stands_for_a_source_is_exact_too(tmp_path: Path) -> None:
    """Its Q/DQ in floats, its integers unsigned."""
    for name in ("conv", "matmul-rounded", "matmulinteger", "convinteger", "qlinearmatmul"):
        case = CASES[name]
        file = tmp_path / f"{name}.onnx"
        onnx.save(case.model, str(file))
        for optimisation in ("none", "all"):
            session = OrtModel(exact_file(file, tmp_path), optimisation=optimisation)
            actual = session.run(case.inputs)["y"]
            np.testing.assert_allclose(actual, case.expected, rtol=1e-5, err_msg=name)
