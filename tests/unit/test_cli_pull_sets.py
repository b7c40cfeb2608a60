"""``farm pull --build`` and ``--all-targets``: several engines, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from farm.cli import exits
from farm.client import Farm
from farm.errors import Conflict, NotFound
from farm.testing import documents
from farm.testing.documents import BUILD, rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run

RTX_NAME, CPU_NAME = "digits-v1-int8-sm_89.engine", "digits-v1-int8-cpu.onnx"
DOUBT = "the class is the source's in 19.0 %"
ON_CPU: dict[str, Any] = {"gpu": "cpu", "runtime": "onnxruntime", "runtime_version": "1.31.1"}
LOST = {"code": "blob-damaged", "detail": "the store has lost the bytes of engine E2"}


def wanted(target: str, engine: str | None, number: int = 2) -> dict[str, Any]:
    [one] = documents.build()["engines"]
    return one | {
        "target": target,
        "engine": engine,
        "build_job": number,
        "measure_job": number + 100,
    }


@pytest.fixture
def stub(stub: StubFarm) -> StubFarm:
    """A build of two engines."""
    row = stub.add(rtx_plan())
    stub.add(b"onnx", id="E2", **ON_CPU)
    engines = [wanted("tensorrt-rtx:sm_89", row["id"]), wanted("onnxruntime:cpu", "E2")]
    stub.builds[BUILD] = documents.build(engines=engines, engines_total=2, engines_done=2)
    return stub


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


# A build.


def test_a_build_is_pulled_whole(run: Run, tmp_path: Path) -> None:
    result = run("pull", "--build", BUILD, "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert names(tmp_path) == [CPU_NAME, RTX_NAME]
    assert result.stdout.count(f"  why: made for build {BUILD}\n") == 2
    assert result.stderr == ""


def test_a_builds_doubtful_engine_is_left_out_and_listed(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(b"onnx", id="E2", state="doubtful", doubts=[DOUBT], **ON_CPU)
    result = run("pull", "--build", BUILD, "-o", tmp_path)
    assert result.exit_code == exits.DOUBTFUL
    assert names(tmp_path) == [RTX_NAME]
    assert result.stderr == f"missing: int8@onnxruntime:cpu (E2): doubtful: {DOUBT}\n"
    asked = run("pull", "--build", BUILD, "--doubtful", "-o", tmp_path)
    assert (asked.exit_code, asked.stderr) == (exits.OK, "")
    assert names(tmp_path) == [CPU_NAME, RTX_NAME]


def test_a_builds_yanked_engine_is_left_out_and_told_how_to_be_had(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(b"onnx", id="E2", yanked="slow at batch 1", **ON_CPU)
    result = run("pull", "--build", BUILD, "--doubtful", "-o", tmp_path)
    assert result.exit_code == exits.FAILED
    assert names(tmp_path) == [RTX_NAME]
    assert "yanked: slow at batch 1" in result.stderr
    assert "by its id: farm pull E2" in result.stderr
    assert run("pull", "--engine", "E2", "-o", tmp_path).exit_code == exits.OK
    assert names(tmp_path) == [CPU_NAME, RTX_NAME]


def test_what_a_build_could_not_make_is_listed_with_its_jobs_reason(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    error = {"code": "engine-build-failed", "detail": "no kernel [for c1]", "hint": None}
    stub.builds[BUILD] |= {
        "state": "failed",
        "engines_done": 1,
        "jobs": [documents.job(7, "build digits:int8@h100", "failed", error=error)],
        "engines": [
            wanted("onnxruntime:cpu", "E2"),
            wanted("tensorrt:h100", None, 7),
            wanted("tensorrt:l4", None, 8),
        ],
    }
    result = run("pull", "--build", BUILD, "-o", tmp_path, "--json")
    assert result.exit_code == exits.FAILED
    shown = json.loads(result.stdout)
    assert (shown["build"], shown["model"], shown["version"]) == (BUILD, "digits", 1)
    assert [one["path"] for one in shown["pulled"]] == [str(tmp_path / CPU_NAME)]
    assert shown["missing"] == [
        {"target": target, "precision": "int8", "why": why, "engine": None, "doubtful": False}
        for target, why in (
            ("tensorrt:h100", "no kernel [for c1]"),
            ("tensorrt:l4", "the build is failed"),
        )
    ]


def test_an_engine_whose_bytes_are_lost_does_not_keep_the_others_from_coming(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.problems["/v1/engines/E2/content"] = [(503, LOST)] * 9
    result = run("pull", "--build", BUILD, "-o", tmp_path)
    assert result.exit_code == exits.FAILED
    assert RTX_NAME in names(tmp_path)
    assert CPU_NAME not in names(tmp_path)
    assert f"missing: int8@onnxruntime:cpu (E2): {LOST['detail']}" in result.stderr


def test_a_build_that_goes_on_is_not_pulled_yet(
    run: Run, farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.builds[BUILD] |= {"state": "running", "engines_done": 1}
    result = run("pull", "--build", BUILD, "-o", tmp_path)
    assert result.exit_code == exits.USAGE
    assert "1 of 2 engines" in result.stderr
    assert f"farm watch {BUILD}" in result.stderr
    with pytest.raises(Conflict):
        farm.pull_build(BUILD, tmp_path)


def test_an_unknown_build_exits_3(run: Run) -> None:
    assert run("pull", "--build", "01m7y8mbzzzzzzzz").exit_code == exits.NOT_FOUND


def test_a_quiet_pull_prints_a_line_for_each_engine(run: Run, tmp_path: Path) -> None:
    result = run("pull", "--build", BUILD, "-q", "-o", tmp_path)
    assert result.stdout.splitlines() == [str(tmp_path / RTX_NAME), str(tmp_path / CPU_NAME)]


# Every target.


def test_all_targets_brings_the_best_engine_for_each(run: Run, tmp_path: Path) -> None:
    result = run("pull", "digits", "--all-targets", "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert names(tmp_path) == [CPU_NAME, RTX_NAME]
    assert "  why: built for cpu; " in result.stdout
    assert result.stderr == ""


def test_all_targets_are_of_the_version_that_a_pull_takes(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(b"newer", id="E3", version=2, **ON_CPU)
    shown = json.loads(run("pull", "digits", "--all-targets", "-o", tmp_path, "--json").stdout)
    assert (shown["model"], shown["version"], shown["missing"]) == ("digits", 2, [])
    assert names(tmp_path) == ["digits-v2-int8-cpu.onnx"]
    for number, words in enumerate((["digits", "--version", "1"], ["digits@1"])):
        folder = tmp_path / str(number)
        older = run("pull", *words, "--all-targets", "-o", folder)
        assert older.exit_code == exits.OK, older.output
        assert names(folder) == [CPU_NAME, RTX_NAME]


def test_a_target_with_doubtful_engines_alone_is_listed(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(rtx_plan(seed=8), id="E3", version=2, state="doubtful", doubts=[DOUBT])
    stub.add(b"newer", id="E4", version=2, **ON_CPU)
    result = run("pull", "digits", "--all-targets", "-o", tmp_path)
    assert result.exit_code == exits.DOUBTFUL
    # Not the older version's for this target: a set is of one version.
    assert names(tmp_path) == ["digits-v2-int8-cpu.onnx"]
    assert result.stderr == f"missing: tensorrt-rtx:sm_89 (E3): doubtful: {DOUBT}\n"
    asked = run("pull", "digits", "--all-targets", "--doubtful", "-o", tmp_path)
    assert (asked.exit_code, asked.stderr) == (exits.OK, "")
    assert names(tmp_path) == ["digits-v2-int8-cpu.onnx", "digits-v2-int8-sm_89.engine"]


def test_two_runtimes_of_one_gpu_get_a_file_each(run: Run, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(b"plan", id="E3", runtime="tensorrt", runtime_version="10.13")
    assert run("pull", "digits", "--all-targets", "-o", tmp_path).exit_code == exits.OK
    assert names(tmp_path) == [
        CPU_NAME,
        "digits-v1-int8-sm_89-tensorrt-rtx.engine",
        "digits-v1-int8-sm_89-tensorrt.engine",
    ]


def test_all_targets_in_several_precisions(run: Run, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(b"wider", id="E3", precision="fp32", **ON_CPU)
    options = ["--precision", "fp32,int8", "--runtime", "onnxruntime"]
    assert run("pull", "digits", "--all-targets", *options, "-o", tmp_path).exit_code == exits.OK
    assert names(tmp_path) == ["digits-v1-fp32-cpu.onnx", CPU_NAME]


def test_all_targets_of_what_is_not_there_exits_3(
    run: Run, farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    assert run("pull", "other", "--all-targets").exit_code == exits.NOT_FOUND
    none = run("pull", "digits", "--all-targets", "--precision", "fp8", "-o", tmp_path)
    assert none.exit_code == exits.NOT_FOUND
    assert "digits has no such engine" in none.stderr
    stub.engines.clear()
    stub.add(rtx_plan(), state="doubtful", doubts=[DOUBT])
    with pytest.raises(NotFound):
        farm.pull_all_targets("digits", tmp_path)
    assert names(tmp_path) == []
