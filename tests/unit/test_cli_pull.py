"""``farm pull``: this machine's GPU, the match and its reason, exit codes."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from farm.cli import app, exits
from farm.machine import facts
from farm.testing import documents
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm

Run = Callable[..., Result]
NAME = "digits-v1-int8-sm_89.engine"


@pytest.fixture
def stub(stub: StubFarm) -> StubFarm:
    stub.add(rtx_plan())
    return stub


@pytest.fixture
def run(stub: StubFarm, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FARM_URL", stub.url)
    return lambda *words: CliRunner().invoke(app, ["pull", "digits", *map(str, words)])


def machine(monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, tuple[int, int]]) -> None:
    """Let this machine have these GPUs, and no runtime."""

    class NVMLError(Exception):
        pass

    def start() -> None:
        if not gpus:
            raise NVMLError("Driver Not Loaded")

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "575.57.08",
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=lambda gpu: gpu[0],
        nvmlDeviceGetUUID=lambda gpu: gpu[0],
        nvmlDeviceGetMemoryInfo=lambda _gpu: SimpleNamespace(total=24 << 30),
        nvmlDeviceGetMigMode=lambda _gpu: (0, 0),
        NVML_DEVICE_MIG_ENABLE=1,
        nvmlDeviceGetCudaComputeCapability=lambda gpu: gpu[1],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(facts, "_versions", dict)


def test_a_pruned_engine_is_asked_for_and_has_a_file_name_of_its_own(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.engines.clear()
    stub.add(rtx_plan(), prune="2:4")
    result = run("--gpu", "rtx-4090", "--prune", "2:4", "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert (tmp_path / "digits-v1-int8-sm_89-pruned-2-4.engine").is_file()
    assert any("prune=2%3A4" in where for _, where, _ in stub.seen)


def test_pull_prints_the_file_and_why_it_was_the_match(run: Run, tmp_path: Path) -> None:
    result = run("--gpu", "rtx-4090", "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert result.stdout.splitlines() == [
        f"{tmp_path / NAME}  300.0 kB  {documents.digest_of(rtx_plan())}",
        "  why: built for sm_89; int8 is the only one",
        "  judged on: 450 evaluation",
        "  runs on: tensorrt-rtx 1.7.1.116",
        "  verified; unsigned: the farm has no signing key",
    ]


def test_a_dry_run_says_which_engine_a_gpu_would_get_and_downloads_nothing(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    result = run("--gpu", "rtx-4090", "--dry-run", "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    [engine, why, judged] = result.stdout.splitlines()
    assert re.fullmatch(r"rtx-4090: \w{16}, digits v1 in int8 by tensorrt-rtx, 300\.0 kB", engine)
    assert (why, judged) == (
        "  why: built for sm_89; int8 is the only one",
        "  judged on: 450 evaluation",
    )
    [told] = json.loads(run("--gpu", "rtx-4090", "--dry-run", "--json").stdout)
    assert (told["asked"], told["engine"]["precision"]) == ("rtx-4090", "int8")
    assert list(tmp_path.iterdir()) == []
    assert not stub.asked("GET", f"/v1/engines/{told['engine']['id']}/content")
    refused = run("--gpu", "rtx-4090", "--dry-run", "--triton")
    assert refused.exit_code == exits.USAGE
    assert "it doesn't go with --triton" in refused.stderr


def test_pull_without_a_gpu_takes_this_machines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, ("NVIDIA GeForce RTX 4090", (8, 9)), ("NVIDIA GeForce RTX 4090", (8, 9)))
    result = run("-o", tmp_path, "--json")
    assert result.exit_code == exits.OK, result.output
    (pulled,) = json.loads(result.stdout)
    assert pulled["gpu"] == "rtx-4090"
    assert pulled["path"] == str(tmp_path / NAME)
    assert Path(pulled["manifest"]).is_file()
    assert pulled["engine"]["precision"] == "int8"


def test_a_product_without_a_name_here_is_pulled_by_its_capability(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, ("NVIDIA Something New", (8, 9)))
    assert json.loads(run("-o", tmp_path, "--json").stdout)[0]["gpu"] == "sm_89"


def test_pull_on_a_machine_without_a_gpu_says_to_name_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    result = run()
    assert result.exit_code == exits.USAGE
    assert "found no NVIDIA GPU on this machine: Driver Not Loaded" in result.stderr
    assert "--gpu sm_89, or --gpu cpu" in result.stderr


def test_pull_without_nvml_says_to_name_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: Any = sys.modules
    monkeypatch.setitem(modules, "pynvml", None)
    result = run()
    assert result.exit_code == exits.USAGE
    assert "nvidia-ml-py isn't installed" in result.stderr


def test_pull_for_the_cpu_needs_no_gpu(run: Run, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(b"onnx", id="E2", gpu="cpu", runtime="onnxruntime")
    assert run("--gpu", "cpu", "-o", tmp_path).exit_code == exits.OK
    assert (tmp_path / "digits-v1-int8-cpu.onnx").read_bytes() == b"onnx"


def test_an_engine_that_two_tags_mean_is_pulled_once(run: Run, tmp_path: Path) -> None:
    result = run("--gpu", "sm_89,rtx-4090", "-o", tmp_path, "--json")
    assert len(json.loads(result.stdout)) == 1


def test_pull_for_a_gpu_without_an_engine_exits_3_and_names_what_there_is(
    run: Run, tmp_path: Path
) -> None:
    result = run("--gpu", "h200", "-o", tmp_path / "engines")
    assert result.exit_code == exits.NOT_FOUND
    assert "there is int8@sm_89" in result.stderr
    assert not (tmp_path / "engines").exists()


def test_pull_of_wrong_bytes_exits_1_and_keeps_nothing(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(rtx_plan(), sent=rtx_plan(seed=8))
    result = run("--gpu", "sm_89", "-o", tmp_path)
    assert result.exit_code == exits.FAILED
    assert "nothing was kept" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_without_a_traceback(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = run("--gpu", "sm_89", "-o", tmp_path / "file")
    assert result.exit_code == exits.FAILED
    assert result.stderr.startswith("error: system error:")


def test_a_second_pull_says_that_it_was_here_already(run: Run, tmp_path: Path) -> None:
    run("--gpu", "sm_89", "-o", tmp_path)
    assert "already downloaded" in run("--gpu", "sm_89", "-o", tmp_path).stdout


def asked(stub: StubFarm) -> dict[str, list[str]]:
    """The query of the last match that was asked for."""
    [*_, where] = [where for _, where, _ in stub.seen if "/engines/rtx-4090" in where]
    return parse_qs(urlsplit(where).query)


def test_what_this_machine_has_counts_where_no_gpu_is_named(
    run: Run, stub: StubFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, ("NVIDIA GeForce RTX 4090", (8, 9)))
    monkeypatch.setattr(facts, "_versions", lambda: {"tensorrt": "10.13.3.9", "torch": "2.11.0"})
    assert run("-o", tmp_path).exit_code == exits.OK
    assert asked(stub)["has"] == [
        f"os={platform.system().lower()}",
        "driver=575.57.08",
        "tensorrt=10.13.3.9",
        "torch=2.11.0",
    ]
    assert run("-o", tmp_path, "--has", "torch=2.9", "--has", "os=windows").exit_code == exits.OK
    assert {"torch=2.9", "os=windows", "driver=575.57.08"} <= set(asked(stub)["has"])
    assert run("-o", tmp_path, "--gpu", "rtx-4090").exit_code == exits.OK
    assert "has" not in asked(stub)
    assert run("-o", tmp_path, "--gpu", "rtx-4090", "--has", "torch=2.9").exit_code == exits.OK
    assert asked(stub)["has"] == ["torch=2.9"]


def test_what_no_machine_has_is_refused_before_anything_is_asked(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    refused = run("--gpu", "rtx-4090", "--has", "colour=red", "-o", tmp_path)
    assert refused.exit_code == exits.USAGE, refused.output
    assert "use NAME=VALUE, with one of os, driver, tensorrt" in refused.stderr
    assert not stub.seen
