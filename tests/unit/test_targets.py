import pytest

from farm.errors import InvalidRequest, TargetUnsupported
from farm.planning import policy, targets
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target

BOTH = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)


def choose(asked, online=()):
    return targets.choose(asked, runtimes=BOTH, online_queues=dict.fromkeys(online, 1))


def test_a_tag_takes_the_first_runtime_that_a_worker_online_can_build():
    assert str(choose("sm_89", ["tensorrt-rtx.cpu"]).target) == "tensorrt-rtx:sm_89"
    online = ["tensorrt-rtx.cpu", "tensorrt.sm_89"]
    assert str(choose("sm_89", online).target) == "tensorrt:sm_89"


def test_a_tag_that_nobody_can_build_now_waits_for_the_first_runtime_that_could():
    choice = choose("sm_90")
    assert str(choice.target) == "tensorrt:sm_90"
    assert "waits" in choice.why


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
        ("onnxruntime:cpu", Precision.BF16, "fp32 or int8"),
        ("onnxruntime:cpu", Precision.FP8, "int8"),
        ("tensorrt-rtx:sm_86", Precision.FP8, "needs sm_89"),
        ("tensorrt:t4", Precision.FP8, "needs sm_89"),
        ("onnxruntime:h200", Precision.INT8, "use tensorrt:h200"),
        ("torchscript:cpu", Precision.INT8, "use onnxruntime:cpu"),
        ("aotinductor:cpu", Precision.FP16, "use onnxruntime:cpu"),
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
        ("tensorrt:h200", None),
    ],
)
def test_plugins_are_for_classic_tensorrt(target, words):
    runtime, gpu = target.split(":")
    options = BuilderOptions(plugins="sha256:" + "a" * 64)
    refused = policy.option_refusal(Target(runtime=runtime, gpu=gpu), options)
    assert refused is None if words is None else words in refused


def test_aotinductor_takes_the_option_tf32_alone():
    target = Target(runtime=Runtime.AOTINDUCTOR, gpu="sm_90")
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
