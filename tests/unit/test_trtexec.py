"""Command lines of trtexec as people have them, and what they become."""

from __future__ import annotations

import pytest

from farm.cli import trtexec
from farm.errors import InvalidRequest
from farm.schemas.submission import BuildRequest


@pytest.mark.parametrize("flag", ["plugins", "staticPlugins", "dynamicPlugins"])
def test_a_plugin_library_is_to_be_signed_and_added_first(flag):
    found = trtexec.parse(f"trtexec --onnx=m.onnx --{flag}=libfoo.so")
    assert any("farm plugins add libfoo.so --signature FILE" in note for note in found.notes)


def options(flags: str) -> dict:
    return trtexec.parse(f"trtexec --onnx=m.onnx {flags}").options


def test_a_common_command_becomes_a_submission():
    found = trtexec.parse(
        "/usr/src/tensorrt/bin/trtexec --onnx=resnet50.onnx --saveEngine=resnet50.engine --fp16 "
        "--minShapes=image:1x3x224x224 --optShapes=image:8x3x224x224 --maxShapes=image:32x3x224x224 "
        "--memPoolSize=workspace:4096 --builderOptimizationLevel=5 --iterations=100 --useCudaGraph"
    )
    assert found.command() == (
        "farm submit resnet50.onnx --precision fp16 "
        "--profile image=1x3x224x224:8x3x224x224:32x3x224x224 "
        "--option workspace_mib=4096 --option builder_optimization_level=5"
    )
    assert any("farm pull" in note for note in found.notes)
    assert any("--iterations --useCudaGraph" in note for note in found.notes)


@pytest.mark.parametrize(
    ("flags", "precisions", "note"),
    [
        ("", ["fp32"], None),
        ("--stronglyTyped", ["fp32"], "keeps the graph's own types"),
        ("--bf16", ["bf16"], None),
        ("--fp16 --int8", ["int8"], "for engines in fp16 too"),
        ("--int8 --calib=cache", ["int8"], "add --calibration cache, whose ranges"),
        ("--best", ["fp16", "int8"], "the registry compares them"),
    ],
)
def test_the_precision_is_what_the_engine_computes_in(flags, precisions, note):
    found = trtexec.parse(f"trtexec --onnx=m.onnx {flags}")
    assert found.precisions == precisions
    assert note is None or any(note in one for one in found.notes), found.notes


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--noTF32", {"tf32": False}),
        ("--sparsity=enable", {"sparse_weights": True}),
        ("--sparsity=disable", {}),
        ("--workspace=64", {"workspace_mib": 64}),
        ("--memPoolSize=workspace:2G", {"workspace_mib": 2048}),
        ("--memPoolSize=workspace:512KiB,dlaSRAM:1M", {"workspace_mib": 1}),
        ("--maxAuxStreams=0", {"max_aux_streams": 0}),
        ("--vc", {"version_compatible": True}),
        ("--noBuilderCache", {"timing_cache": False}),
        ("--timingCacheFile=timings.cache", {}),
        ("--allowWeightStreaming", {"weight_streaming": True}),
        (
            "--hardwareCompatibilityLevel=ampere+",
            {"hardware_compatibility_level": "ampere_plus"},
        ),
    ],
)
def test_options_keep_their_meaning(flags, expected):
    assert options(flags) == expected
    BuildRequest.model_validate(
        {
            "model": "m",
            "source": {"digest": f"sha256:{'0' * 64}", "format": "onnx"},
            "precisions": ["fp16"],
            "targets": ["sm_89"],
            "options": expected,
        }
    )


def test_shapes_that_are_not_given_are_those_beside_them():
    found = trtexec.parse("--onnx=m.onnx --optShapes=input:0:4x3,mask:4 --maxShapes=input:0:8x3")
    assert found.profiles == [
        {
            "input:0": {"min": [4, 3], "opt": [4, 3], "max": [8, 3]},
            "mask": {"min": [4], "opt": [4], "max": [4]},
        }
    ]


def test_several_profiles_are_kept():
    found = trtexec.parse("--onnx=m.onnx --optShapes=x:1 --profile=1 --optShapes=x:8")
    assert [profile["x"]["opt"] for profile in found.profiles] == [[1], [8]]
    assert any("several profiles" in note for note in found.notes)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--setPluginsToSerialize=libmine.so", "--option plugins=DIGEST"),
        ("--sparsity=force", "--prune 2:4"),
        ("--useDLACore=0", "not for DLA"),
        ("--refit", "next version"),
        ("--layerPrecisions=*:fp16", "come from the graph"),
        ("--loadEngine=m.engine", "builds nothing"),
    ],
)
def test_what_the_farm_cannot_follow_is_refused_with_the_reason(flags, why):
    with pytest.raises(InvalidRequest) as caught:
        trtexec.parse(f"trtexec --onnx=m.onnx {flags}")
    assert flags.partition("=")[0] in caught.value.detail
    assert why in caught.value.hint


@pytest.mark.parametrize(
    "command",
    [
        "",
        "trtexec",
        "trtexec --fp16",
        "trtexec --onnx=m.onnx --noSuchFlag",
        "trtexec --onnx=m.onnx fp16",
        "trtexec --onnx='m.onnx",
        "trtexec --onnx=m.onnx --workspace=much",
        "trtexec --onnx=m.onnx --memPoolSize=workspace",
        "trtexec --onnx=m.onnx --minShapes=1x3",
        "trtexec --onnx=m.onnx --hardwareCompatibilityLevel=turing",
    ],
)
def test_what_is_no_such_command_is_told(command):
    with pytest.raises(InvalidRequest):
        trtexec.parse(command)
