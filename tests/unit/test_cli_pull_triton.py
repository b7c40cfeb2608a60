"""``farm pull --triton``: a model repository, with what a person or a script is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from farm.cli import exits
from farm.specs.quoting import quoted
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run

TENSORS: dict[str, Any] = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
}
T4: dict[str, Any] = {"gpu": "t4", "runtime": "tensorrt", "precision": "fp16", **TENSORS}
CPU: dict[str, Any] = {
    "gpu": "cpu",
    "runtime": "onnxruntime",
    "runtime_version": "1.31.1",
    **TENSORS,
}


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".farm.lock"
    }


def test_an_engine_for_a_gpu_is_pulled_into_a_repository(
    stub: StubFarm, run: Run, tmp_path: Path
) -> None:
    stub.add(b"plan", id="E1", **T4)
    result = run("pull", "digits", "--gpu", "t4", "--triton", "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert files(tmp_path) == {
        "digits/config.pbtxt",
        "digits/1/E1.plan",
        "digits/1/E1.plan.json",
    }
    assert (tmp_path / "digits/1/E1.plan").read_bytes() == b"plan"
    assert "digits v1, for Triton" in result.stdout
    assert "verified" in result.stdout


def test_an_engine_by_its_id_is_pulled_into_a_repository(
    stub: StubFarm, run: Run, tmp_path: Path
) -> None:
    stub.add(b"onnx", id="E2", **CPU)
    result = run("pull", "--engine", "E2", "--triton", "-o", tmp_path, "--json")
    assert result.exit_code == exits.OK, result.output
    made = json.loads(result.stdout)
    [model] = made["models"]
    assert model["folder"] == str(tmp_path / "digits")
    assert model["engines"][0]["path"] == str(tmp_path / "digits/1/E2.onnx")
    assert quoted(str(tmp_path / "digits/1/E2.onnx")) in model["engines"][0]["load"]
    assert "onnxruntime==1.31.1" in model["notes"][0]
    assert "digits/1/model.py" in files(tmp_path)
    # Once more, nothing is fetched.
    again = json.loads(run("pull", "--engine", "E2", "--triton", "-o", tmp_path, "--json").stdout)
    assert again["models"][0]["engines"][0]["fresh"] is False


def test_a_fleet_is_pulled_and_what_triton_does_not_load_is_listed(
    stub: StubFarm, run: Run, tmp_path: Path
) -> None:
    stub.add(rtx_plan(), id="E0")
    stub.add(b"one", id="E1", **T4)
    stub.add(b"two", id="E2", **T4 | {"gpu": "l4"})
    stub.add(b"onnx", id="E3", **CPU)
    result = run("pull", "digits", "--all-targets", "--triton", "-o", tmp_path)
    assert result.exit_code == exits.FAILED
    assert "missing: int8@tensorrt-rtx:sm_89 (E0)" in result.stderr
    assert "no backend for TensorRT-RTX" in result.stderr
    assert {"digits/1/E1.plan", "digits/1/E2.plan"} <= files(tmp_path)
    assert "digits-onnxruntime-cpu/1/E3.onnx" in files(tmp_path)
    config = (tmp_path / "digits/config.pbtxt").read_text()
    assert config.count("cc_model_filenames") == 2


def test_nothing_but_engines_that_triton_does_not_load_is_an_error(
    stub: StubFarm, run: Run, tmp_path: Path
) -> None:
    stub.add(rtx_plan())
    result = run("pull", "digits", "--gpu", "sm_89", "--triton", "-o", tmp_path)
    assert result.exit_code == exits.USAGE
    assert "no backend for TensorRT-RTX" in result.stderr
    assert "--gpu tensorrt:sm_89" in result.stderr
    assert files(tmp_path) == set()


def test_a_release_is_asked_of_the_farm(stub: StubFarm, run: Run, tmp_path: Path) -> None:
    stub.add(b"plan", id="E1", **T4)
    run("pull", "digits", "--gpu", "t4", "--for-triton", "25.10", "-o", tmp_path)
    asked = [path for method, path, _ in stub.seen if "/engines/t4" in path]
    assert [parse_qs(urlsplit(path).query)["for_triton"] for path in asked] == [["25.10"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--build", "B", "--triton"), "--triton"),
        (("--engine", "E", "--for-triton", "25.10"), "--for-triton"),
        (("digits", "--triton-backend", "python"), "add --triton"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Run, words: tuple[str, ...], told: str
) -> None:
    result = run("pull", *words)
    assert result.exit_code == exits.USAGE
    assert told in result.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": "../../E"}, "whose id is ../../E, not E9"),
        ({"model": "../digits"}, "may lead elsewhere"),
        ({"model": "a\nb"}, "may lead elsewhere"),
    ],
)
def test_a_hostile_farm_names_no_file_outside(
    stub: StubFarm, run: Run, tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    row = stub.add(b"plan", **T4)
    stub.engines["E9"] = (row | {"id": "E9"} | changes, b"plan")
    result = run("pull", "--engine", "E9", "--triton", "-o", tmp_path / "in")
    assert result.exit_code == exits.FAILED
    assert told in result.stderr
    assert [name for name in files(tmp_path) if not name.startswith("in/")] == []
