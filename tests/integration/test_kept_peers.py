import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from farm.machine.gpus import Gpu
from farm.queue.jobs import Claim
from farm.specs.roles import Role
from farm.stages import MeasureParams
from workers.runner import kept_peers
from workers.runner.made import Made

H100 = Gpu(
    uuid="GPU-1", name="NVIDIA H100 80GB HBM3", compute_capability="sm_90", memory_bytes=2**36
)
TARGET = {"runtime": "aotinductor", "gpu": "sm_90"}


@pytest.fixture
def context(tmp_path):
    return SimpleNamespace(gpu=H100, settings=SimpleNamespace(home=tmp_path / "home"))


def claim(kind="measure", inputs=(("source", "sha256:a"),), **params):
    asked = {"precision": "fp16", "target": TARGET, "format": "pt2"} | params
    return Claim(
        job_id=1,
        attempt=1,
        key="k",
        kind=kind,
        title="measure m",
        params=MeasureParams.model_validate(asked).model_dump(mode="json"),
        inputs=dict(inputs),
        toolchain={},
        announced=True,
    )


@pytest.fixture
def measured(context, tmp_path):
    """Lets a job take figures, and gives what another finds in its place."""

    def one(first, then, of_then=context):
        made = tmp_path / "peers.json"
        made.write_text("figures")
        part = kept_peers.Peers(context, first)
        left = part.made(Made(outputs={Role.REPORT: made, Role.PEERS: made}, facts={"a": 1}))
        assert (left.outputs.keys(), left.facts) == ({Role.REPORT}, {"a": 1})
        part.kept()
        workdir = tmp_path / "next"
        workdir.mkdir()
        return kept_peers.Peers(of_then, then).place(workdir)

    return one


@pytest.mark.parametrize(
    "then",
    [
        claim(),
        claim(precision="fp8"),  # beside which PyTorch computes in fp16
        claim(target={"runtime": "onnxruntime", "gpu": "h100"}),
        claim(inputs=(("source", "sha256:a"), ("engine", "sha256:e"), ("typed", "sha256:t"))),
    ],
)
def test_the_next_engine_of_the_same_source_is_given_the_figures(measured, then):
    placed = measured(claim(), then)
    assert placed[Role.PEERS].read_text() == "figures"


@pytest.mark.parametrize(
    "then",
    [
        claim(precision="bf16"),
        claim(inputs=(("source", "sha256:b"),)),
        claim(inputs=(("source", "sha256:a"), ("calibration", "sha256:c"))),
        claim(options={"tf32": False}),
        claim(profiles=({"x": {"min": [1, 2], "opt": [1, 2], "max": [1, 2]}},)),
        claim(fixed_inputs={"n": 1}),
        claim(target=None),
    ],
)
def test_another_source_precision_shape_or_sample_is_given_nothing(measured, then):
    assert measured(claim(), then) == {}


def test_another_card_is_given_nothing(measured, context):
    other = SimpleNamespace(gpu=replace(H100, uuid="GPU-2"), settings=context.settings)
    assert measured(claim(), claim(), other) == {}


def test_another_compiler_is_given_nothing(measured, monkeypatch, context, tmp_path):
    measured(claim(), claim())
    monkeypatch.setattr(kept_peers.toolchain, "installed", lambda: {"torch": "99"})
    assert kept_peers.Peers(context, claim()).place(tmp_path) == {}


def test_figures_of_more_than_an_hour_ago_are_given_to_nobody_and_forgotten(
    measured, context, tmp_path
):
    measured(claim(), claim())
    [file] = (context.settings.home / "peers").iterdir()
    then = time.time() - kept_peers.FRESH_S - 60
    os.utime(file, (then, then))
    assert kept_peers.Peers(context, claim()).place(tmp_path) == {}
    made = tmp_path / "others.json"
    made.write_text("others")
    part = kept_peers.Peers(context, claim(precision="bf16"))
    part.made(Made(outputs={Role.PEERS: made}, facts={}))
    part.kept()
    [kept] = (context.settings.home / "peers").iterdir()
    assert kept.read_text() == "others"


def test_a_cpu_worker_keeps_none(context, tmp_path):
    context.gpu = None
    part = kept_peers.Peers(context, claim())
    assert part.place(tmp_path) == {}
    part.made(Made(outputs={Role.REPORT: tmp_path}, facts={}))
    part.kept()
    assert not context.settings.home.exists()
