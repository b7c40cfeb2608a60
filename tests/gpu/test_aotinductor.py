"""AOTInductor packages: built, profiled and timed on this machine's GPU."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from farm.machine import gpus
from farm.reports.layers import LayerReport
from farm.settings import Settings
from farm.specs.runtime import Target
from farm.stages import BuildParams, JobKind, MeasureParams
from workers import demo
from workers.backends.aotinductor import build, compiler
from workers.backends.aotinductor.engine import AotiEngine
from workers.inputs.profiles import resolve_profiles
from workers.programs.eager import specs
from workers.programs.lowered import lowered
from workers.runner import compiles, forks
from workers.runner.siblings import Siblings
from workers.stages.base import Stage, run

pytestmark = pytest.mark.gpu

FOUND = gpus.discover()
needs_gpu = pytest.mark.skipif(
    not FOUND or torch.version.cuda is None or not compiler.tools(),
    reason="no GPU, no PyTorch for it, or no C++ compiler here",
)
#: Above this compute capability there are products in fp8.
HAS_FP8 = bool(FOUND) and int(FOUND[0].compute_capability.removeprefix("sm_")) >= 89


def trained_norm(channels):
    """Of statistics that differ between channels."""
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return norm


class Net(nn.Module):
    """Normalised convolutions of three by three and one by one, pooling, and attention with an open mask."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 128, 1)
        self.norms = nn.ModuleList([trained_norm(64), trained_norm(128)])
        self.project, self.out = nn.Linear(128, 3 * 128), nn.Linear(128, 128)
        self.last = nn.Linear(128, 16)

    def forward(self, x):
        y = nn.functional.max_pool2d(self.norms[0](self.first(x)).relu(), 2, stride=1, padding=1)
        y = self.norms[1](self.second(y)).relu().flatten(2).transpose(1, 2)
        parts = self.project(y).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in parts)
        mask = (torch.arange(query.shape[2]) >= 0)[:, None].expand(-1, query.shape[2])
        made = nn.functional.scaled_dot_product_attention(query, key, value, mask)
        return self.last(self.out(made.transpose(1, 2).flatten(2)).mean(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.pt2"
    demo.save_program(Net().eval(), torch.zeros(2, 3, 16, 16), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, source):
    name = torch.export.load(source).graph_signature.user_inputs[0]
    path = tmp_path_factory.mktemp("data") / "data.npz"
    samples = np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)
    np.savez(path, **{name: samples})
    return path


def staged(tmp_path, kind, params, **inputs):
    workdir = tmp_path / kind
    workdir.mkdir()
    return run(
        Stage(kind=kind, params=params, inputs=inputs, workdir=workdir, progress=lambda *_: None)
    )


@needs_gpu
@pytest.mark.parametrize(
    ("precision", "ran", "most"),
    [
        ("fp32", {"tf32", "fp32"}, 5e-3),
        ("fp16", {"fp16"}, 1e-2),
        ("bf16", {"bf16"}, 5e-2),
        ("int8", {"int8", "fp16"}, 0.1),
        pytest.param(
            "fp8",
            {"fp8", "fp16"},
            0.2,
            marks=pytest.mark.skipif(not HAS_FP8, reason="no fp8 on this GPU"),
        ),
    ],
)
def test_a_package_runs_in_its_type_near_its_source_and_beside_pytorch(
    tmp_path, source, data, precision, ran, most
):
    target = Target(runtime="aotinductor", gpu=FOUND[0].compute_capability)
    params = BuildParams(
        target=target,
        compute_capability=FOUND[0].compute_capability,
        precision=precision,
        format="pt2",
    )
    built = staged(tmp_path, JobKind.BUILD, params, source=source, calibration=data)
    report = LayerReport.model_validate_json(built.outputs["layers"].read_bytes(), strict=True)
    print(report.compute, [(layer.kernel, layer.microseconds) for layer in report.layers])
    seen = {kind for kind, share in report.compute.ran.items() if share > 0.01}
    assert seen <= ran
    assert precision in seen or precision == "fp32"
    asked = MeasureParams(precision=precision, target=target, format="pt2")
    facts = staged(
        tmp_path,
        JobKind.MEASURE,
        asked,
        source=source,
        engine=built.outputs["engine"],
        calibration=data,
    ).facts
    print(facts.metrics)
    assert facts.accuracy.measured_on == "engine"
    assert facts.accuracy.relative_error < most
    assert facts.metrics.cuda_graph.p50_ms > 0, facts.metrics.cuda_graph
    assert facts.metrics.compiled_cuda_graph.p50_ms > 0, facts.metrics.compiled_cuda_graph


@needs_gpu
def test_a_program_that_takes_bf16_is_timed_on_arrays_of_fp32(tmp_path):
    torch.manual_seed(0)
    module, x = nn.Linear(64, 32).bfloat16().eval(), torch.zeros(8, 64, dtype=torch.bfloat16)
    program = torch.export.export(module, (x,))
    inputs, outputs = specs(program)
    of = build.signature(inputs, outputs, resolve_profiles(inputs, [], {}), tf32=False)
    moved = lowered(move_to_device_pass(program, "cuda:0")).cuda()
    build.compile_package(build.traced(moved, [x.cuda()], of), of, tmp_path / "engine.pt2")
    engine = AotiEngine(tmp_path / "engine.pt2", "cuda")
    array = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    given = {inputs[0].name: torch.from_numpy(array).cuda()}
    expected = module(torch.from_numpy(array).bfloat16()).float()
    for bind in (engine.bind, engine.bind_graph):
        with torch.cuda.stream(torch.cuda.Stream()):
            [made] = bind(given).enqueue().values()
            torch.cuda.synchronize()
        assert torch.allclose(made.float().cpu(), expected, atol=2e-2)


@needs_gpu
@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="an older torch unpacks packages outside of a job's folder"
)
def test_a_worker_of_this_gpu_compiles_packages_in_a_jobs_sandbox(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", FOUND[0].uuid)
    forks.preload(["workers.stages.warm"])
    settings = Settings(home=tmp_path, aotinductor=True)
    assert compiles.refusal(settings, FOUND[0], Siblings()) is None
