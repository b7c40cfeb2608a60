"""Engines that can't be built: told all at once, or left out with the reason; precisions by target."""

from __future__ import annotations

import pytest

from farm.errors import CalibrationMissing, InvalidRequest, SourceRefused, TargetUnsupported
from farm.registry import bench
from tests.ledger import DATA

EVERY = {"precisions": ["fp16", "bf16", "fp8"], "calibration": {"digest": DATA}}


def pairs(view):
    return {(one.asked, one.precision.value) for one in view.engines}


def left_out(view):
    return {(one.target, each.value): one.why for one in view.left_out for each in one.precisions}


def test_each_target_is_built_in_its_own_precisions_and_the_others_in_the_requests(ledger):
    build = ledger.submit(
        targets=["t4:fp16", "sm_89:fp16,int8", "cpu"],
        precisions=["fp32"],
        calibration={"digest": DATA},
    )
    assert pairs(ledger.view(build)) == {
        ("t4", "fp16"),
        ("sm_89", "fp16"),
        ("sm_89", "int8"),
        ("cpu", "fp32"),
    }


def test_a_retry_keeps_each_targets_own_precisions(ledger):
    build = ledger.submit(targets=["cpu:fp32", "sm_89:fp16"], precisions=[])
    wanted = pairs(ledger.view(build))
    assert wanted == {("cpu", "fp32"), ("sm_89", "fp16")}
    ledger.cancel(build)
    ledger.retry(build)
    assert pairs(ledger.view(build)) == wanted


def test_targets_that_all_name_precisions_need_none_of_the_request(ledger):
    assert pairs(ledger.view(ledger.submit(targets=["sm_89:bf16"], precisions=[]))) == {
        ("sm_89", "bf16")
    }
    with pytest.raises(ValueError, match="no precisions for cpu"):
        ledger.submit(targets=["sm_89:bf16", "cpu"], precisions=[])


def test_all_that_cannot_be_built_is_told_in_one_error(ledger):
    with pytest.raises(TargetUnsupported) as caught:
        ledger.submit(targets=["t4", "sm_86", "cpu", "torchscript:cpu"], **EVERY)
    said = caught.value.detail.splitlines()
    assert said[0] == "these can't be built:"
    assert [line.partition(": ")[0].strip() for line in said[1:]] == [
        "bf16 for t4",
        "fp8 for t4",
        "fp8 for sm_86",
        "bf16 for cpu",
        "fp8 for cpu",
        "torchscript:cpu",
    ]
    assert "skip_unsupported (--skip-unsupported) leaves out" in caught.value.hint


def test_a_runtime_that_no_such_gpu_has_is_told_with_the_rest(ledger):
    with pytest.raises(TargetUnsupported) as caught:
        ledger.submit(targets=["tensorrt-rtx:h100", "t4"], precisions=["bf16"])
    assert "TensorRT-RTX can't build for sm_90" in caught.value.detail
    assert "bf16 for t4: sm_75 has no bf16" in caught.value.detail


def test_one_refusal_keeps_its_class_and_hint_and_tells_of_skipping(ledger):
    with pytest.raises(SourceRefused, match="torchscript:cpu: TorchScript needs") as caught:
        ledger.submit(targets=["torchscript:cpu", "cpu"], precisions=["fp32"])
    assert caught.value.hint.startswith("use onnxruntime:cpu")
    assert "--skip-unsupported" in caught.value.hint


def test_what_cannot_be_built_is_left_out_if_that_is_asked_for(ledger):
    build = ledger.submit(
        targets=["t4", "tensorrt-rtx:h100", "sm_89", "torchscript:cpu"],
        skip_unsupported=True,
        **EVERY,
    )
    view = ledger.view(build)
    assert pairs(view) == {
        ("t4", "fp16"),
        ("sm_89", "fp16"),
        ("sm_89", "bf16"),
        ("sm_89", "fp8"),
    }
    gone = left_out(view)
    assert gone["tensorrt-rtx:sm_75", "bf16"].startswith("sm_75 has no bf16")
    assert {target for target, _ in gone} == {
        "tensorrt-rtx:sm_75",
        "tensorrt-rtx:h100",
        "torchscript:cpu",
    }
    ledger.cancel(build)
    ledger.retry(build)
    assert pairs(ledger.view(build)) == pairs(view)
    assert left_out(ledger.view(build)) == gone


def test_a_build_with_nothing_left_is_refused_with_every_reason(ledger):
    with pytest.raises(TargetUnsupported, match="bf16 for t4") as caught:
        ledger.submit(targets=["t4", "cpu"], precisions=["bf16"], skip_unsupported=True)
    assert "bf16 for cpu" in caught.value.detail


def test_forgotten_calibration_data_are_not_skipped(ledger):
    with pytest.raises(CalibrationMissing, match=r"^int8 needs calibration data$"):
        ledger.submit(targets=["sm_89", "cpu"], precisions=["int8", "fp16"], skip_unsupported=True)


def test_a_gpu_that_there_is_not_is_no_unsupported_one(ledger):
    with pytest.raises(InvalidRequest, match="unknown GPU tag 'sm_8'"):
        ledger.submit(targets=["sm_8", "sm_89"], skip_unsupported=True)


def test_what_a_build_skips_is_not_what_a_bench_leaves_out(ledger):
    ledger.submit(targets=["t4"], skip_unsupported=True, **EVERY)
    with ledger.db.read() as session:
        assert bench.bench(session, "digits", "t4").left_out == []


def test_a_bench_takes_a_targets_own_precisions(ledger):
    build = ledger.submit(targets=["t4:fp16,bf16"], precisions=[], bench={})
    view = ledger.view(build)
    assert pairs(view) == {("t4", "fp16")}
    assert {precision for _, precision in left_out(view)} == {"fp16", "bf16"}
