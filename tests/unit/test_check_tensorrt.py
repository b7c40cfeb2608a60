"""The check of the TensorRT adapter finds what it is there to find."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location(
        "check_tensorrt", ROOT / "scripts" / "check_tensorrt.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bindings(folder, names) -> Path:
    library = folder / "tensorrt_bindings" / "tensorrt.so"
    library.parent.mkdir()
    library.write_bytes(b"\0".join([b"ELF", *(name.encode() for name in names), b""]))
    return folder


def test_every_name_of_the_adapter_is_looked_for(check, tmp_path):
    there = check.used_names() - check.RTX_ONLY
    assert {"num_layers", "WORKSPACE", "SPARSE_WEIGHTS", "set_shape", "Dims"} <= there
    assert check.unknown_names(bindings(tmp_path, there)) == []


def test_a_name_that_is_gone_is_told(check, tmp_path):
    there = check.used_names() - check.RTX_ONLY - {"parse_from_file"}
    assert check.unknown_names(bindings(tmp_path, there)) == [
        "parse_from_file isn't in the bindings"
    ]


def test_a_name_that_was_rtxs_alone_is_told(check, tmp_path):
    [told] = check.unknown_names(bindings(tmp_path, check.used_names()))[:1]
    assert told.endswith("isn't RTX's alone any more")


def test_stubs_with_parameters_named_in_become_python(check, tmp_path):
    stubs = tmp_path / "tensorrt.pyi"
    stubs.write_text("class A:\n    def f(self, in: list[int], out: int) -> int: ...\n")
    check.mend(stubs)
    compile(stubs.read_text(), "tensorrt.pyi", "exec")


def test_a_method_that_the_tests_play_otherwise_is_told(check, tmp_path):
    stubs = tmp_path / "tensorrt_bindings" / "tensorrt.pyi"
    stubs.parent.mkdir()
    played = check.PLAYED.read_text()
    stubs.write_text(played)
    assert check.played_otherwise(tmp_path) == []
    stubs.write_text(played.replace("ignore_mismatch", "force"))
    told = check.played_otherwise(tmp_path)
    assert any("ITimingCache.combine(self, input_cache, ignore_mismatch)" in one for one in told)
