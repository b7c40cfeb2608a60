"""What each release of Triton loads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from farm.errors import InvalidRequest
from farm.specs import triton
from farm.specs.options import BuilderOptions
from farm.specs.runtime import Runtime, Target
from farm.specs.triton import Release

HERE = Release(name="99.01", cuda="13", tensorrt="10.13.3.9", pytorch="2.9.0", onnxruntime="1.30.0")
UNKNOWN = HERE.model_copy(update={"onnxruntime": None})


@dataclass(frozen=True, kw_only=True)
class Engine:
    runtime: Runtime
    runtime_version: str
    options: BuilderOptions | None = None
    toolchain: dict[str, str] = field(default_factory=dict)


def told(target: str, version: str, release: Release = HERE, **options: bool) -> str | None:
    of = Target.parse(target)
    built = BuilderOptions.model_validate(options)
    return triton.misfit(
        release, Engine(runtime=of.runtime, runtime_version=version, options=built), gpu=of.gpu
    )


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("tensorrt:l4", "10.13.3.9"),
        ("torchscript:cpu", "2.9.1+cpu"),
        ("torchscript:sm_89", "2.7.0"),
        ("onnxruntime:l4", "1.30.2"),
        ("onnxruntime:cpu", "1.31.1"),
    ],
)
def test_a_release_loads_what_its_own_versions_wrote(target: str, version: str) -> None:
    assert told(target, version) is None


@pytest.mark.parametrize(
    ("target", "version", "why"),
    [
        ("tensorrt:l4", "10.13.2.6", "Triton 99.01: it needs tensorrt 10.13.2.6, .* 10.13.3.9"),
        ("tensorrt-rtx:sm_89", "1.7.1", "no backend for TensorRT-RTX"),
        ("aotinductor:sm_89", "2.9.0", "AOTInductor"),
        ("torchscript:cpu", "2.13.0", "needs torch 2.13.0 or later, .* has 2.9.0"),
        ("onnxruntime:l4", "1.31.1", "needs onnxruntime 1.31.1 or later, .* has 1.30.0"),
    ],
)
def test_what_a_release_does_not_load_is_told_with_both_versions(
    target: str, version: str, why: str
) -> None:
    assert re.search(why, told(target, version) or "")


def test_a_version_compatible_plan_is_loaded_by_later_releases() -> None:
    assert told("tensorrt:l4", "10.11.0.33", version_compatible=True) is None
    assert told("tensorrt:l4", "10.14.1.48", version_compatible=True) is not None


def test_a_version_that_the_table_lacks_is_not_guessed() -> None:
    why = told("onnxruntime:l4", "1.20.0", UNKNOWN)
    assert why == "which ONNX Runtime Triton 99.01 has isn't known to the farm"


def test_every_release_of_the_table_has_whole_versions() -> None:
    assert list(triton.releases()) == sorted(triton.releases())
    for name, one in triton.releases().items():
        assert re.fullmatch(r"\d\d\.\d\d", name)
        assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", one.tensorrt)
        assert re.fullmatch(r"\d+(\.\d+)+", one.cuda)


def test_an_unknown_release_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest) as refused:
        triton.release("1.0")
    assert ", ".join(triton.releases()) in str(refused.value.hint)
