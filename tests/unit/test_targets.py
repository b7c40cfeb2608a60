import re

import pytest

from farm.errors import InvalidRequest, TargetUnsupported
from farm.planning import policy, targets
from farm.planning.targets import Measured
from farm.specs import gpus, target_text
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target

BOTH = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)


ALL = (*BOTH, Runtime.AOTINDUCTOR, Runtime.ONNXRUNTIME)


def choose(asked, online=(), runtimes=BOTH, **more):
    return targets.choose(asked, runtimes=runtimes, online_queues=dict.fromkeys(online, 1), **more)


def test_a_tag_takes_the_first_runtime_that_a_worker_online_can_build():
    assert str(choose("sm_89", ["tensorrt-rtx.cpu"]).target) == "tensorrt-rtx:sm_89"
    online = ["tensorrt-rtx.cpu", "tensorrt.sm_89"]
    assert str(choose("sm_89", online).target) == "tensorrt:sm_89"


def test_a_tag_that_nobody_can_build_now_waits_for_the_first_runtime_that_could():
    choice = choose("sm_90")
    assert str(choice.target) == "tensorrt:sm_90"
    assert "waits" in choice.why


def test_what_was_passed_over_is_told_with_its_reason():
    choice = choose("h100", ["aotinductor.sm_90", "onnxruntime.h100"], ALL)
    assert str(choice.target) == "aotinductor:sm_90"
    assert "first of tensorrt, tensorrt-rtx, aotinductor, onnxruntime that an online" in choice.why
    assert "tensorrt (no online worker can build it)" in choice.why
    assert "tensorrt-rtx (TensorRT-RTX can't build for sm_90" in choice.why
    assert "onnxruntime (" not in choice.why


def test_a_runtime_that_the_source_or_a_precision_rules_out_is_passed_over():
    def refusal(target):
        return "needs a PyTorch program; use another" if "aot" in target.runtime else None

    online = ["aotinductor.sm_90", "onnxruntime.h100"]
    choice = choose("h100", online, ALL, refusal=refusal)
    assert str(choice.target) == "onnxruntime:h100"
    assert "aotinductor (needs a PyTorch program)" in choice.why


def test_if_every_runtime_is_ruled_out_one_is_chosen_for_the_plan_to_say_why():
    choice = choose("h100", ["onnxruntime.h100"], ALL, refusal=lambda _: "needs data")
    assert str(choice.target) == "onnxruntime:h100"


@pytest.mark.parametrize(
    ("online", "target", "words"),
    [
        (["tensorrt.h100", "aotinductor.sm_90"], "aotinductor:sm_90", "p50 1 ms against 2 ms"),
        (["tensorrt.h100"], "tensorrt:h100", "next best; passed over: aotinductor (no online"),
        (["onnxruntime.h100"], "onnxruntime:h100", "passed over: tensorrt (no online"),
        ([], "tensorrt:h100", "waits for one with tensorrt:h100"),
    ],
)
def test_the_fastest_measured_runtime_that_a_worker_online_can_build_comes_first(
    online, target, words
):
    measured = [
        Measured(runtime=Runtime.AOTINDUCTOR, why="p50 1 ms against 2 ms"),
        Measured(runtime=Runtime.TENSORRT, why="next best"),
    ]
    choice = choose("h100", online, ALL, measured=measured)
    assert str(choice.target) == target
    assert words in choice.why


def test_a_named_runtime_and_cpu_are_taken_whatever_was_measured():
    measured = [Measured(runtime=Runtime.TORCHSCRIPT, why="fast")]
    assert str(choose("cpu", ["torchscript.cpu"], measured=measured).target) == "onnxruntime:cpu"
    assert choose("tensorrt:h100", measured=measured).why == "named in the request"


def test_a_product_is_kept_for_tensorrt_and_generalised_for_tensorrt_rtx():
    assert str(choose("tensorrt:rtx-4090").target) == "tensorrt:rtx-4090"
    assert str(choose("tensorrt-rtx:rtx-4090").target) == "tensorrt-rtx:sm_89"


def test_cpu_means_onnxruntime():
    assert str(choose("cpu").target) == "onnxruntime:cpu"


def test_a_named_runtime_that_never_serves_the_tag_is_refused_with_one_that_does():
    with pytest.raises(TargetUnsupported, match="use tensorrt:sm_90"):
        choose("tensorrt-rtx:sm_90")


def test_an_unknown_runtime_names_the_known_ones():
    with pytest.raises(InvalidRequest) as caught:
        choose("openvino:cpu")
    assert "tensorrt-rtx" in caught.value.hint


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        ("tensorrt-rtx:sm_75", Precision.FP32, "fp16 or int8"),
        ("tensorrt:t4", Precision.BF16, "use fp16"),
        ("onnxruntime:t4", Precision.BF16, "use fp16"),
        ("onnxruntime:cpu", Precision.BF16, "fp32 or int8"),
        ("onnxruntime:cpu", Precision.FP8, "int8"),
        ("tensorrt-rtx:sm_86", Precision.FP8, "needs sm_89"),
        ("tensorrt:t4", Precision.FP8, "needs sm_89"),
        ("onnxruntime:h200", Precision.INT8, "use tensorrt:h200"),
        ("torchscript:cpu", Precision.INT8, "use onnxruntime:cpu"),
        ("aotinductor:cpu", Precision.FP16, "in fp32 for cpu; for fp16 use onnxruntime:cpu"),
        ("aotinductor:cpu", Precision.FP8, "in fp32 for cpu; CPUs have no fp8; use int8"),
        ("aotinductor:t4", Precision.BF16, "use fp16"),
        ("aotinductor:a100", Precision.FP8, "needs sm_89"),
        ("torchscript:sm_89", Precision.FP32, "use tensorrt:sm_89"),
        ("tensorrt:h200", Precision.INT8_DYNAMIC, "use int8, with calibration data"),
        ("tensorrt-rtx:sm_89", Precision.INT8_DYNAMIC, "need calibrated ranges"),
    ],
)
def test_a_precision_that_the_architecture_lacks_is_refused_before_a_minute_is_spent(
    target, precision, words
):
    runtime, gpu = target.split(":")
    assert words in policy.refusal(Target(runtime=runtime, gpu=gpu), precision)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("tensorrt-rtx:sm_89", "TensorRT-RTX doesn't support plugins"),
        ("onnxruntime:cpu", "plugins: only TensorRT has builder options"),
        ("aotinductor:h200", "plugins: AOTInductor has no builder option but tf32"),
        ("onnxruntime:h200", "plugins: ONNX Runtime has no builder option but tf32"),
        ("tensorrt:h200", None),
    ],
)
def test_plugins_are_for_classic_tensorrt(target, words):
    runtime, gpu = target.split(":")
    options = BuilderOptions(plugins="sha256:" + "a" * 64)
    refused = policy.option_refusal(Target(runtime=runtime, gpu=gpu), options)
    assert refused is None if words is None else words in refused


@pytest.mark.parametrize("runtime", [Runtime.AOTINDUCTOR, Runtime.ONNXRUNTIME])
def test_other_runtimes_take_the_option_tf32_alone_on_a_gpu(runtime):
    target = Target(runtime=runtime, gpu="sm_90")
    assert policy.option_refusal(target, BuilderOptions(tf32=False)) is None


def test_torchscript_is_built_in_fp32_for_cpus_where_it_is_named():
    assert str(choose("torchscript:cpu").target) == "torchscript:cpu"
    cpu = Target(runtime=Runtime.TORCHSCRIPT, gpu="cpu")
    assert policy.refusal(cpu, Precision.FP32) is None


def test_int8_dynamic_is_for_cpus():
    cpu = Target(runtime=Runtime.ONNXRUNTIME, gpu="cpu")
    assert policy.refusal(cpu, Precision.INT8_DYNAMIC) is None


def test_tensorrt_rtx_builds_on_cpu_workers_and_tensorrt_on_its_gpu():
    assert (
        policy.build_queue(Target(runtime=Runtime.TENSORRT_RTX, gpu="sm_89")) == "tensorrt-rtx.cpu"
    )
    assert policy.build_queue(Target(runtime=Runtime.TENSORRT, gpu="h200")) == "tensorrt.h200"


@pytest.mark.parametrize("asked", ["t4", "A10", "l40s"])
def test_rtx_by_default_for_a_gpu_of_a_data_centre_is_warned_of(asked):
    choice = choose(asked, ["tensorrt-rtx.cpu"])
    assert choice.target.runtime is Runtime.TENSORRT_RTX
    told = targets.warning(asked, choice.target)
    assert "Triton has no backend for TensorRT-RTX" in told
    assert f"tensorrt:{asked.lower()}" in told


@pytest.mark.parametrize(
    ("asked", "online"),
    [
        ("tensorrt-rtx:t4", ["tensorrt-rtx.cpu"]),
        ("rtx-4090", ["tensorrt-rtx.cpu"]),
        ("t4", ["tensorrt.t4"]),
    ],
    ids=["asked for", "a workstation's", "TensorRT"],
)
def test_a_runtime_that_serves_or_was_asked_for_is_not_warned_of(asked, online):
    choice = choose(asked, online)
    assert targets.warning(asked, choice.target) is None


@pytest.mark.parametrize(
    ("asked", "target", "precisions"),
    [
        ("t4", "t4", ()),
        ("t4:fp16", "t4", ("fp16",)),
        ("tensorrt:h100:fp8,int8", "tensorrt:h100", ("fp8", "int8")),
        ("onnxruntime:cpu:INT8-dynamic, fp32", "onnxruntime:cpu", ("int8-dynamic", "fp32")),
        ("tensorrt:h100", "tensorrt:h100", ()),
        ("h100:fp8,fp8", "h100", ("fp8",)),
    ],
)
def test_a_target_may_name_its_own_precisions(asked, target, precisions):
    assert target_text.split(asked) == (target, precisions)
    choice = choose(asked, runtimes=ALL)
    assert (choice.asked, choice.precisions) == (target, precisions)
    assert str(choice.target) == str(choose(target, runtimes=ALL).target)


def test_no_precision_is_a_runtime_or_a_gpu():
    for one in Precision:
        assert one not in set(Runtime)
        assert not gpus.is_known(one)


def test_precisions_between_commas_belong_to_the_target_before_them_if_that_names_any():
    assert target_text.joined("t4:fp16 h100:fp8 int8 cpu a100:fp16 int8".split()) == [
        "t4:fp16",
        "h100:fp8,int8",
        "cpu",
        "a100:fp16,int8",
    ]
    assert target_text.joined(["t4", "int8"]) == ["t4", "int8"]


@pytest.mark.parametrize(
    ("asked", "detail", "hint"),
    [
        ("t4:fp61", "'fp61' after 't4' isn't a precision", "int8-dynamic"),
        ("tensorrt:t4:fp16,fp61", "'fp16,fp61' after 'tensorrt:t4' isn't a precision", "bf16"),
        ("int8", "int8 is a precision, not a GPU", "h100:int8"),
        ("tensorrt:int8", "tensorrt is a runtime, not a GPU", "tensorrt:TAG"),
        ("tensorflow:t4", "unknown runtime 'tensorflow'", "tensorrt-rtx"),
    ],
)
def test_a_target_that_is_none_is_refused_with_what_is_wrong_with_it(asked, detail, hint):
    with pytest.raises(InvalidRequest, match=re.escape(detail)) as caught:
        choose(asked)
    assert hint in caught.value.hint
