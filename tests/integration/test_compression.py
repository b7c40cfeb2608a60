"""Models that are compressed before they are built: planned, built and measured, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

from farm.errors import AccuracyDropped, EngineBuildFailed, PrecisionMissed, PruningFailed
from farm.specs.options import Prune
from farm.specs.precision import Precision
from tests.zoo import runner
from tests.zoo.runner import Built, Source
from workers import demo
from workers.backends import torchscript
from workers.backends.ort.cpu import OrtModel
from workers.backends.torchscript import TorchScriptModel
from workers.clocks.host import Pace
from workers.graphs.compute import compute_of
from workers.measure import cpu
from workers.programs.eager import EagerModel
from workers.programs.load import load_program
from workers.programs.program_weights import weights
from workers.quantize.dynamic_ranges import quantize_weights
from workers.report.layers import INTEGER_KERNELS, check_integer_kernels
from workers.stages import prune

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", autouse=True)
def quick_timing() -> Iterator[None]:
    pace = Pace(warmup_s=0.01, duration_s=0.05, min_iterations=3, max_s=0.2, slice_s=0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "LATENCY_PACE", pace)
        patch.setattr(cpu, "THROUGHPUT_PACE", pace)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("digits")
    train, held_out = demo.digits_split()
    path = folder / "digits.pt2"
    demo.save_program(demo.train_digits(train, epochs=6), torch.zeros(2, 1, 8, 8), path)
    samples = {"image": held_out["image"]}
    return Source(name="digits", path=path, format="pt2", samples=samples, labels=held_out["label"])


def built(source: Source, folder: Path, precision: str, *gpus: str, **request: Any) -> list[Built]:
    precisions = [Precision(precision)]
    return list(runner.build(source, precisions=precisions, gpus=gpus, folder=folder, **request))


def judged(max_drop: float) -> dict[str, Any]:
    evaluation = {"digest": f"{runner.DIGEST}3", "metric": "top1", "max_drop": max_drop}
    return {"evaluation": evaluation}


@pytest.fixture(scope="module")
def pruned(digits: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The digits pruned 2:4, in fp32, by GPU."""
    folder = tmp_path_factory.mktemp("pruned")
    made = built(digits, folder, "fp32", "cpu", "sm_89", prune={"method": "2:4"}, **judged(0.2))
    assert [one.error for one in made] == [None, None]
    return {one.target.partition(":")[2]: one for one in made}


def save(model: nn.Module, path: Path, *example: Tensor) -> Path:
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in example)
    torch.export.save(torch.export.export(model.eval(), example, dynamic_shapes=shapes), path)
    return path


# Pruning


def test_a_sane_pruning_passes_and_says_what_it_took(pruned: dict[str, Built]) -> None:
    facts = pruned["cpu"].results["prune"].facts
    assert facts["sparsity"] == 0.5
    assert {layer["sparsity"] for layer in facts["layers"].values()} == {0.5}
    assert facts["left_out"] == {"features.0.weight": "its 1 input channels aren't groups of 4"}
    assert pruned["cpu"].accuracy.measured_on == "engine"
    # Compared with the submitted source: compared with the pruned one nothing would be lost.
    assert 0 < pruned["cpu"].accuracy.task.drop < 0.2


@pytest.mark.parametrize(
    ("how", "told"), [(judged(0.05), "; 0.05 is allowed"), ({"evaluation": None}, "cosine")]
)
def test_a_ruinous_pruning_is_refused_by_the_users_measure_and_without_one(
    how: dict[str, Any], told: str, digits: Source, tmp_path: Path
) -> None:
    ruin = {"method": "l1-unstructured", "amount": 0.99}
    [made] = built(digits, tmp_path, "fp32", "torchscript:cpu", prune=ruin, **how)
    assert isinstance(made.error, AccuracyDropped)
    assert told in made.error.detail
    assert "prune less" in (made.error.hint or "")


def test_what_is_pruned_2_4_meets_tensorrts_demand_when_it_is_built(
    pruned: dict[str, Built],
) -> None:
    assert pruned["sm_89"].facts["options"]["sparse_weights"] is True
    assert pruned["cpu"].facts["options"]["sparse_weights"] is False
    graph = onnx.load(str(pruned["sm_89"].results["export"].outputs["onnx"])).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kinds = {"Conv": 0, "Gemm": 0}
    for node in graph.node:
        if node.op_type in kinds:
            kinds[node.op_type] += _is_sparse(tensors[node.input[1]])
    assert kinds == {"Conv": 2, "Gemm": 2}  # the first has one input channel


def _is_sparse(weights: np.ndarray) -> bool:
    """TensorRT's condition, for weights [K,C,…]: of each 4 of C at most 2 aren't zero."""
    channels = weights.reshape(*weights.shape[:2], -1)
    if channels.shape[1] % 4:
        return False
    groups = channels.reshape(channels.shape[0], -1, 4, channels.shape[2])
    return bool(((groups != 0).sum(axis=2) <= 2).all())


class _Uses(nn.Module):
    """Weights in the ways that graphs multiply by them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 12)
        self.up = nn.ConvTranspose1d(12, 4, 3)
        self.matmul = nn.Parameter(torch.randn(4, 8))
        self.turned = nn.Parameter(torch.randn(6, 8))
        self.odd = nn.Linear(6, 5)
        self.table = nn.Embedding(8, 5)
        self.head = nn.Linear(5, 8, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        y = self.up(self.linear(x)[:, :, None]).mean(-1) @ self.matmul
        y = self.odd(y @ self.turned.T) + self.table(ids)
        return self.head(y)


def test_weights_are_found_by_how_the_graph_takes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = (torch.tensor([1, 2]), torch.randn(2, 8))
    program = load_program(save(_Uses(), tmp_path / "uses.pt2", *example))
    found, others = weights(program)
    axes = {weight.name: weight.axis for weight in found}
    assert axes == {"linear.weight": 1, "up.weight": 0, "matmul": 0, "turned": 1, "odd.weight": 1}
    assert "aten.embedding.default takes it too" in others.values()
    facts = prune.prune_program(program, Prune.parse("2:4"))
    assert facts.layers.keys() == axes.keys() - {"odd.weight"}
    assert facts.left_out["odd.weight"] == "its 6 input channels aren't groups of 4"
    matmul = program.state_dict["matmul"]
    assert ((matmul != 0).sum(dim=0) == 2).all()


def test_the_largest_two_of_each_four_input_channels_stay() -> None:
    row = [[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.4, 0.3]]
    mask = prune.two_of_four(torch.tensor(row), 1)
    assert mask.tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]
    assert prune.two_of_four(torch.tensor(row).T, 0).T.tolist() == mask.tolist()


def test_a_model_without_weights_to_prune_is_refused_with_the_reasons(tmp_path: Path) -> None:
    program = load_program(save(nn.Linear(6, 5), tmp_path / "odd.pt2", torch.randn(2, 6)))
    with pytest.raises(PruningFailed, match="6 input channels") as caught:
        prune.prune_program(program, Prune.parse("2:4"))
    assert "l1" in (caught.value.hint or "")


# INT8 without calibration data


def test_an_int8_dynamic_engine_multiplies_integers_and_says_how_many(
    digits: Source, tmp_path: Path
) -> None:
    [made] = built(digits, tmp_path, "int8-dynamic", "cpu", calibration=None, **judged(0.02))
    assert made.error is None
    types = made.facts["compute"]["types"]
    assert {name: of["layers"] for name, of in types.items()} == {"int8": 2, "fp32": 3}
    assert 0 < types["int8"]["share"] < types["fp32"]["share"]
    engine = onnx.load(str(made.results["build"].outputs["engine"]))
    kernels = [node.op_type for node in engine.graph.node if node.op_type in INTEGER_KERNELS]
    assert len(kernels) == 2
    assert made.accuracy.cosine_mean > 0.999
    assert made.metrics.latency_ms["p50"] > 0


def _gemms(path: Path, *kinds: str) -> onnx.ModelProto:
    """Products of one weight [8,8], one after the other."""
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    names = ["x", *(f"h{n}" for n in range(len(kinds) - 1)), "y"]
    turned = {"Gemm": {"transB": 1}, "MatMul": {}}
    nodes = [
        helper.make_node(kind, [names[n], "w"], [names[n + 1]], **turned[kind])
        for n, kind in enumerate(kinds)
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "gemms",
        [value("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return onnx.load(str(path))


@pytest.mark.parametrize("kinds", [("Gemm",), ("Gemm", "Gemm"), ("MatMul", "Gemm", "Gemm")])
def test_products_that_share_a_weight_keep_it(kinds: tuple[str, ...], tmp_path: Path) -> None:
    model = _gemms(tmp_path / "m.onnx", *kinds)
    quantize_weights(model, tmp_path / "q.onnx")
    assert compute_of(onnx.load(str(tmp_path / "q.onnx")), {"x": (2, 8)}).as_facts() == {
        "macs": 2 * 64 * len(kinds),
        "types": {"int8": {"layers": len(kinds), "share": 1.0}},
    }
    x = {"x": np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)}
    before, after = (OrtModel(tmp_path / name).run(x)["y"] for name in ("m.onnx", "q.onnx"))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


def test_a_model_of_convolutions_alone_is_no_int8_dynamic_engine(tmp_path: Path) -> None:
    path = save(nn.Conv1d(4, 4, 3), tmp_path / "conv.pt2", torch.randn(2, 4, 8))
    samples = {"input": np.ones((2, 4, 8), np.float32)}
    source = Source(name="conv", path=path, format="pt2", samples=samples)
    [made] = built(source, tmp_path, "int8-dynamic", "cpu", calibration=None)
    assert isinstance(made.error, PrecisionMissed)
    assert "(Conv) multiplies by a constant matrix" in made.error.detail


def test_an_int8_dynamic_engine_without_an_integer_kernel_is_refused() -> None:
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    )
    with pytest.raises(PrecisionMissed):
        check_integer_kernels(model, Precision.INT8_DYNAMIC)


# TorchScript


class _OfItsBatch(nn.Module):
    """Computes with the batch, and gives two outputs."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        batch = x.shape[0]
        rows = torch.arange(batch, dtype=torch.float32).view(batch, 1)
        return {"shifted": x + rows, "flat": (x * 2).reshape(batch * 4)}


def _program(path: Path) -> ExportedProgram:
    return load_program(save(_OfItsBatch(), path, torch.randn(2, 4)))


def test_torchscript_is_built_from_the_program_checked_and_timed(
    digits: Source, tmp_path: Path
) -> None:
    [made] = built(digits, tmp_path, "fp32", "torchscript:cpu", **judged(0.0))
    assert made.error is None
    assert made.results.keys() == {"build", "measure"}
    assert made.accuracy.measured_on == "engine"
    assert made.accuracy.top1_agreement == 1.0
    assert made.metrics.latency_ms["p50"] > 0
    assert made.facts["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
    ]
    assert made.facts["outputs"][0]["shape"] == ["batch", 10]
    assert made.facts["compute"]["types"] == {"fp32": {"layers": 5, "share": None}}
    engine = torch.jit.load(str(made.results["build"].outputs["engine"]))
    for batch in (1, 5):
        assert engine(torch.zeros(batch, 1, 8, 8)).shape == (batch, 10)


def test_a_batch_that_the_program_computes_with_stays_dynamic(tmp_path: Path) -> None:
    program = _program(tmp_path / "batch.pt2")
    torchscript.build_engine(program, tmp_path / "engine.pt")
    engine, source = TorchScriptModel(tmp_path / "engine.pt"), EagerModel(program)
    for batch in (1, 7):
        x = {"x": np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)}
        expected, found = source.run(x), engine.run(x)
        assert list(found) == ["shifted", "flat"]
        assert found["flat"].shape == (batch * 4,)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert source.input_specs[0].shape == ("batch", 4)
    assert [spec.shape for spec in source.output_specs] == [("batch", 4), ("4*batch",)]


def test_torchscript_that_holds_at_one_batch_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(_OfItsBatch(), tmp_path / "batch.pt2", torch.randn(2, 4))
    monkeypatch.setattr(
        torch.jit,
        "script",
        lambda module: torch.jit.trace(module, torch.zeros(8, 4), check_trace=False),
    )
    samples = {"x": np.ones((8, 4), np.float32)}
    source = Source(name="batch", path=path, format="pt2", samples=samples)
    [made] = built(source, tmp_path, "fp32", "torchscript:cpu", calibration=None)
    assert isinstance(made.error, EngineBuildFailed)
    assert "{'x': (1, 4)}" in made.error.detail
    assert "onnxruntime:cpu" in (made.error.hint or "")


def test_what_torchscript_cannot_say_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: object) -> None:
        raise RuntimeError("Unknown builtin op: aten::magic")

    monkeypatch.setattr(torch.jit, "script", refuse)
    with pytest.raises(EngineBuildFailed, match="aten::magic") as caught:
        torchscript.build_engine(_program(tmp_path / "batch.pt2"), tmp_path / "engine.pt")
    assert "onnxruntime:cpu" in (caught.value.hint or "")
