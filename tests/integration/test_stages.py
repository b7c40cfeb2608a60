"""The stages of a build on real small models, run in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farm.errors import (
    AccuracyDropped,
    CalibrationFailed,
    CastFailed,
    EngineBuildFailed,
    ExportDiverged,
    InvalidData,
    InvalidModel,
    ProfileMismatch,
    StageFailed,
)
from farm.formats.rtx_header import parse_header
from farm.specs.options import BuilderOptions
from farm.specs.runtime import Target
from farm.specs.shapes import ShapeRange, TensorSpec
from farm.stages import (
    BuildParams,
    CalibrateParams,
    CastParams,
    ExportParams,
    JobKind,
    MeasureParams,
    StageParams,
)
from workers import demo
from workers.backends.ort.cpu import OrtModel
from workers.backends.trt import options
from workers.clocks.host import Pace, Timings, percentile
from workers.graphs import casting, interface, walk
from workers.graphs.shapes import outline_of
from workers.graphs.standard import MIN_OPSET
from workers.inputs.samples import random_arrays
from workers.measure import cpu
from workers.quantize.stored_weights import fold_quantized_weights
from workers.stages import calibrate, export
from workers.stages.base import Stage, StageResult, run

CPU = Target(runtime="onnxruntime", gpu="cpu")
KINDS: dict[type[StageParams], JobKind] = {
    ExportParams: JobKind.EXPORT,
    CastParams: JobKind.CAST,
    CalibrateParams: JobKind.CALIBRATE,
    BuildParams: JobKind.BUILD,
    MeasureParams: JobKind.MEASURE,
}


class Bench:
    """Runs stages, each in a new empty folder, and keeps what they reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.phases: list[tuple[str, float | None]] = []
        self._runs = 0

    def run(self, params: StageParams, **inputs: Path) -> StageResult:
        self._runs += 1
        workdir = self.folder / f"{self._runs}"
        workdir.mkdir()
        kind = KINDS[type(params)]
        before = {path: path.read_bytes() for path in inputs.values()}
        result = run(
            Stage(
                kind=kind,
                params=params,
                inputs=inputs,
                workdir=workdir,
                progress=lambda phase, share: self.phases.append((phase, share)),
            )
        )
        json.dumps(result.facts, allow_nan=False)
        assert all(
            path.parent == workdir and path.stat().st_size for path in result.outputs.values()
        )
        assert before == {path: path.read_bytes() for path in inputs.values()}, (
            "an input was written"
        )
        return result

    def fails(self, error: type[StageFailed], params: StageParams, **inputs: Path) -> StageFailed:
        with pytest.raises(error) as caught:
            self.run(params, **inputs)
        assert caught.value.hint, "the message doesn't say what to do"
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Digits:
    source: Path
    calibration: Path
    evaluation: Path
    exported: StageResult
    fp16: StageResult
    calibrated: StageResult

    @property
    def onnx(self) -> Path:
        return self.exported.outputs["onnx"]

    @property
    def int8(self) -> Path:
        return self.calibrated.outputs["typed"]

    @property
    def for_cpu(self) -> dict[str, Path]:
        return {"typed": self.int8, "onnx": self.onnx, "calibration": self.calibration}

    @property
    def int8_fp16(self) -> Path:
        return self.calibrated.outputs["typed_fp16"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    train, held_out = demo.digits_split()
    source = folder / "digits.pt2"
    demo.save_program(demo.train_digits(train, epochs=6), torch.zeros(2, 1, 8, 8), source)
    calibration, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    np.savez(calibration, image=train["image"][:64])
    np.savez(evaluation, image=held_out["image"], label=held_out["label"])
    bench = Bench(folder)
    exported = bench.run(ExportParams(format="pt2"), source=source)
    graph = exported.outputs["onnx"]
    return Digits(
        source=source,
        calibration=calibration,
        evaluation=evaluation,
        exported=exported,
        fp16=bench.run(CastParams(precision="fp16"), onnx=graph),
        calibrated=bench.run(CalibrateParams(), onnx=graph, calibration=calibration),
    )


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(warmup_s=0.01, duration_s=0.05, min_iterations=3, max_s=0.2, slice_s=0.02)
    monkeypatch.setattr(cpu, "LATENCY_PACE", pace)
    monkeypatch.setattr(cpu, "THROUGHPUT_PACE", pace)


def small_graph(
    path: Path,
    *nodes: onnx.NodeProto,
    shape: Sequence[int | str | None] = ("n", 4),
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """A graph from ``x`` to ``y`` of the given nodes."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    graph.output[0].type.tensor_type.shape.Clear()
    for _ in shape:
        graph.output[0].type.tensor_type.shape.dim.add()
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), str(path))
    return path


def matmul(path: Path, **options: Any) -> Path:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return small_graph(path, node, weights=weights, **options)


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def batch_profile(low: int, opt: int, high: int) -> dict[str, ShapeRange]:
    shapes = {"min": (low, 1, 8, 8), "opt": (opt, 1, 8, 8), "max": (high, 1, 8, 8)}
    return {"image": ShapeRange(**shapes)}


# Export


def test_export_keeps_the_batch_dynamic_and_the_names(digits: Digits) -> None:
    facts = digits.exported.facts
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert facts["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}]
    assert facts["opset"] >= 19
    assert facts["parameters"] > 10_000


def test_export_checks_two_batch_sizes_against_pytorch(digits: Digits) -> None:
    check = digits.exported.facts["check"]
    assert len(set(check["batches"])) == 2
    assert 0 <= check["max_abs_error"] < 1e-3


def test_export_checks_within_the_profile(bench: Bench, digits: Digits) -> None:
    params = ExportParams(format="pt2", profiles=(batch_profile(3, 5, 6),))
    check = bench.run(params, source=digits.source).facts["check"]
    assert all(3 <= batch <= 6 for batch in check["batches"])
    assert len(check["batches"]) == 2


def test_export_refuses_a_graph_that_diverges(
    bench: Bench, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_onnx = export._to_onnx

    def wrong(program: Any) -> onnx.ModelProto:
        model = to_onnx(program)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        array = numpy_helper.to_array(weight) * np.float32(1.1)
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
        return model

    monkeypatch.setattr(export, "_to_onnx", wrong)
    error = bench.fails(ExportDiverged, ExportParams(format="pt2"), source=digits.source)
    assert "differ" in error.detail


class BiasedAttention(torch.nn.Module):
    """Attention with a bias by position that all of a batch share, as that of T5."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Embedding(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(x.shape[0], 4, 2, 8).transpose(1, 2)
        distances = (torch.arange(4)[:, None] - torch.arange(4)).abs()
        bias = self.bias(distances).permute(2, 0, 1).unsqueeze(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            heads, heads, heads, attn_mask=bias
        )
        return mixed.transpose(1, 2).reshape(x.shape)


def test_attention_with_a_shared_bias_is_exported(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "attention.pt2"
    demo.save_program(BiasedAttention().eval(), torch.randn(2, 4, 16), source)
    facts = bench.run(ExportParams(format="pt2"), source=source).facts
    assert facts["check"]["max_abs_error"] < 1e-4


def test_onnx_is_taken_as_it_is(bench: Bench, tmp_path: Path) -> None:
    source = matmul(tmp_path / "m.onnx")
    result = bench.run(ExportParams(format="onnx"), source=source)
    assert result.outputs["onnx"].read_bytes() == source.read_bytes()
    assert result.facts["inputs"][0]["shape"] == ["n", 4]


def test_old_onnx_is_upgraded_and_compared(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(ExportParams(format="onnx"), source=matmul(tmp_path / "m.onnx", opset=13))
    assert result.facts["opset"] == MIN_OPSET
    assert result.facts["check"]["max_abs_error"] < 1e-5


def light(path: Path, *, weights_are_inputs: bool, filled: bool) -> Path:
    """x·w [n,16] as years ago: weights that are inputs too, or that a ConstantOfShape makes."""
    shape = numpy_helper.from_array(np.array([16, 32]), "shape")
    weights = numpy_helper.from_array(np.full((16, 32), 0.5, np.float32), "w")
    fill = helper.make_node(
        "ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("v", 1, [1], [0.5])
    )
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    if weights_are_inputs:
        name, kind = ("shape", TensorProto.INT64) if filled else ("w", TensorProto.FLOAT)
        given.append(helper.make_tensor_value_info(name, kind, [2] if filled else [16, 32]))
    graph = helper.make_graph(
        [*([fill] if filled else []), helper.make_node("MatMul", ["x", "w"], ["y"])],
        "light",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [shape if filled else weights],
    )
    opset = [helper.make_opsetid("", 9 if weights_are_inputs else 20)]
    version = 3 if weights_are_inputs else 10
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=version), str(path))
    return path


@pytest.mark.parametrize("weights_are_inputs", [True, False])
@pytest.mark.parametrize("filled", [True, False])
def test_weights_of_old_and_light_onnx_become_initializers_alone(
    weights_are_inputs: bool, filled: bool, bench: Bench, tmp_path: Path
) -> None:
    source = light(tmp_path / "m.onnx", weights_are_inputs=weights_are_inputs, filled=filled)
    exported = bench.run(ExportParams(format="onnx"), source=source).outputs["onnx"]
    graph = onnx.load(str(exported)).graph
    assert [value.name for value in graph.input] == ["x"]
    assert [tensor.name for tensor in graph.initializer] == ["w"]
    assert (exported.read_bytes() == source.read_bytes()) == (not weights_are_inputs and not filled)
    samples = save_npz(tmp_path / "c.npz", x=np.ones((16, 16), np.float32))
    typed = bench.run(CastParams(precision="fp16"), onnx=exported).outputs["typed"]
    assert bench.run(rtx("sm_89", "fp16"), typed=typed).facts["layers"] > 0
    typed = bench.run(CalibrateParams(), onnx=exported, calibration=samples).outputs["typed_fp16"]
    assert bench.run(rtx("sm_89", "int8"), typed=typed).facts["compute"]["types"].keys() == {"int8"}


@pytest.mark.parametrize("size", [2**40, -1])
def test_a_graph_that_would_fill_the_memory_is_refused(
    size: int, bench: Bench, tmp_path: Path
) -> None:
    shape = np.array([size, 1])
    fill = helper.make_node("ConstantOfShape", ["shape"], ["w"])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    source = small_graph(tmp_path / "m.onnx", fill, add, weights={"shape": shape}, opset=13)
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert error.detail


def test_what_modelopt_stumbles_over_is_told_as_what_to_do(
    bench: Bench, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise RuntimeError("no shape\nof node n7")

    monkeypatch.setattr(casting, "typed", stumble)
    error = bench.fails(CastFailed, CastParams(precision="bf16"), onnx=digits.onnx)
    assert "this graph can't be cast to bf16: no shape of node n7" in error.detail
    monkeypatch.setattr(calibrate, "quantize", stumble)
    inputs = {"onnx": digits.onnx, "calibration": digits.calibration}
    error = bench.fails(CalibrationFailed, CalibrateParams(), **inputs)
    assert "can't calibrate this graph for int8: no shape of node n7" in error.detail


def test_a_mask_of_stand_in_inputs_hides_nothing() -> None:
    specs = [TensorSpec(name=name, dtype="int64", shape=(4, 8)) for name in ("ids", "pad_mask")]
    arrays = random_arrays(specs, {"ids": (4, 8), "pad_mask": (4, 8)}, seed=0)
    assert set(arrays["ids"].ravel()) == {0, 1}
    assert set(arrays["pad_mask"].ravel()) == {1}


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "empty"), (b"\x00\x01garbage", "readable"), (b"PK\x03\x04", "read")]
)
def test_a_file_that_is_no_onnx_is_refused(
    content: bytes, told: str, bench: Bench, tmp_path: Path
) -> None:
    source = tmp_path / "bad.onnx"
    source.write_bytes(content)
    assert told in bench.fails(InvalidModel, ExportParams(format="onnx"), source=source).detail


def test_truncated_onnx_is_refused(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    source = tmp_path / "half.onnx"
    source.write_bytes(digits.onnx.read_bytes()[:-2000])
    bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)


def test_a_custom_operator_is_named_with_its_domain(bench: Bench, tmp_path: Path) -> None:
    node = helper.make_node("MagicBlend", ["x"], ["y"], domain="acme")
    source = small_graph(tmp_path / "custom.onnx", node)
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "MagicBlend" in error.detail
    assert "acme" in error.detail


def test_an_unknown_standard_operator_is_named(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(tmp_path / "typo.onnx", helper.make_node("Rellu", ["x"], ["y"]))
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "Rellu" in error.detail


def test_a_graph_that_contradicts_itself_is_refused(bench: Bench, tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.zeros((5, 8), np.float32)}
    source = small_graph(tmp_path / "shapes.onnx", node, weights=weights)
    bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)


def test_weights_in_another_file_are_refused(bench: Bench, tmp_path: Path) -> None:
    model = onnx.load(str(matmul(tmp_path / "m.onnx")))
    source = tmp_path / "split.onnx"
    onnx.save(
        model, str(source), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "'weights.bin', which wasn't handed in" in error.detail


def test_functions_of_the_model_are_inlined(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(
        tmp_path / "f.onnx", helper.make_node("Twice", ["x"], ["y"], domain="acme")
    )
    model = onnx.load(str(source))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("acme", "Twice", ["a"], ["b"], body, opset))
    onnx.save(model, str(source))
    result = bench.run(ExportParams(format="onnx"), source=source)
    assert [node.op_type for node in onnx.load(str(result.outputs["onnx"])).graph.node] == ["Add"]


def test_a_batch_that_is_fixed_inside_the_model_is_noticed(bench: Bench, tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    source = small_graph(
        tmp_path / "fixed.onnx", node, weights={"shape": np.array([1, 4], np.int64)}
    )
    error = bench.fails(InvalidModel, ExportParams(format="onnx"), source=source)
    assert "shapes" in error.detail


# Profiles


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({"picture": ShapeRange(min=(1, 1, 8, 8), opt=(1, 1, 8, 8), max=(1, 1, 8, 8))}, "picture"),
        ({"image": ShapeRange(min=(1, 64), opt=(8, 64), max=(8, 64))}, "4 axes"),
        ({"image": ShapeRange(min=(1, 1, 8, 8), opt=(1, 1, 9, 8), max=(1, 1, 9, 8))}, "axis 2"),
    ],
)
def test_a_profile_that_does_not_fit_names_what_is_wrong(
    profile: dict[str, ShapeRange], told: str, bench: Bench, digits: Digits
) -> None:
    params = BuildParams(
        target=CPU, compute_capability="cpu", precision="fp32", profiles=(profile,)
    )
    assert told in bench.fails(ProfileMismatch, params, typed=digits.onnx).detail


def test_an_unknown_input_is_answered_with_the_known_ones(bench: Bench, digits: Digits) -> None:
    shapes = ShapeRange(min=(1,), opt=(1,), max=(1,))
    params = ExportParams(format="pt2", profiles=({"picture": shapes},))
    assert "image" in (bench.fails(ProfileMismatch, params, source=digits.source).hint or "")


def test_a_dynamic_axis_needs_a_profile(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(tmp_path / "sequence.onnx", shape=("n", "length"))
    error = bench.fails(ProfileMismatch, ExportParams(format="onnx"), source=source)
    assert "axis 1 of input 'x'" in error.detail


def test_a_dynamic_batch_has_a_default_profile(bench: Bench, digits: Digits) -> None:
    params = BuildParams(target=CPU, compute_capability="cpu", precision="fp32")
    (profile,) = bench.run(params, typed=digits.onnx).facts["profiles"]
    assert [profile["image"][size][0] for size in ("min", "opt", "max")] == [1, 8, 64]


def test_a_static_model_has_its_own_shape(bench: Bench, tmp_path: Path) -> None:
    params = BuildParams(target=CPU, compute_capability="cpu", precision="fp32")
    typed = matmul(tmp_path / "static.onnx", shape=(3, 4))
    (profile,) = bench.run(params, typed=typed).facts["profiles"]
    assert profile["x"]["min"] == profile["x"]["max"] == [3, 4]


# Cast


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cast_really_casts_and_keeps_io_fp32(precision: str, bench: Bench, digits: Digits) -> None:
    result = bench.run(CastParams(precision=precision), onnx=digits.onnx)
    facts = result.facts
    assert facts["share"] > 0.9
    assert {spec["dtype"] for spec in [*facts["inputs"], *facts["outputs"]]} == {"float32"}
    assert facts["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    typed = result.outputs["typed"]
    assert typed.stat().st_size < 0.7 * digits.onnx.stat().st_size


def test_cast_takes_a_graph_of_the_asked_type_as_it_is(bench: Bench, digits: Digits) -> None:
    fp16 = digits.fp16.outputs["typed"]
    made = bench.run(CastParams(precision="fp16"), onnx=fp16)
    assert "float16" in made.facts["own_types"]
    assert onnx.load(str(made.outputs["typed"])) == onnx.load(str(fp16))


def test_cast_keeps_in_fp32_what_fp16_cannot_hold(bench: Bench, tmp_path: Path) -> None:
    weights = {"w": np.full((4, 4), 1e6, np.float32)}
    typed = small_graph(
        tmp_path / "large.onnx", helper.make_node("MatMul", ["x", "w"], ["y"]), weights=weights
    )
    error = bench.fails(CastFailed, CastParams(precision="fp16"), onnx=typed)
    assert "fp32" in (error.hint or "")


# Calibrate


def test_one_calibration_serves_gpus_and_cpus(digits: Digits) -> None:
    facts = digits.calibrated.facts
    assert (facts["samples"], facts["batch_size"], facts["batches"]) == (64, 8, 8)
    assert facts["method"] == "entropy"
    assert facts["qdq_pairs"] > 5
    assert facts["remainder"] == "fp16"
    fp32, fp16 = (onnx.load(str(path)) for path in (digits.int8, digits.int8_fp16))
    assert {w.data_type for w in fp32.graph.initializer}.isdisjoint({TensorProto.FLOAT16})
    assert TensorProto.FLOAT16 in {w.data_type for w in fp16.graph.initializer}
    assert (
        interface.input_specs(fp16)[0].dtype == interface.output_specs(fp16)[0].dtype == "float32"
    )


def test_gpus_and_cpus_have_the_same_scales_of_weights(digits: Digits) -> None:
    def weights(path: Path) -> list[float]:
        graph = onnx.load(str(path)).graph
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        dequantized = (node for node in graph.node if node.op_type == "DequantizeLinear")
        scales = (values[n.input[1]] for n in dequantized if n.input[0] in values)
        return sorted(float(scale.max()) for scale in scales)

    assert weights(digits.int8) == pytest.approx(weights(digits.int8_fp16), rel=2e-3)
    assert len(weights(digits.int8)) == 4


def test_a_cpu_engine_multiplies_integers(bench: Bench, digits: Digits) -> None:
    params = BuildParams(target=CPU, compute_capability="cpu", precision="int8")
    result = bench.run(params, **digits.for_cpu)
    engine = onnx.load(str(result.outputs["engine"]))
    kinds = [node.op_type for node in engine.graph.node]
    assert (kinds.count("QLinearConv"), kinds.count("QGemm")) == (3, 1), kinds
    # ModelOpt leaves a head of ten classes alone.
    assert result.facts["compute"]["types"]["int8"] == {"layers": 4, "share": 0.999}
    assert result.facts["compute"]["types"]["fp32"]["layers"] == 1


def test_integer_products_whose_results_leave_fp16_give_fp32(bench: Bench, tmp_path: Path) -> None:
    weights = {f"w{n}": np.full((32, 32), 1.0 + n, np.float32) for n in range(3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["y"], name="third"),
    ]
    source = small_graph(tmp_path / "large.onnx", *nodes, shape=("n", 32), weights=weights)
    data = save_npz(
        tmp_path / "x.npz", x=np.linspace(1, 9, 32 * 32, dtype=np.float32).reshape(32, 32)
    )
    made = bench.run(CalibrateParams(method="max"), onnx=source, calibration=data)
    assert made.facts["remainder"] == "fp32"
    params = MeasureParams(precision="int8", format="onnx")
    for role in ("typed_half", "typed_fp16"):
        wide = {"source": source, "typed": made.outputs[role], "calibration": data}
        assert bench.run(params, **wide).facts["accuracy"]["cosine_min"] > 0.99
    built = bench.run(rtx("sm_80", "int8"), typed=made.outputs["typed_half"]).facts
    assert built["compute"]["types"]["int8"]["layers"] == 3


def test_weights_are_stored_in_their_quantised_type(digits: Digits) -> None:
    for path in (digits.int8, digits.int8_fp16):
        graph = onnx.load(str(path)).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        kinds = {node.input[0]: node.op_type for node in graph.node}
        assert not [name for name in types if kinds.get(name) == "QuantizeLinear"]
        stored = [name for name in types if kinds.get(name) == "DequantizeLinear"]
        assert [types[name] for name in stored] == [TensorProto.INT8] * 4


@pytest.mark.parametrize("type_", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
def test_stored_weights_are_those_that_the_graph_would_make(type_: int, tmp_path: Path) -> None:
    weights = {
        "w": np.random.default_rng(0).normal(0, 1, (4, 8)).astype(np.float32),
        "scale": np.geomspace(1e-4, 1, 8, dtype=np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = onnx.load(str(small_graph(tmp_path / "m.onnx", *nodes, weights=weights)))
    model.graph.initializer.append(helper.make_tensor("zero", type_, [8], [0] * 8))
    x = {"x": np.eye(4, dtype=np.float32)}
    expected = OrtModel(model.SerializeToString()).run(x)["y"]
    fold_quantized_weights(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "MatMul"]
    assert np.array_equal(OrtModel(model.SerializeToString()).run(x)["y"], expected)


def test_types_and_shapes_follow_from_a_graph_without_its_weights(digits: Digits) -> None:
    def inferred(model: onnx.ModelProto) -> dict[str, bytes]:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        return {value.name: value.SerializeToString() for value in graph.value_info}

    for path in (digits.onnx, digits.int8, digits.int8_fp16):
        model = onnx.load(str(path))
        outline = outline_of(model)
        assert outline.ByteSize() < model.ByteSize() / 4
        whole, light = inferred(model), inferred(outline)
        assert whole == light


def test_calibration_is_reproducible(bench: Bench, digits: Digits) -> None:
    again = bench.run(CalibrateParams(), onnx=digits.onnx, calibration=digits.calibration)
    assert again.outputs["typed"].read_bytes() == digits.int8.read_bytes()
    assert again.outputs["typed_fp16"].read_bytes() == digits.int8_fp16.read_bytes()
    assert any(phase == "calibrate" and share == 1 for phase, share in bench.phases)


def test_calibration_depends_on_the_data(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    other = save_npz(tmp_path / "o.npz", image=np.load(digits.calibration)["image"] * np.float32(3))
    result = bench.run(CalibrateParams(method="max"), onnx=digits.onnx, calibration=other)
    assert result.outputs["typed"].read_bytes() != digits.int8.read_bytes()


IMAGE = np.random.default_rng(1).uniform(0, 1, (32, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"img": IMAGE}, "'img'"),
        ({"image": IMAGE, "mask": IMAGE}, "'mask'"),
        ({"image": IMAGE[:, 0]}, "shape [32, 8, 8]"),
        ({"image": IMAGE[:, :, :7]}, "axis 2"),
        ({"image": IMAGE.astype(np.float64)}, "float64"),
        ({"image": (IMAGE * 255).astype(np.uint8)}, "uint8"),
        ({"image": np.where(IMAGE > 0.5, np.float32(np.nan), IMAGE)}, "NaN"),
        ({"image": IMAGE[:0]}, "no samples"),
        ({"image": IMAGE[:8]}, "single batch"),
        ({"image": np.array([{}], dtype=object)}, "can't be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], told: str, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    data = save_npz(tmp_path / "data.npz", **arrays)
    error = bench.fails(InvalidData, CalibrateParams(), onnx=digits.onnx, calibration=data)
    assert told in error.detail


@pytest.mark.parametrize(
    "content", [b"", b"not data", b"PK\x03\x04truncated", b"\x08" + b"\0" * 7 + b"{bad"]
)
def test_data_files_that_are_neither_are_refused(
    content: bytes, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.write_bytes(content)
    bench.fails(InvalidData, CalibrateParams(), onnx=digits.onnx, calibration=data)


def test_safetensors_data_calibrate_like_npz(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    data = tmp_path / "data.safetensors"
    save_file({"image": np.load(digits.calibration)["image"]}, data)
    result = bench.run(CalibrateParams(), onnx=digits.onnx, calibration=data)
    assert result.outputs["typed"].read_bytes() == digits.int8.read_bytes()


def test_a_quantised_graph_is_not_quantised_again(bench: Bench, digits: Digits) -> None:
    inputs = {"onnx": digits.int8, "calibration": digits.calibration}
    again = bench.run(CalibrateParams(), **inputs).outputs["typed"]
    before, after = (onnx.load(str(path)) for path in (digits.int8, again))
    assert walk.qdq_pairs(after) == walk.qdq_pairs(before) > 0


def test_a_graph_with_nothing_to_quantise_is_refused(bench: Bench, tmp_path: Path) -> None:
    source = small_graph(tmp_path / "relu.onnx")
    data = save_npz(tmp_path / "x.npz", x=np.ones((32, 4), np.float32))
    error = bench.fails(CalibrationFailed, CalibrateParams(), onnx=source, calibration=data)
    assert error.detail.endswith("can be int8: it has none")


def test_the_batch_size_stays_within_the_profile(bench: Bench, digits: Digits) -> None:
    params = CalibrateParams(profiles=(batch_profile(1, 2, 4),))
    facts = bench.run(params, onnx=digits.onnx, calibration=digits.calibration).facts
    assert facts["batch_size"] == 4


# Build


@pytest.mark.parametrize("gpu", ["sm_75", "sm_86", "sm_89", "sm_120"])
def test_rtx_engines_are_for_exactly_the_asked_gpu(gpu: str, bench: Bench, digits: Digits) -> None:
    params = BuildParams(
        target=Target(runtime="tensorrt-rtx", gpu=gpu), compute_capability=gpu, precision="int8"
    )
    result = bench.run(params, typed=digits.int8_fp16)
    data = result.outputs["engine"].read_bytes()
    header = parse_header(data)
    assert header.compute_capabilities == (gpu,) == tuple(result.facts["compute_capabilities"])
    assert header.version == result.facts["runtime_version"]
    assert header.bytes == len(data) == result.facts["engine_bytes"]
    assert result.facts["layers"] > 0


def rtx(gpu: str, precision: str = "fp32", **options: Any) -> BuildParams:
    target = Target(runtime="tensorrt-rtx", gpu=gpu)
    return BuildParams(target=target, compute_capability=gpu, precision=precision, **options)


def test_rtx_builds_every_precision(bench: Bench, digits: Digits) -> None:
    bf16 = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    for typed in (digits.onnx, digits.fp16.outputs["typed"], bf16):
        assert bench.run(rtx("sm_89"), typed=typed).facts["build_s"] > 0


@pytest.mark.parametrize("method", ["entropy", "max"])
def test_fp8_is_calibrated_built_and_as_accurate_as_the_source(
    bench: Bench, digits: Digits, method: str
) -> None:
    params = CalibrateParams(precision="fp8", method=method)
    made = bench.run(params, onnx=digits.onnx, calibration=digits.calibration)
    typed = made.outputs["typed_fp16"]
    zero_points = {
        tensor.data_type
        for tensor in onnx.load(str(typed)).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN
    }
    assert zero_points, "nothing is fp8"
    assert bench.run(rtx("sm_89", "fp8"), typed=typed).facts["layers"] > 0
    inputs = {"source": digits.source, "typed": typed, "evaluation": digits.evaluation}
    assert bench.run(measured("fp8"), **inputs).facts["accuracy"]["top1_agreement"] > 0.97


@pytest.mark.parametrize(
    "options",
    [
        {"tf32": False},
        {"sparse_weights": True, "weight_streaming": True},
        {"builder_optimization_level": 0, "max_aux_streams": 0, "workspace_mib": 64},
    ],
)
def test_rtx_takes_the_builders_options(
    options: dict[str, Any], bench: Bench, digits: Digits
) -> None:
    facts = bench.run(rtx("sm_89", options=options), typed=digits.onnx).facts
    assert facts["options"].items() >= options.items()


class Config:
    """A builder's configuration that remembers what is set."""

    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.hardware_compatibility_level = "NONE"
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.pool = (pool, limit)


def test_every_option_reaches_classic_tensorrts_configuration() -> None:
    flags = "TF32 SPARSE_WEIGHTS VERSION_COMPATIBLE WEIGHT_STREAMING".split()
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.13",
        BuilderFlag=SimpleNamespace(**{flag: flag for flag in flags}),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"),
    )
    everything = BuilderOptions(
        tf32=False,
        sparse_weights=True,
        builder_optimization_level=5,
        max_aux_streams=2,
        workspace_mib=3,
        hardware_compatibility_level="ampere_plus",
        version_compatible=True,
        weight_streaming=True,
    )
    config = Config()
    options.set_options(module, config, everything)
    assert config.flags == {"SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"}
    assert (config.builder_optimization_level, config.max_aux_streams) == (5, 2)
    assert config.pool == ("WORKSPACE", 3 << 20)
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    del module.BuilderFlag.WEIGHT_STREAMING
    with pytest.raises(EngineBuildFailed, match="has no weight_streaming"):
        options.set_options(module, config, everything)


def test_an_engine_can_have_several_profiles(bench: Bench, digits: Digits) -> None:
    profiles = (batch_profile(1, 1, 1), batch_profile(2, 8, 16))
    facts = bench.run(rtx("sm_89", profiles=profiles), typed=digits.onnx).facts
    assert [profile["image"]["opt"][0] for profile in facts["profiles"]] == [1, 8]


def test_progress_names_the_phase_of_a_build(bench: Bench, digits: Digits) -> None:
    bench.run(rtx("sm_89"), typed=digits.onnx)
    assert any(phase.startswith("build: ") for phase, _ in bench.phases)


def test_turing_refuses_fp32_matrix_products_and_bf16(bench: Bench, digits: Digits) -> None:
    error = bench.fails(EngineBuildFailed, rtx("sm_75"), typed=digits.onnx)
    assert "fp32" in error.detail
    assert "choose fp16" in (error.hint or "")
    bf16 = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    assert "bf16" in bench.fails(EngineBuildFailed, rtx("sm_75", "bf16"), typed=bf16).detail


def test_turing_is_not_answered_with_the_precision_that_was_asked_for(
    bench: Bench, tmp_path: Path
) -> None:
    up = {"w": np.full((4, 4), 1e6, np.float32), "v": np.full((4, 4), 1e-3, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["small"], name="fits"),
        helper.make_node("MatMul", ["small", "w"], ["y"], name="leaves"),
    ]
    source = small_graph(tmp_path / "wide.onnx", *nodes, weights=up)
    typed = bench.run(CastParams(precision="fp16"), onnx=source).outputs["typed"]
    error = bench.fails(EngineBuildFailed, rtx("sm_75", "fp16"), typed=typed)
    assert "'leaves'" in error.detail
    assert "sm_80" in (error.hint or "")


def test_a_gpu_that_rtx_cannot_build_for_is_answered_with_those_it_can(
    bench: Bench, digits: Digits
) -> None:
    error = bench.fails(EngineBuildFailed, rtx("sm_90"), typed=digits.onnx)
    assert "sm_89" in (error.hint or "")


def test_the_builders_reason_reaches_the_user(bench: Bench, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"], name="where"),
        helper.make_node("Cast", ["found"], ["y"], to=TensorProto.FLOAT),
    ]
    error = bench.fails(
        EngineBuildFailed, rtx("sm_89"), typed=small_graph(tmp_path / "nonzero.onnx", *nodes)
    )
    assert "NonZero" in error.detail


def test_a_runtime_that_is_not_installed_is_named(bench: Bench, digits: Digits) -> None:
    params = BuildParams(
        target=Target(runtime="tensorrt", gpu="sm_90"),
        compute_capability="sm_90",
        precision="fp32",
    )
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        error = bench.fails(EngineBuildFailed, params, typed=digits.onnx)
        assert "isn't installed" in error.detail
    else:
        pytest.skip("classic TensorRT is installed here")


@pytest.mark.parametrize(
    ("precision", "share"),
    [("fp32", 1e-5), ("int8", 0.05)],  # int8 engines round what their operators give, too
)
def test_cpu_engines_give_the_outputs_of_their_typed_graph(
    precision: str, share: float, bench: Bench, digits: Digits
) -> None:
    typed = digits.onnx if precision == "fp32" else digits.int8
    params = BuildParams(target=CPU, compute_capability="cpu", precision=precision)
    inputs = digits.for_cpu | {"typed": typed}
    engine = bench.run(params, **inputs).outputs["engine"]
    expected, actual = (
        onnxruntime.InferenceSession(str(path)).run(None, {"image": IMAGE})[0]
        for path in (typed, engine)
    )
    assert np.abs(expected - actual).max() < share * np.abs(expected).max()


def test_bf16_for_the_cpu_says_what_to_choose(bench: Bench, digits: Digits) -> None:
    bf16 = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    params = BuildParams(target=CPU, compute_capability="cpu", precision="bf16")
    assert "fp16" in (bench.fails(EngineBuildFailed, params, typed=bf16).hint or "")


# Measure


def measured(precision: str, **options: Any) -> MeasureParams:
    return MeasureParams(precision=precision, format="pt2", **options)


def test_accuracy_is_that_of_the_typed_onnx_where_no_engine_runs(
    bench: Bench, digits: Digits
) -> None:
    facts = bench.run(
        measured("int8"),
        source=digits.source,
        typed=digits.int8_fp16,
        evaluation=digits.evaluation,
    ).facts
    accuracy = facts["accuracy"]
    assert accuracy["measured_on"] == "typed-onnx"
    assert accuracy["data"] == "evaluation"
    assert accuracy["samples"] == 450
    assert accuracy["top1_agreement"] > 0.97
    assert accuracy["task"]["metric"] == "top1"
    assert accuracy["task"]["source"] > 0.9
    assert abs(accuracy["task"]["drop"]) < 0.02
    assert facts["metrics"] is None
    assert facts["metrics_reason"]


def cpu_engine(bench: Bench, typed: Path, precision: str = "fp32") -> Path:
    params = BuildParams(target=CPU, compute_capability="cpu", precision=precision)
    return bench.run(params, typed=typed).outputs["engine"]


def test_a_cpu_engine_is_timed_beside_pytorch(bench: Bench, digits: Digits) -> None:
    result = bench.run(
        measured("fp32", target=CPU),
        source=digits.source,
        typed=digits.onnx,
        engine=cpu_engine(bench, digits.onnx),
        evaluation=digits.evaluation,
    )
    assert result.facts["accuracy"]["measured_on"] == "engine"
    assert result.facts["accuracy"]["top1_agreement"] == 1.0
    metrics = result.facts["metrics"]
    latency = metrics["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
    assert [entry["batch"] for entry in metrics["throughput"]] == [1, 8, 64]
    assert metrics["eager"]["latency_ms"]["p50"] > 0
    assert (metrics["speed_up"] is None) == ("speed_up_reason" in metrics)
    assert metrics["settings"]["threads"] >= 1
    assert json.loads(result.outputs["report"].read_text()) == result.facts


def test_the_speed_up_is_the_ratio_of_medians_on_a_quiet_machine() -> None:
    latencies = {"eager": [0.004, 0.002, 0.003], "engine": [0.001, 0.001, 0.009]}
    assert cpu.speed_up(Timings(latencies=latencies, others_share=0.1))["speed_up"] == 3.0


def test_there_is_no_speed_up_from_a_busy_machine() -> None:
    latencies = {"eager": [0.2], "engine": [0.001]}
    facts = cpu.speed_up(Timings(latencies=latencies, others_share=0.5))
    assert facts["speed_up"] is None
    assert "50%" in facts["speed_up_reason"]


@pytest.mark.parametrize(("percent", "expected"), [(50, 500), (90, 901), (95, 950), (99, 990)])
def test_percentiles_are_those_of_trtexec(percent: int, expected: int) -> None:
    assert percentile([float(value) for value in range(1000, 0, -1)], percent) == expected


def test_an_onnx_source_has_no_eager_pytorch(bench: Bench, digits: Digits) -> None:
    params = MeasureParams(precision="fp32", format="onnx", target=CPU)
    engine = cpu_engine(bench, digits.onnx)
    facts = bench.run(params, source=digits.onnx, typed=digits.onnx, engine=engine).facts
    assert facts["metrics"]["eager"] is None
    assert facts["metrics"]["eager_reason"]
    assert facts["metrics"]["speed_up"] is None


def test_without_evaluation_data_calibration_data_serve(bench: Bench, digits: Digits) -> None:
    inputs = {"source": digits.source, "typed": digits.int8_fp16}
    accuracy = bench.run(measured("int8"), **inputs, calibration=digits.calibration).facts[
        "accuracy"
    ]
    assert (accuracy["data"], accuracy["samples"], accuracy["task"]) == ("calibration", 64, None)


def test_without_any_data_seeded_random_data_serve(bench: Bench, digits: Digits) -> None:
    inputs = {"source": digits.source, "typed": digits.fp16.outputs["typed"]}
    first, second = (bench.run(measured("fp16"), **inputs).facts["accuracy"] for _ in range(2))
    assert first == second
    assert first["data"] == "random"
    assert first["cosine_min"] > 0.99


@pytest.mark.heavy
def test_bf16_is_measured_although_the_cpu_has_none(bench: Bench, digits: Digits) -> None:
    typed = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    inputs = {"source": digits.source, "typed": typed, "evaluation": digits.evaluation}
    accuracy = bench.run(measured("bf16"), **inputs).facts["accuracy"]
    assert accuracy["top1_agreement"] > 0.98
    assert accuracy["max_abs_error"] > 1e-3, "nothing was rounded to bf16"


def test_an_fp16_overflow_is_seen_although_the_cpu_computes_in_fp32(
    bench: Bench, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "up"], ["large"]),
        helper.make_node("Mul", ["large", "down"], ["small"]),
        helper.make_node("Cast", ["small"], ["y"], to=TensorProto.FLOAT),
    ]
    half = {"up": np.array(6e4, np.float16), "down": np.array(1e-4, np.float16)}
    typed = small_graph(tmp_path / "typed.onnx", *nodes, weights=half)
    source = small_graph(tmp_path / "source.onnx", helper.make_node("Relu", ["x"], ["y"]))
    data = save_npz(tmp_path / "x.npz", x=np.full((8, 4), 3, np.float32))
    params = MeasureParams(precision="fp16", format="onnx")
    error = bench.fails(AccuracyDropped, params, source=source, typed=typed, evaluation=data)
    assert "infinite" in error.detail


def test_a_drop_beyond_the_limit_fails_with_the_figures(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    model = onnx.load(str(digits.onnx))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.shape == (10, 64):  # one class loses its weights
            array = array.copy()
            array[3] = -1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    typed = tmp_path / "worse.onnx"
    onnx.save(model, str(typed))
    inputs = {"source": digits.source, "typed": typed, "evaluation": digits.evaluation}
    params = measured("fp32", metric="top1", max_drop=0.01)
    error = bench.fails(AccuracyDropped, params, **inputs)
    assert "0.01" in error.detail
    assert bench.run(measured("fp32", metric="top1", max_drop=0.5), **inputs)


def test_a_drop_cannot_be_judged_without_labels(bench: Bench, digits: Digits) -> None:
    params = measured("fp32", metric="top1", max_drop=0.01)
    inputs = {"source": digits.source, "typed": digits.onnx}
    bench.fails(InvalidData, params, **inputs, evaluation=digits.calibration)
    bench.fails(InvalidData, params, **inputs)


def test_an_engine_that_has_nothing_to_do_with_its_source_fails(
    bench: Bench, tmp_path: Path
) -> None:
    source = small_graph(tmp_path / "source.onnx", helper.make_node("Neg", ["x"], ["y"]))
    typed = small_graph(tmp_path / "typed.onnx", helper.make_node("Identity", ["x"], ["y"]))
    params = MeasureParams(precision="fp32", format="onnx")
    assert "cosine" in bench.fails(AccuracyDropped, params, source=source, typed=typed).detail


@pytest.mark.parametrize("label", [np.zeros(449, np.int64), np.zeros((450, 10), np.float32)])
def test_labels_that_do_not_fit_are_refused(
    label: np.ndarray, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    image = np.load(digits.evaluation)["image"]
    data = save_npz(tmp_path / "e.npz", image=image, label=label)
    inputs = {"source": digits.source, "typed": digits.onnx, "evaluation": data}
    assert "label" in bench.fails(InvalidData, measured("fp32"), **inputs).detail


def test_a_static_batch_is_measured_in_whole_batches(bench: Bench, tmp_path: Path) -> None:
    source = matmul(tmp_path / "static.onnx", shape=(3, 4))
    data = save_npz(tmp_path / "x.npz", x=np.ones((10, 4), np.float32))
    params = MeasureParams(precision="fp32", format="onnx")
    facts = bench.run(params, source=source, typed=source, evaluation=data).facts
    assert facts["accuracy"]["samples"] == 9
