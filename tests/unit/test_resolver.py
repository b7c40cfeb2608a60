"""Which engines serve a GPU and run on a machine, and which of them a pull takes: a table of cases."""

from __future__ import annotations

import itertools

import pytest

from farm.errors import InvalidRequest
from farm.registry import ranking
from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.machines import ANY, Machine, misfit
from farm.specs.reach import Reach, reach
from farm.testing import documents


def engine(target: str, version: str = "10.13.3.9", **changes) -> EngineView:
    """``tensorrt:a10`` and the like, with the options, toolchain or figures given."""
    runtime, _, gpu = target.partition(":")
    row = documents.engine(b"x", id=target, runtime=runtime, runtime_version=version, gpu=gpu)
    return EngineView.model_validate(row | changes)


def portable(target: str, level: str = "ampere_plus") -> EngineView:
    return engine(target, options={"hardware_compatibility_level": level})


ANY_X86 = {"toolchain": {"instruction-set": "x86-64-v3"}}


@pytest.mark.parametrize(
    ("built", "tag", "found"),
    [
        (engine("tensorrt:a10"), "a10", Reach.EXACT),
        (engine("tensorrt:sm_86"), "a10", Reach.CAPABILITY),
        (engine("tensorrt:a40"), "a10", None),
        (engine("tensorrt-rtx:sm_89"), "rtx-4090", Reach.CAPABILITY),
        (engine("tensorrt-rtx:sm_89"), "sm_89", Reach.EXACT),
        (engine("tensorrt-rtx:sm_86"), "rtx-4090", None),
        (engine("onnxruntime:cpu"), "cpu", Reach.EXACT),
        (engine("onnxruntime:cpu"), "h100", None),
        # A slice is a product of its own, which runs what was built for the compute capability.
        (engine("tensorrt:h200-1g.18gb"), "h200-1g.18gb", Reach.EXACT),
        (engine("tensorrt:h200-1g.18gb"), "h200", None),
        (engine("tensorrt:h200"), "h200-1g.18gb", None),
        (engine("tensorrt:h200-2g.35gb"), "h200-1g.18gb", None),
        (engine("aotinductor:sm_90", **ANY_X86), "h200-1g.18gb", Reach.CAPABILITY),
        # TensorRT's levels of hardware compatibility.
        (portable("tensorrt:a10"), "a10", Reach.EXACT),
        (portable("tensorrt:a10"), "h100", Reach.PORTABLE),
        (portable("tensorrt:a10"), "t4", None),
        (portable("tensorrt:a10"), "cpu", None),
        (portable("tensorrt:a10"), "jetson-orin", None),
        (portable("tensorrt:a10"), "sm_87", None),
        (portable("tensorrt:a10"), "gh200", None),
        (portable("tensorrt:gb200"), "gh200", Reach.PORTABLE),
        (portable("tensorrt:h100"), "h100-1g.10gb", Reach.PORTABLE),
        (portable("tensorrt:a10", "same_compute_capability"), "a40", Reach.PORTABLE),
        (portable("tensorrt:a10", "same_compute_capability"), "l4", None),
        (portable("tensorrt:a10", "none"), "a40", None),
        (portable("tensorrt-rtx:sm_86"), "sm_89", None),
        # A package from an x86-64 host holds code that an Arm host can't load.
        (engine("aotinductor:sm_90", **ANY_X86), "h100", Reach.CAPABILITY),
        (engine("aotinductor:sm_90", **ANY_X86), "gh200", None),
        (engine("aotinductor:sm_90", **ANY_X86), "gh200-1g.12gb", None),
    ],
    ids=lambda value: value.id if isinstance(value, EngineView) else str(value),
)
def test_an_engine_serves_a_gpu_this_closely(built, tag, found):
    assert reach(built, tag) == found


compatible = {"options": {"version_compatible": True}}
cuda = {"toolchain": {"cuda": "13.0"}}


@pytest.mark.parametrize(
    ("built", "facts", "why"),
    [
        (engine("tensorrt:a10"), [], None),
        (engine("tensorrt:a10"), ["tensorrt=10.13.3.9"], None),
        (engine("tensorrt:a10"), ["tensorrt=10.13.3"], None),
        (
            engine("tensorrt:a10"),
            ["tensorrt=10.13.2"],
            "it needs tensorrt 10.13.3.9, and the machine has 10.13.2",
        ),
        (engine("tensorrt:a10"), ["tensorrt=10.14.1"], "it needs tensorrt 10.13.3.9"),
        (engine("tensorrt:a10"), ["tensorrt-rtx=1.2.0", "torch=2.11.0"], None),
        (engine("tensorrt:a10", **compatible), ["tensorrt=10.14.1"], None),
        (engine("tensorrt:a10", **compatible), ["tensorrt=10.13.2"], "or a later one"),
        (engine("tensorrt:a10", **compatible), ["tensorrt=11.0.0"], None),
        (engine("tensorrt:a10", "8.6.1", **compatible), ["tensorrt=10.0.1"], None),
        (engine("tensorrt:a10", "8.6.1", **compatible), ["tensorrt=11.0.0"], "or a later one"),
        (engine("tensorrt:a10", "11.0.0", **compatible), ["tensorrt=10.14.1"], "or a later one"),
        (engine("tensorrt-rtx:sm_89", "1.2.0.54"), ["tensorrt-rtx=1.2.0"], None),
        (engine("tensorrt-rtx:sm_89", "1.2.0.54"), ["tensorrt-rtx=1.3.0"], "tensorrt-rtx 1.2.0.54"),
        (engine("onnxruntime:cpu", "1.22.0"), ["onnxruntime=1.23.1"], None),
        (
            engine("onnxruntime:cpu", "1.22.0"),
            ["onnxruntime=1.21.9"],
            "onnxruntime 1.22.0 or later",
        ),
        (engine("onnxruntime:cpu", "1.22.1"), ["onnxruntime=1.22.0"], None),
        (engine("aotinductor:sm_90", "2.11.0+cu130"), ["torch=2.11.0"], None),
        (engine("aotinductor:sm_90", "2.11.0"), ["torch=2.12.0"], "it needs torch 2.11.0"),
        (engine("torchscript:h100", "2.11.0"), ["torch=2.12.0+cu130"], None),
        # Native code is for one system; TensorRT-RTX's engines aren't native code.
        (engine("tensorrt:a10"), ["os=windows"], "it was built on Linux"),
        (engine("aotinductor:sm_90"), ["os=windows"], "it was built on Linux"),
        (engine("tensorrt-rtx:sm_89"), ["os=windows"], None),
        (engine("onnxruntime:cpu"), ["os=windows"], None),
        (engine("tensorrt:a10"), ["os=linux"], None),
        # The driver counts where it is known which CUDA an engine needs.
        (engine("aotinductor:sm_90", **cuda), ["driver=580.65.06"], None),
        (
            engine("aotinductor:sm_90", **cuda),
            ["driver=575.57"],
            "CUDA 13 needs driver 580 or later",
        ),
        (engine("aotinductor:sm_90"), ["driver=470.1"], None),
    ],
    ids=lambda value: value.id if isinstance(value, EngineView) else str(value),
)
def test_an_engine_runs_on_a_machine_or_the_reason_is_told(built, facts, why):
    told = misfit(built, Machine.of(facts))
    assert told is None if why is None else why in (told or "")


def test_a_machine_says_what_it_was_told():
    facts = ["os=linux", "driver=580.65.06", "tensorrt=10.13.3"]
    assert Machine.of(facts).facts() == facts
    assert Machine.of(["OS=Linux", " torch = 2.11.0+cu130 "]).facts() == [
        "os=linux",
        "torch=2.11.0+cu130",
    ]
    assert Machine.of([]) == ANY


@pytest.mark.parametrize(
    ("fact", "why"),
    [
        ("colour=red", "nothing that a machine says of itself"),
        ("tensorrt", "isn't a version"),
        ("tensorrt=newest", "isn't a version"),
        ("tensorrt=1" + "0" * 400, "isn't a version"),
        ("os=solaris", "unknown system"),
    ],
)
def test_what_no_machine_says_is_refused(fact, why):
    with pytest.raises(InvalidRequest, match=why):
        Machine.of([fact])


def test_a_machine_has_one_version_of_each():
    with pytest.raises(InvalidRequest, match="torch is given twice"):
        Machine.of(["torch=2.11.0", "torch=2.12.0"])


def test_the_closest_engine_comes_first():
    closest_first = [
        engine("tensorrt:a10"),
        engine("tensorrt:sm_86"),
        portable("tensorrt:a40"),
    ]
    for found in itertools.permutations(closest_first):
        ranked = ranking.rank(found, "a10")
        assert ranked.best.id == "tensorrt:a10"
        assert set(ranked.passed_over.values()) == {
            "it was built for sm_86, and there are engines for a10 itself",
            "it was built for a40, and there are engines for a10 itself",
        }
    ranked = ranking.rank(closest_first[1:], "a10")
    assert ranked.best.id == "tensorrt:sm_86"
    assert ranked.passed_over["tensorrt:a40"].endswith("there are engines closer to a10")


def test_every_tag_has_a_product_or_a_capability_that_it_reaches():
    for tag in (*gpus.PRODUCTS, *gpus.COMPUTE_CAPABILITIES):
        assert reach(engine(f"tensorrt:{tag}"), tag) is Reach.EXACT
        capability = gpus.compute_capability(tag)
        assert reach(engine(f"tensorrt-rtx:{capability}"), tag) in (
            Reach.EXACT,
            Reach.CAPABILITY,
        )
