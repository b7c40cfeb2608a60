"""What every backend promises the build and measure stages, held against each that runs here.

Engines for GPUs are built ahead of time where the runtime can, and run only where there is the GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import EngineBuildFailed, FarmError, InvalidModel, ProfileMismatch
from farm.machine import gpus
from farm.registry import loading
from farm.reports.layers import LayerReport
from farm.schemas.engines import EngineView
from farm.specs.roles import Role
from farm.specs.runtime import Target
from farm.specs.shapes import ShapeRange
from farm.stages import BuildParams, JobKind, check_facts
from farm.testing import documents
from farm.testing.stages import FakeStages
from tests import loaded
from tests.stage_bench import Bench, Ran
from workers import demo
from workers.backends.aotinductor import compiler
from workers.backends.aotinductor.engine import AotiEngine
from workers.backends.ort.cpu import OrtModel
from workers.backends.torchscript import TorchScriptModel
from workers.inputs.standins import Runnable
from workers.measure import gpu as on_gpu
from workers.runner import toolchain

FOUND = gpus.discover()


def on_a_gpu(backend: str, *, has: bool) -> Any:
    why = "no NVIDIA GPU, or no such runtime, here"
    marks = [pytest.mark.gpu, pytest.mark.skipif(not FOUND or not has, reason=why)]
    return pytest.param(backend, marks=marks)


COMPILES = bool(compiler.tools())
#: Those whose engines run on any machine, or on any with a C++ compiler.
ON_CPU = [
    "onnxruntime:cpu",
    "torchscript:cpu",
    pytest.param(
        "aotinductor:cpu",
        marks=pytest.mark.skipif(not COMPILES, reason="no usable C++ compiler here"),
    ),
]
ON_GPU = [
    on_a_gpu("onnxruntime:gpu", has=toolchain.has_cuda_provider()),
    on_a_gpu("tensorrt:gpu", has=find_spec("tensorrt") is not None),
    on_a_gpu("aotinductor:gpu", has=COMPILES and torch.version.cuda is not None),
]
BACKENDS = [*ON_CPU, "tensorrt-rtx:sm_89", *ON_GPU]
OF_PROGRAMS = ("torchscript", "aotinductor")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@dataclass(frozen=True, kw_only=True)
class Sources:
    """One network, as each backend takes it."""

    net: Net
    program: Path
    graph: Path

    def inputs(self, runtime: str) -> Mapping[str, Path]:
        return {"source": self.program} if runtime in OF_PROGRAMS else {"typed": self.graph}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("net")
    net, program, graph = Net().eval(), folder / "net.pt2", folder / "net.onnx"
    demo.save_program(net, torch.zeros(2, 8), program)
    exported = torch.onnx.export(
        net,
        (torch.zeros(2, 8),),
        dynamo=True,
        verbose=False,
        input_names=["x"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    assert exported is not None
    exported.save(str(graph))
    return Sources(net=net, program=program, graph=graph)


def asked(backend: str, **changes: Any) -> BuildParams:
    runtime, _, gpu = backend.partition(":")
    if gpu == "gpu":
        major, minor = torch.cuda.get_device_capability()
        gpu = f"sm_{major}{minor}"
    params = {"precision": "fp32", "format": "pt2"} | changes
    target = Target(runtime=runtime, gpu=gpu)
    return BuildParams(target=target, compute_capability=gpu, **params)


def given(sources: Sources, backend: str) -> Mapping[str, Path]:
    return sources.inputs(backend.partition(":")[0])


def engine_of(backend: str, engine: Path) -> Runnable:
    runtime, _, gpu = backend.partition(":")
    if gpu == "gpu":
        return on_gpu.load(Target(runtime=runtime, gpu="sm_90").runtime, engine).engine
    if runtime == "aotinductor":
        return AotiEngine(engine, "cpu")
    return (
        TorchScriptModel(engine) if runtime == "torchscript" else OrtModel(engine, is_engine=True)
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Callable[[str], Ran]:
    """Builds each backend's engine once: a compiler takes its time."""
    return cache(
        lambda backend: Bench(tmp_path_factory.mktemp("built")).run(
            asked(backend), **given(sources, backend)
        )
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_is_built_with_a_report_and_the_sources_interface(
    backend: str, built: Callable[[str], Ran]
) -> None:
    made = built(backend)
    facts = made.facts
    assert made.outputs[Role.ENGINE].stat().st_size == facts["engine_bytes"] > 0
    report = LayerReport.model_validate_json(made.outputs[Role.LAYERS].read_bytes(), strict=True)
    [x], [y] = report.inputs, report.outputs
    assert (x.name, x.dtype, x.shape[1:]) == ("x", "float32", (8,))
    assert (y.dtype, y.shape[1:]) == ("float32", (4,))
    assert facts["inputs"] == [x.model_dump(mode="json", exclude_unset=True)]
    assert facts["runtime"] == backend.partition(":")[0]
    assert facts["runtime_version"]
    assert report.compute.types.keys() == {"fp32"}
    check_facts(JobKind.BUILD, dict(facts))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_profile_for_another_input_is_refused_with_its_name(
    backend: str, bench: Bench, sources: Sources
) -> None:
    picture = ShapeRange(min=(1, 8), opt=(1, 8), max=(1, 8))
    error = bench.fails(
        ProfileMismatch,
        asked(backend, profiles=({"picture": picture},)),
        **given(sources, backend),
    )
    assert "picture" in error.detail


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("content", [b"", b"no model at all", b"PK\x03\x04and no archive"])
def test_what_is_no_model_is_refused_with_what_to_do(
    backend: str, content: bytes, bench: Bench, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(content)
    with pytest.raises(FarmError) as caught:
        bench.run(asked(backend), **dict.fromkeys(given_roles(backend), garbage))
    assert isinstance(caught.value, InvalidModel | EngineBuildFailed)
    assert caught.value.hint


def given_roles(backend: str) -> tuple[str, ...]:
    return ("source",) if backend.startswith(OF_PROGRAMS) else ("typed",)


@pytest.mark.parametrize("backend", [*ON_CPU, *ON_GPU])
def test_an_engine_gives_what_its_source_gives_at_every_batch(
    backend: str, built: Callable[[str], Ran], sources: Sources
) -> None:
    engine = built(backend).outputs[Role.ENGINE]
    model = engine_of(backend, engine)
    for batch in (1, 5, 8):
        x = np.random.default_rng(batch).standard_normal((batch, 8)).astype(np.float32)
        [y] = model.run({"x": x}).values()
        wanted = sources.net(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", [*ON_CPU, *ON_GPU])
def test_what_a_manifest_says_runs_in_a_fresh_process_and_gives_what_the_source_gives(
    backend: str, built: Callable[[str], Ran], sources: Sources, tmp_path: Path
) -> None:
    made, params = built(backend), asked(backend)
    where = {"runtime": params.target.runtime, "gpu": params.target.gpu}
    said = {name: made.facts.get(name) for name in ("inputs", "outputs", "profiles", "provider")}
    row = documents.engine(b"", precision=params.precision, **where, **said)
    engine = EngineView.model_validate(row)
    shutil.copy(made.outputs[Role.ENGINE], tmp_path / engine.file_name())
    load, on_gpu = loading.text(engine), params.target.gpu != "cpu"

    [y] = loaded.run(load, tmp_path, on_gpu=on_gpu).values()
    at_zero = sources.net(torch.zeros(1, 8)).detach().numpy()
    np.testing.assert_allclose(y, np.repeat(at_zero, len(y), 0), rtol=1e-3, atol=1e-3)

    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    found = loaded.run_with(load, {"x": x}, tmp_path, on_gpu=on_gpu)
    assert list(found) == [spec.name for spec in engine.outputs]
    [y] = found.values()
    wanted = sources.net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", [*ON_CPU, *ON_GPU])
def test_a_batch_of_another_shape_is_refused_with_its_shape(
    backend: str, built: Callable[[str], Ran]
) -> None:
    engine = built(backend).outputs[Role.ENGINE]
    with pytest.raises((InvalidModel, EngineBuildFailed), match=r"\[2, 9\]"):
        engine_of(backend, engine).run({"x": np.zeros((2, 9), np.float32)})


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_file_that_is_no_engine_is_not_loaded(backend: str, tmp_path: Path) -> None:
    garbage = tmp_path / "engine"
    garbage.write_bytes(b"no engine at all")
    with pytest.raises((InvalidModel, EngineBuildFailed)):
        engine_of(backend, garbage)


def test_the_fake_says_what_a_backend_says(bench: Bench, sources: Sources, tmp_path: Path) -> None:
    fake = FakeStages().run(JobKind.BUILD, tmp_path)
    real = bench.run(asked("onnxruntime:cpu"), **sources.inputs("onnxruntime"))
    assert set(real.outputs) <= set(fake.outputs)
    assert fake.facts.keys() <= real.facts.keys()
    shown = LayerReport.model_validate_json(fake.outputs[Role.LAYERS].read_bytes(), strict=True)
    assert isinstance(shown.source, str)
