"""The ways that ONNX Runtime's CUDA provider can run a graph, tried on this machine's GPU."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export

from farm.machine import gpus
from farm.specs.runtime import Target
from farm.stages import BuildParams, CastParams, ExportParams, JobKind
from workers import demo
from workers.backends.ort import cuda, provider
from workers.graphs import attention
from workers.graphs.normal import normalised
from workers.measure.difference import difference
from workers.runner import toolchain
from workers.stages.base import Stage, run
from workers.stages.export import exporter

pytestmark = pytest.mark.gpu

FOUND = gpus.discover()
needs_gpu = pytest.mark.skipif(
    not FOUND or not toolchain.has_cuda_provider(), reason="no GPU, or no onnxruntime-gpu, here"
)
HEADS, HIDDEN = 4, 256


class Attends(nn.Module):
    """Attention of 64 a head, with keys masked, or without a mask."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x, m=None):
        parts = self.project(x).chunk(3, -1)
        query, key, value = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
        mask = None if m is None else m[:, None, None, :]
        made = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(made.transpose(1, 2).flatten(2))


def exported(*more):
    torch.manual_seed(0)
    axes = {0: Dim("batch", min=1, max=64), 1: Dim("tokens", min=1, max=512)}
    program = export(
        Attends().eval(),
        (torch.randn(2, 6, HIDDEN), *more),
        dynamic_shapes=(axes,) * (1 + len(more)),
    )
    return normalised(exporter.to_onnx(program))


@needs_gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 128])
def test_fused_attention_computes_the_same_on_the_gpu(tmp_path, masked, tokens):
    model = exported(*([torch.ones(2, 6, dtype=torch.bool)] if masked else []))
    made, count = attention.fused(model)
    assert count == 1
    random = np.random.default_rng(0)
    arrays = {"x": random.standard_normal((3, tokens, HIDDEN)).astype(np.float32)}
    if masked:
        arrays["m"] = random.random((3, tokens)) > 0.4
        arrays["m"][0] = False  # no key at all
    outputs = []
    for number, one in enumerate((model, made)):
        typed, engine = tmp_path / f"typed-{number}.onnx", tmp_path / f"engine-{number}.onnx"
        typed.write_bytes(one.SerializeToString())
        cuda.build_engine(typed, engine)
        outputs.append(cuda.OrtCudaEngine(engine, {"use_tf32": "0"}).run(arrays))
    assert difference(*outputs).beyond(1e-3) is None


@pytest.fixture
def built(tmp_path):
    def stage(kind, params, **inputs):
        workdir = tmp_path / kind
        workdir.mkdir()
        return run(
            Stage(
                kind=kind, params=params, inputs=inputs, workdir=workdir, progress=lambda *_: None
            )
        )

    def one(net, example, precision):
        demo.save_program(net.eval(), example, tmp_path / "net.pt2")
        typed = stage(JobKind.EXPORT, ExportParams(format="pt2"), source=tmp_path / "net.pt2")
        file = typed.outputs["onnx"]
        if precision != "fp32":
            file = stage(JobKind.CAST, CastParams(precision=precision), onnx=file).outputs["typed"]
        params = BuildParams(
            target=Target(runtime="onnxruntime", gpu=FOUND[0].tags[-1]),
            compute_capability=FOUND[0].compute_capability,
            precision=precision,
        )
        return stage(JobKind.BUILD, params, typed=file)

    return one


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_convolutions_are_timed_in_each_layout_and_the_file_says_which_won(built, precision):
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU())
    result = built(net, torch.zeros(2, 3, 64, 64), precision)
    choice = result.facts.provider
    plain, *others = choice.tried
    assert plain.p50_ms > 0
    assert plain.cuda_graph
    assert any("prefer_nhwc" in one.options for one in others)
    assert all(one.p50_ms or one.reason for one in others)
    engine = result.outputs["engine"]
    assert provider.kept_options(engine) == choice.options
    arrays = {"x": np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)}
    [name] = [one.name for one in result.facts.inputs]
    outputs = cuda.OrtCudaEngine(engine).run({name: arrays["x"]})
    as_it_was = cuda.OrtCudaEngine(engine, {"use_tf32": "1"}).run({name: arrays["x"]})
    assert difference(as_it_was, outputs).beyond(2.0**-3) is None
