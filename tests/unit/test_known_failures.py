"""The table of failures that libraries are known for: each entry's words, and what its hints may say."""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.errors import (
    AccuracyDropped,
    CastFailed,
    ChildOutOfMemory,
    EngineBuildFailed,
    InvalidData,
    InvalidModel,
    PrecisionMissed,
    StageFailed,
    StageFault,
    StorageFull,
    StorageUnavailable,
)
from farm.planning import policy
from farm.specs import gpus
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.source import SourceFormat
from farm.stages import JobKind
from workers.failures.asked import Asked
from workers.failures.explained import explained
from workers.failures.known import TABLE, Said, known

#: As they were said by tensorrt-rtx 1.7.1, ONNX Runtime 1.31.1, torch 2.13 and ModelOpt 0.47 or, where
#: marked with ``#``, by TensorRT and CUDA on a GPU, as public reports quote them.
SAID = {
    "alloc": "Non-zero status code returned while running Expand node. Name:'' Status Message: "
    "Failed to allocate memory for requested buffer of size 70368744177664",
    "alloc-torch": "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 4398046511104 bytes.",
    "alloc-cuda": "CUDA out of memory. Tried to allocate 20.00 GiB.",  #
    "gemm": "Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot compile "
    "operation 'node_of_y' for Turing (SM75): FP32 GEMM is not supported.",
    "bf16": "[pass.cpp:1500: run_passes] Cannot compile for target(s) sm75, because the model contains "
    "HW-specific datatypes: b16.",
    "fp8": "[pass.cpp:1500: run_passes] Cannot compile for target(s) sm75, because the model contains "
    "HW-specific datatypes: fp8_e4m3.",
    "nonzero": "Assertion failed: creator && getPluginCreatorVersion(creator) == CreatorVersion::kV3ONE: "
    "NonZero plugin creator version 1 was not found in plugin registry. (operator NonZero, node '')",
    "in-flight": "Error Code 2: Internal Error (Assertion !isInFlight(p.second.symbolicRep) failed.  In "
    "checkCalculationStatusSanity at /_src/optimizer/shapeof/graphShapeAnalyzer.cpp:2155)",
    "roialign": "Assertion failed: plugin != nullptr: ROIAlign plugin was not found in the plugin "
    "registry! (operator RoiAlign, node '')",
    "plugin": 'creator && "Plugin not found, are the plugin name, version, and namespace correct?" '
    "(operator DFT, node '')",
    "operator": "false (operator Det, node '')",
    "uint8": "node_of_a: first input has type UInt8 but must have type Float, Half, BFloat16, or Bool.",
    "squeeze": "node_of_s: ISqueezeLayer without an axes input requires dimension 0 to not be a wildcard",
    "int32": "Assertion failed: status.is_success(): Found unsupported input type of INT32 (operator "
    "MatMul, node '')",
    "type": 'Assertion failed: convertDtype(onnxDtype.elem_type(), &trtDtype) && "Failed to convert ONNX '
    'date type to TensorRT data type."',
    "axes": 'convertOnnxDims(…) && "Failed to convert ONNX dimensions to TensorRT dimensions."',
    "zero-point": "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported. "
    "Please set kENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA",
    "mixed": "node_of_y: ElementWiseOperation SUM must have same input types. But they are of types Half "
    "and Float. (operator Add, node '')",
    "mixed-conv": "Conv_1: IConvolutionLayer must have the same input types. But they are of types Half "
    "and Float. (operator Conv, node '')",  #
    "shape-input": "Optimization profile 0 is missing values for shape input tensor k.",
    "deconv": "MyelinCheckException: cudnn_impl.cpp:294: CHECK(false) failed. Strided & Dilated Deconv "
    "are currently not supported",
    "unregistered": "Assertion failed: (ctx->tensors().count(inputName)): Node input was not registered. "
    "(operator Identity, node '')",
    "channels": "Kernel weight dimension failed to broadcast to input. (operator Conv, node '')",
    "runners": "Assertion !layerImpls.empty() failed. node_of_y_0 has no runners that implement it",
    "tactics": "Error Code 10: Internal Error (Could not find any implementation for node Conv_1.)",  #
    "input-output": "Dynamic input tensor __x is missing dimensions in profile 0.",
    "dropout": "!trainingMode[0]: TensorRT does not support the Dropout operator in training mode.",
    "fill": "Invalid Node - R IFillLayer::setToType: Error Code 3: API Usage Error (Parameter check failed",
    "profile": "Dynamic input tensor x is missing dimensions in profile 0.",
    "opset": "ONNX Runtime only *guarantees* support for models stamped with official released onnx opset "
    "versions. Opset 28 is under development and support for this is limited.",
    "kernel": "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(11) "
    "node with name ''",
    "bad-type": "Type Error: Type 'tensor(bfloat16)' of input parameter (x) of operator (Conv) in node () "
    "is invalid.",
    "bound": "Type Error: Type parameter (T) of Optype (Add) bound to different types (tensor(float16) and "
    "tensor(float) in node ().",
    "unknown-op": "Error No Op registered for Frobnicate with domain_version of 20",
    "custom-op": "Fatal error: my.domain:Magic(-1) is not a registered function/op",
    "external": "External data path validation failed for initializer: w",
    "contradiction": "Node () Op (MatMul) [ShapeInferenceError] Incompatible dimensions",
    "complex": "Exception during loading: MLDataType for: tensor(complex64) is not currently registered or "
    "supported",
    "index": "Non-zero status code returned while running Gather node. Status Message: indices element out "
    "of data bounds, idx=99 must be within the inclusive range [-10,9]",
    "k": "running TopK node. Status Message: k argument [99] should not be greater than specified axis dim",
    "reshape": "running Reshape node. Status Message: input_shape_size == requested_shape_size was false.",
    "gemm-shape": "running Gemm node. Status Message: GEMM: Dimension mismatch, W: {48,4} K: 75 N:4",
    "division": "b_data[i] != T{0} was false. Integer division by zero",
    "cuda-libraries": "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt",  #
    "onnx-function": "No ONNX function found for <OpOverload(op='aten._linalg_svd', overload='default')>. "
    "Failure message: No decompositions registered for the real-valued input",
    "schema": "Serialized schema version SchemaVersion(major=99, minor=1) does not match our current "
    "schema version (8, 20).",
    "reader": "PytorchStreamReader failed locating file data/weights/weight_0: file not found.",
    "node": "Failed deserializing node Node(target='torch.ops.aten.newop.default', inputs=[]",
    "output": "Unable to deserialize output node Argument(as_string=hello)",
    "control": "Could not guard on data-dependent expression Eq(u0, 1) (unhinted: Eq(u0, 1)).",
    "strings": "could not convert string to float: 'cat'",
    "sequence": "Function: dtype is unsupported for objects of type: list",
    "metadata": "Cannot restore public graph output metadata because names changed: ['y', 'x'] -> ['y']",
    "unsupported": "INT8 Gelu is not supported with these strides",
}
TARGETS = [
    None,
    *(
        Target.parse(text)
        for text in (
            "tensorrt-rtx:sm_75",
            "tensorrt-rtx:sm_89",
            "tensorrt:h200",
            "tensorrt:t4",
            "tensorrt:h200-1g.18gb",
            "onnxruntime:cpu",
            "onnxruntime:sm_86",
            "torchscript:cpu",
        )
    ),
]


def questions():
    """Every stage, precision and target that the farm takes."""
    for stage, precision, target in itertools.product(JobKind, [None, *Precision], TARGETS):
        if target is not None and policy.refusal(target, precision):
            continue
        for source in (None, SourceFormat.ONNX, SourceFormat.PT2):
            yield Asked(stage=stage, precision=precision, target=target, source=source)


def answer_to(text: str) -> Callable[[Asked], str]:
    """The table's answer to these words, by what was asked for."""
    found = known(text, Asked(stage=JobKind.EXPORT))
    assert found is not None
    match = found[0].pattern.search(text)
    assert match is not None
    return lambda asked: found[0].answer(asked, match)


def assert_fits(hint: str, asked: Asked) -> None:
    assert hint.strip(), asked
    assert not re.search(r"\bretry\b|run it again|see the .*log", hint), hint
    if asked.source is SourceFormat.ONNX:
        assert "export it to ONNX" not in hint
    for way in re.split(r", or |; |: ", hint):
        if way.startswith("choose ") and not way.startswith("choose a GPU"):
            chosen = [
                Precision(word) for word in re.findall(r"\b(?:[bf]p?f?16|fp32|fp8|int8)\b", way)
            ]
            assert chosen, hint
            for precision in chosen:
                assert precision is not asked.precision, f"{asked}: {hint}"
                assert not asked.target or not policy.refusal(asked.target, precision), hint
        if way.startswith("build it for "):
            for runtime, gpu in re.findall(r"\b([a-z-]+):([\w.-]+)", way):
                target = Target(runtime=runtime, gpu=gpu)
                assert target != asked.target
                if runtime != "torchscript":
                    assert policy.refusal(target, asked.precision) is None, hint


@pytest.mark.parametrize("name", SAID)
def test_no_hint_advises_what_was_asked_for_or_what_the_target_has_not(name):
    answer = answer_to(SAID[name])
    for asked in questions():
        assert_fits(answer(asked), asked)


def test_every_entry_is_known_by_words_that_were_said():
    asked = Asked(stage=JobKind.BUILD, precision=Precision.FP16, target=TARGETS[1])
    found = [known(text, asked) for text in SAID.values()]
    told = {id(one[0]) for one in found if one}
    assert [entry.pattern.pattern for entry in TABLE if id(entry) not in told] == []


@pytest.mark.parametrize(
    "kind", [PrecisionMissed, AccuracyDropped, EngineBuildFailed, CastFailed, ChildOutOfMemory]
)
def test_a_failure_that_nobody_knows_has_a_hint_that_fits_too(kind):
    for asked in questions():
        error = explained(kind("what happened"), asked)
        assert isinstance(error, kind)
        assert_fits(error.hint, asked)


# What single causes ask for


def ada(precision: str, stage: JobKind = JobKind.BUILD) -> Asked:
    return Asked(stage=stage, precision=Precision(precision), target=TARGETS[2])


def hint(name: str, asked: Asked) -> str:
    found = known(SAID[name], asked)
    assert found is not None
    return found[1]


def test_fp32_products_on_turing_are_answered_by_what_was_asked_for():
    turing = Target.parse("tensorrt-rtx:sm_75")
    asked = Asked(stage=JobKind.BUILD, precision=Precision.FP16, target=turing)
    assert "fp16" not in hint("gemm", asked)
    assert "sm_80 or later" in hint("gemm", asked)
    assert "onnxruntime:sm_75" in hint("gemm", asked)


def test_an_operator_that_tensorrt_lacks_is_named_and_a_plugin_only_where_there_are_plugins():
    classic = Asked(
        stage=JobKind.BUILD, precision=Precision.FP16, target=Target.parse("tensorrt:l4")
    )
    assert hint("plugin", ada("fp16")).startswith("rewrite DFT with operators TensorRT supports")
    assert "plugin library" not in hint("plugin", ada("fp16"))
    assert "plugin library" in hint("plugin", classic)
    assert "onnxruntime:cpu" in hint("operator", ada("int8"))


def test_types_that_do_not_fit_are_the_models_affair_only_before_the_farm_has_typed_it():
    assert "in the model" in hint("bound", Asked(stage=JobKind.EXPORT))
    typed = hint("mixed", ada("fp16"))
    assert "in the model" not in typed
    assert "choose fp32" in typed


def test_an_index_that_is_too_large_asks_for_data_or_about_them():
    without = Asked(stage=JobKind.CAST, precision=Precision.FP16)
    given = Asked(stage=JobKind.MEASURE, precision=Precision.FP16, data=frozenset({"evaluation"}))
    assert "pass calibration" in hint("index", without)
    assert "pass" not in hint("index", given)


def test_a_half_typed_source_is_asked_for_in_fp32_and_not_for_another_opset():
    asked = Asked(stage=JobKind.EXPORT, source=SourceFormat.ONNX)
    assert "model.float()" in hint("kernel", asked)
    assert "opset" not in hint("kernel", asked)


def test_the_torch_of_the_worker_is_named_to_who_saved_with_another():
    import torch

    assert torch.__version__ in hint("schema", Asked(stage=JobKind.EXPORT))


def test_memory_is_asked_for_where_it_was_short():
    calibrating = Asked(stage=JobKind.CALIBRATE, precision=Precision.INT8)
    assert "batch_size" in hint("alloc", calibrating)
    assert "GPU with more" in hint("alloc-cuda", ada("fp16", JobKind.MEASURE))


# What becomes of what is raised


def raised(err: Exception) -> Exception:
    try:
        raise err
    except type(err) as caught:
        return caught


def test_what_nobody_foresaw_is_the_farms_fault_and_says_where_it_was_asked_for():
    error = explained(raised(KeyError("scale")), ada("int8"))
    assert type(error) is StageFault
    assert error.code == "stage-fault"
    assert error.detail.startswith("build in int8 for tensorrt-rtx:sm_89: KeyError: 'scale' (")
    assert "report it" in error.hint
    assert not error.retryable


def test_a_fault_names_the_line_of_the_farm_that_it_came_through():
    from workers.graphs import check

    with pytest.raises(AttributeError) as caught:
        check.check_model(None)  # type: ignore[arg-type]
    error = explained(caught.value, Asked(stage=JobKind.EXPORT))
    assert re.search(r"\(workers/graphs/shapes\.py:\d+\)$", error.detail)


def test_only_the_first_line_of_a_reason_is_told():
    error = explained(raised(ValueError("first\nsecond")), Asked(stage=JobKind.CAST))
    assert "first" in error.detail
    assert "second" not in error.detail


@pytest.mark.parametrize(
    ("err", "kind"),
    [
        (MemoryError(), ChildOutOfMemory),
        (RuntimeError(SAID["alloc-torch"]), ChildOutOfMemory),
        (OSError(errno.ENOSPC, "No space left on device"), StorageFull),
        (ModuleNotFoundError("No module named 'modelopt'"), StageFailed),
        (RuntimeError(SAID["output"]), InvalidModel),
        (ValueError(SAID["strings"]), InvalidModel),
    ],
)
def test_what_is_known_gets_its_class_although_no_stage_foresaw_it(err, kind):
    error = explained(raised(err), ada("fp16"))
    assert type(error) is kind
    assert error.hint


def test_a_stages_own_hint_stays_where_no_library_says_more():
    error = InvalidData("the data hold 3 values that are NaN", hint="remove those samples")
    assert explained(error, ada("int8")).hint == "remove those samples"


@pytest.mark.parametrize(
    ("asked_hint", "precision", "target"),
    [
        ("this GPU has no kernel for it: choose fp16", "fp16", "tensorrt:h200"),
        ("choose bf16 or fp32, or for int8 a GPU that has bf16", "fp32", "onnxruntime:sm_86"),
        ("choose bf16 or fp32", "fp16", "tensorrt-rtx:sm_75"),
        ("choose fp8", "int8", "onnxruntime:cpu"),
    ],
)
def test_a_stages_hint_that_leads_in_a_circle_gives_way(asked_hint, precision, target):
    asked = Asked(stage=JobKind.BUILD, precision=Precision(precision), target=Target.parse(target))
    for kind in (EngineBuildFailed, PrecisionMissed, AccuracyDropped):
        told = explained(kind("what happened", hint=asked_hint), asked)
        assert told.hint != asked_hint
        assert_fits(told.hint, asked)


@pytest.mark.parametrize(
    "own",
    [
        "choose bf16 or fp32, or for int8 a GPU that has bf16",
        "choose a GPU that has fp16",
        "submit the fp32 model, or build this one as fp32",
        "choose int8 with calibration data",
    ],
)
def test_a_stages_hint_that_fits_stays(own):
    error = EngineBuildFailed("what happened", hint=own)
    assert explained(error, ada("fp16")).hint == own


def test_a_librarys_words_outrank_a_stages_general_hint():
    error = CastFailed("ModelOpt can't cast this graph", hint="choose fp32, or int8")
    error.__cause__ = RuntimeError(f"AutoCast failed\n{SAID['index']}")
    told = explained(error, Asked(stage=JobKind.CAST, precision=Precision.FP16))
    assert "an input of this model is an index" in told.hint
    assert told.detail == "ModelOpt can't cast this graph"


def test_a_service_that_is_away_stays_what_it_is():
    error = StorageUnavailable("gone")
    assert explained(error, ada("fp16")) is error


def test_words_are_found_in_colour_and_across_lines():
    error = EngineBuildFailed("no engine")
    error.__cause__ = Said("\x1b[1;31mFP32 GEMM\nis not supported\x1b[m")
    turing = Asked(
        stage=JobKind.BUILD, precision=Precision.FP16, target=Target.parse("tensorrt-rtx:sm_75")
    )
    assert "sm_80" in explained(error, turing).hint


def test_every_gpu_has_an_answer():
    answers = [answer_to(text) for text in SAID.values()]
    for gpu in (*gpus.COMPUTE_CAPABILITIES, *gpus.PRODUCTS):
        for runtime in (Runtime.TENSORRT, Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME):
            target = Target(runtime=runtime, gpu=gpu)
            if policy.refusal(target, Precision.FP16) is None:
                asked = Asked(stage=JobKind.BUILD, precision=Precision.FP16, target=target)
                for answer in answers:
                    assert_fits(answer(asked), asked)


def test_what_the_documents_say_of_a_failure_is_what_the_table_knows():
    page = (Path(__file__).parents[2] / "docs/how-to/troubleshoot.md").read_text()
    rows = re.findall(
        r"^\| (`.*?) \| .* \| .* \|$", page.partition("### Runtime and exporter messages")[2], re.M
    )
    phrases = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    assert len(phrases) > 15
    recorded = [*SAID.values(), "it has no such operator (operator Det, node '')"]
    for phrase in phrases:
        parts = [part.strip().lower() for part in phrase.split("…")]
        assert any(all(part in text.lower() for part in parts) for text in recorded), phrase
