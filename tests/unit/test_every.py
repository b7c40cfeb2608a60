"""What a bench builds: every runtime and precision of its targets that can be, and why not the others."""

from __future__ import annotations

import pytest

from farm.errors import TargetUnsupported, UnknownGpu
from farm.formats.sources import Look
from farm.planning.every import Every, every
from farm.planning.plan import plan
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateSet

DATA = {"digest": f"sha256:{'b' * 64}"}
HOPPER = ("tensorrt.h100", "aotinductor.sm_90", "onnxruntime.h100")
CPU = ("cpu", "onnxruntime.cpu", "torchscript.cpu", "tensorrt-rtx.cpu")


def request(**changes):
    document = {
        "model": "digits",
        "source": {"digest": f"sha256:{'a' * 64}", "format": "pt2"},
        "targets": ["h100"],
        "bench": {},
    }
    return BuildRequest.model_validate(document | changes)


def benched(online=HOPPER, look=Look(), **changes) -> Every:
    return every(request(**changes), dict.fromkeys(online, 1), look)


def built(found: Every) -> dict[str, list[str]]:
    return {str(one.target): [str(each) for each in one.precisions] for one in found.choices}


def reasons(found: Every) -> dict[tuple[str, str], str]:
    return {(one.target, each): one.why for one in found.left_out for each in one.precisions}


def test_every_runtime_and_precision_is_built_or_left_out_with_its_reason():
    found = benched(calibration=DATA)
    made = built(found)
    assert {"fp32", "fp16", "bf16"} <= set(made["aotinductor:sm_90"])
    assert {"fp32", "fp16", "bf16", "int8", "fp8"} <= set(made["tensorrt:h100"])
    assert made["onnxruntime:h100"] == ["fp32", "fp16", "bf16"]
    why = reasons(found)
    assert why["onnxruntime:h100", "int8"] == "ONNX Runtime's CUDA provider has no int8 kernels"
    assert "can't build for sm_90" in why["tensorrt-rtx:sm_90", "fp16"]
    assert "for cpu only" in why["torchscript:h100", "fp32"]
    pairs = {(target, each) for target, of in made.items() for each in of}
    assert not pairs & why.keys()
    assert len(pairs | why.keys()) == 5 * 6


def test_what_needs_calibration_data_is_left_out_without_them_and_not_refused():
    found = benched()
    assert "int8" not in built(found)["tensorrt:h100"]
    assert reasons(found)["tensorrt:h100", "int8"] == "int8 needs calibration data"
    assert "int8" in built(benched(look=Look(may_be_quantized=True)))["tensorrt:h100"]


def test_a_source_that_no_program_can_be_made_of_leaves_out_what_needs_one():
    onnx = {"digest": f"sha256:{'a' * 64}", "format": "onnx"}
    found = benched(source=onnx)
    assert "aotinductor:sm_90" not in built(found)
    assert "needs a PyTorch program" in reasons(found)["aotinductor:sm_90", "fp16"]


def test_an_option_of_one_runtime_leaves_out_the_others():
    found = benched(options={"builder_optimization_level": 5})
    assert set(built(found)) == {"tensorrt:h100"}
    assert "has no builder option but tf32" in reasons(found)["onnxruntime:h100", "fp16"]


def test_what_no_online_worker_can_build_is_left_out_unless_the_bench_waits_for_one():
    found = benched(online=("onnxruntime.h100",))
    assert set(built(found)) == {"onnxruntime:h100"}
    assert reasons(found)["tensorrt:h100", "fp16"] == (
        "no online worker can build it: it takes a worker with a GPU h100 and tensorrt installed"
    )
    waiting = benched(online=(), bench={"wait_for_workers": True})
    assert set(built(waiting)) == {"tensorrt:h100", "onnxruntime:h100", "aotinductor:sm_90"}


def test_a_target_with_a_runtime_and_named_precisions_stand_for_themselves():
    found = benched(targets=["onnxruntime:h100"], precisions=["fp16", "int8"])
    assert built(found) == {"onnxruntime:h100": ["fp16"]}
    assert reasons(found).keys() == {("onnxruntime:h100", "int8")}


def test_two_tags_of_one_target_are_one_target():
    found = benched(targets=["h100", "H200"], bench={"wait_for_workers": True})
    names = [str(one.target) for one in found.choices]
    assert names.count("aotinductor:sm_90") == 1
    assert {"tensorrt:h100", "tensorrt:h200"} <= set(names)


def test_a_cpu_has_onnxruntime_and_torchscript():
    made = built(benched(CPU, targets=["cpu"], calibration=DATA))
    assert {"fp32", "int8", "int8-dynamic"} <= set(made["onnxruntime:cpu"])
    assert made["torchscript:cpu"] == ["fp32"]
    assert "aotinductor:cpu" not in made


def test_a_bench_with_nothing_left_is_an_error_that_tells_every_reason():
    with pytest.raises(TargetUnsupported) as caught:
        benched(online=())
    assert "tensorrt:h100: no online worker" in caught.value.detail
    assert "tensorrt-rtx:sm_90: TensorRT-RTX can't build" in caught.value.detail
    assert "--all" in caught.value.hint


def test_an_unknown_gpu_is_an_error():
    with pytest.raises(UnknownGpu):
        benched(targets=["h101"])


def test_a_bench_plans_just_the_engines_that_it_tells():
    found = benched(calibration=DATA)
    online = dict.fromkeys(HOPPER, 1)
    made = plan(request(calibration=DATA), found.choices, lambda _: {}, online, GateSet())
    assert {(str(one.choice.target), one.precision) for one in made.engines} == {
        (target, each) for target, of in built(found).items() for each in of
    }


def test_an_engine_has_the_same_key_whether_a_bench_or_a_build_asks_for_it():
    found = benched(calibration=DATA)
    online = dict.fromkeys(HOPPER, 1)
    every_engine = plan(request(calibration=DATA), found.choices, lambda _: {}, online, GateSet())
    [tensorrt] = [one for one in found.choices if str(one.target) == "tensorrt:h100"]
    alone = request(calibration=DATA, bench=None, precisions=list(tensorrt.precisions))
    planned = plan(alone, [tensorrt], lambda _: {}, online, GateSet())
    assert planned.jobs.keys() <= every_engine.jobs.keys()
