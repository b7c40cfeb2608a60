"""How ONNX Runtime runs an engine on a GPU is chosen by timing, kept in its file, and recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from farm.errors import EngineBuildFailed
from farm.specs.runtime import Target
from farm.stages import BuildFacts, BuildParams, ExportParams, JobKind
from workers import demo
from workers.backends.ort import cpu, cuda, provider
from workers.backends.ort.cpu import OrtModel
from workers.graphs.attention import OPERATOR
from workers.stages.base import Stage, run
from workers.stages.build import tuning
from workers.stages.build.tuning import Clock, Time, Way

NHWC, HEURISTIC = {"prefer_nhwc": "1"}, {"cudnn_conv_algo_search": "HEURISTIC"}
TF32 = {"use_tf32": "1"}
ALL = tuning.changes(convolves=True, attends=True)


def clocked(times, *, cuda_graph=lambda _: True):
    """A clock with these times in ms: by the options beyond TF32's, and fused attention."""

    def clock(way: Way) -> Time:
        extra = {*(way.options.keys() - TF32.keys()), *(["fused"] if way.fused else [])}
        found = times(extra)
        if isinstance(found, Exception):
            raise found
        return Time(p50_ms=found, cuda_graph=cuda_graph(extra))

    return clock


def choose(clock, changes=ALL, **more):
    return tuning.chosen(tuning.plain(tf32=True), changes, clock, batch=8, **more)


def test_each_change_is_tried_on_top_of_the_fastest_and_kept_if_it_is_faster() -> None:
    gains = {"fused": 0.5, "prefer_nhwc": 0.3, "cudnn_conv_algo_search": -0.1}
    way, choice = choose(clocked(lambda extra: 2.0 - sum(gains[one] for one in extra)))
    assert way == Way(options=TF32 | NHWC, fused=True)
    assert choice.options == TF32 | NHWC
    assert [one.p50_ms for one in choice.tried] == [2.0, 1.5, 1.2, 1.3]
    assert [one.reason for one in choice.tried] == [None, None, None, "not faster"]
    assert choice.tried[3].options == TF32 | NHWC | HEURISTIC
    assert choice.batch == 8


def test_a_gain_within_the_noise_is_none() -> None:
    way, _ = choose(clocked(lambda extra: 1.0 - 0.009 * bool(extra)))
    assert way == tuning.plain(tf32=True)


def test_a_way_that_fails_is_left_with_its_reason() -> None:
    faults = {"fused": EngineBuildFailed("no kernel"), "prefer_nhwc": RuntimeError("CUDA out\nof")}
    way, choice = choose(
        clocked(lambda extra: next((faults[one] for one in extra if one in faults), 1.0))
    )
    assert way == tuning.plain(tf32=True)
    reasons = [one.reason for one in choice.tried]
    assert reasons == [None, "no kernel", "RuntimeError: CUDA out", "not faster"]
    assert choice.tried[1].p50_ms is None


def test_without_a_figure_for_the_graph_as_it_is_nothing_else_is_tried() -> None:
    way, choice = choose(clocked(lambda extra: 1.0 if extra else RuntimeError("no GPU")))
    assert way == tuning.plain(tf32=True)
    assert len(choice.tried) == 1


def test_what_is_over_the_budget_is_not_tried() -> None:
    clock = iter([0.0, 59.0, 61.0, 62.0])
    way, choice = choose(
        clocked(lambda extra: 2.0 - len(extra)), now=lambda: next(clock), budget_s=60.0
    )
    assert way == Way(options=TF32, fused=True)
    assert [one.reason for one in choice.tried[2:]] == ["the budget of 1 min was spent"] * 2


def test_a_figure_of_the_host_does_not_beat_one_with_a_cuda_graph() -> None:
    times = clocked(
        lambda extra: 1.0 - 0.5 * len(extra), cuda_graph=lambda extra: "prefer_nhwc" not in extra
    )
    changes = tuning.changes(convolves=True, attends=False)
    way, choice = choose(times, changes)
    assert way == Way(options=TF32 | HEURISTIC)
    assert choice.tried[1].cuda_graph is False


@pytest.mark.parametrize(
    ("convolves", "attends", "count"), [(False, False, 0), (True, False, 2), (False, True, 1)]
)
def test_only_what_can_matter_to_the_graph_is_tried(convolves, attends, count) -> None:
    assert len(tuning.changes(convolves=convolves, attends=attends)) == count


class Runs:
    def __init__(self, outputs: np.ndarray) -> None:
        self._outputs = outputs

    def run(self, _):
        return {"y": self._outputs}

    def time(self, _) -> Time:
        return Time(p50_ms=1.0, cuda_graph=True)


def test_a_way_with_other_outputs_is_refused_and_rounding_is_none() -> None:
    right = np.linspace(-1, 1, 8, dtype=np.float32)
    outputs = iter([right, right + 1e-4, right + 0.1])
    clock = Clock(load=lambda _: Runs(next(outputs)), arrays={}, tolerance=1e-3)
    way = tuning.plain(tf32=False)
    assert clock(way) == clock(way)
    with pytest.raises(EngineBuildFailed, match="its outputs differ"):
        clock(way)


def identity(tmp_path: Path, **kept: str) -> Path:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [value(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    for key, text in kept.items():
        model.metadata_props.add(key=key, value=text)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_options_are_kept_in_the_file_in_place_of_any_it_came_with(tmp_path: Path) -> None:
    path = identity(tmp_path, **{provider.KEY: '{"prefer_nhwc": "1"}', "author": "me"})
    model = onnx.load(path)
    provider.keep_options(model, TF32)
    onnx.save(model, path)
    assert provider.kept_options(path) == TF32
    kept = OrtModel(path)._session.get_modelmeta().custom_metadata_map
    assert kept == {"author": "me", provider.KEY: '{"use_tf32": "1"}'}


def test_a_file_of_an_earlier_farm_has_none(tmp_path: Path) -> None:
    assert provider.kept_options(identity(tmp_path)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"gpu_external_alloc": "1"}',
        '{"prefer_nhwc": "2"}',
        '{"prefer_nhwc": 1}',
        '{"prefer_nhwc": []}',
    ],
)
def test_options_that_the_farm_does_not_write_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(EngineBuildFailed, match="aren't options that the farm writes"):
        provider.kept_options(identity(tmp_path, **{provider.KEY: text}))


class Seeing(nn.Module):
    """A convolution, then attention over its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.project = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        parts = self.project(tokens).chunk(3, -1)
        query, key, value = (p.unflatten(-1, (2, 8)).transpose(1, 2) for p in parts)
        made = nn.functional.scaled_dot_product_attention(query, key, value)
        return made.transpose(1, 2).flatten(2)


class OnCpu:
    """Ways on the CPU, with times that are given."""

    times: tuple[float, float] = (1.0, 1.0)  #: as it was, and fused

    def __init__(self, files, way: Way) -> None:
        self._model, self._way = OrtModel(files[way.fused]), way

    def run(self, arrays):
        return self._model.run(arrays)

    def time(self, _) -> Time:
        nhwc = 0.9 if "prefer_nhwc" in self._way.options else 1.0
        return Time(p50_ms=nhwc * self.times[self._way.fused], cuda_graph=True)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Builds an engine for a GPU with the CPU in its place."""
    monkeypatch.setattr(cuda, "build_engine", cpu.build_engine)
    monkeypatch.setattr(tuning, "OnGpu", OnCpu)
    torch.manual_seed(0)
    demo.save_program(Seeing().eval(), torch.zeros(2, 3, 16, 16), tmp_path / "net.pt2")

    def stage(kind, params, **inputs):
        workdir = tmp_path / kind
        workdir.mkdir()
        return run(
            Stage(
                kind=kind,
                params=params,
                inputs=inputs,
                workdir=workdir,
                progress=lambda *_: None,
            )
        )

    def one(times=(1.0, 1.0), **more):
        monkeypatch.setattr(OnCpu, "times", times)
        exported = stage(JobKind.EXPORT, ExportParams(format="pt2"), source=tmp_path / "net.pt2")
        params = BuildParams(
            target=Target(runtime="onnxruntime", gpu="h100"),
            compute_capability="sm_90",
            precision="fp32",
            **more,
        )
        return stage(JobKind.BUILD, params, typed=exported.outputs["onnx"])

    return one


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_the_fastest_graph_is_the_engine_and_its_file_says_how_to_run_it(built) -> None:
    result = built(times=(1.0, 0.5))
    engine = result.outputs["engine"]
    assert OPERATOR in operators(engine)
    assert provider.kept_options(engine) == TF32 | NHWC
    assert isinstance(result.facts, BuildFacts)
    choice = result.facts.provider
    assert choice is not None
    assert choice.options == TF32 | NHWC
    assert choice.fused_attention == 1
    assert [one.p50_ms for one in choice.tried] == [1.0, 0.5, 0.45, 0.45]


def test_attention_that_is_slower_as_one_operator_stays_as_it_was(built) -> None:
    result = built(times=(1.0, 2.0))
    assert OPERATOR not in operators(result.outputs["engine"])
    assert result.facts.provider.fused_attention == 0


def test_an_engine_built_without_tf32_says_so_in_its_file(built) -> None:
    result = built(options={"tf32": False})
    assert provider.kept_options(result.outputs["engine"])["use_tf32"] == "0"


def test_attention_that_the_runtime_cannot_build_stays_as_it_was(built, monkeypatch) -> None:
    def build(typed, engine, **more):
        if OPERATOR in operators(typed):
            raise EngineBuildFailed("no kernel")
        return cpu.build_engine(typed, engine, **more)

    monkeypatch.setattr(cuda, "build_engine", build)
    result = built(times=(1.0, 0.5))
    assert OPERATOR not in operators(result.outputs["engine"])
    assert result.facts.provider.fused_attention == 0
    assert not any(one.fused_attention for one in result.facts.provider.tried)
