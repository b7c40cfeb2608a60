"""Downloads: resumed, verified, and nothing left that could be mistaken for an engine."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farm.client import Farm
from farm.errors import Conflict, DigestMismatch, NotFound, Unavailable
from farm.testing import documents
from farm.testing.documents import BUILD, rtx_plan
from farm.testing.stub_farm import StubFarm

PLAN = rtx_plan()
NAME = "digits-v1-int8-sm_89.engine"
CONTENT = "/v1/engines/01m7y8mbznssegkq/content"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_pull_writes_the_engine_and_its_manifest(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    pulled = farm.pull("digits", "rtx-4090", tmp_path / "new" / "engines")
    assert pulled.path == tmp_path / "new" / "engines" / NAME
    assert pulled.path.read_bytes() == PLAN
    assert "built for sm_89" in pulled.why
    assert files(pulled.path.parent) == [NAME, f"{NAME}.json"]
    manifest = json.loads((pulled.path.parent / f"{NAME}.json").read_text())
    assert manifest["engine"]["digest"] == documents.digest_of(PLAN)
    assert manifest["provenance"] == {"build": {"job": 2}}


def test_a_dropped_connection_is_resumed_where_it_stopped(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    stub.cut_after = [150_000, 100_000]
    pulled = farm.pull("digits", "sm_89", tmp_path)
    assert pulled.path.read_bytes() == PLAN
    asked = stub.asked("GET", CONTENT)
    assert [headers.get("range") for headers in asked] == [None, "bytes=150000-", "bytes=250000-"]


def test_a_pull_that_was_cut_off_for_good_is_resumed_by_the_next(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    stub.cut_after = [200_000, 0, 0, 0, 0]
    with pytest.raises(Unavailable, match="200000 of 300000 bytes are here") as caught:
        farm.pull("digits", "sm_89", tmp_path)
    assert "resumes" in str(caught.value.hint)
    assert files(tmp_path) == [f"{NAME}.partial"]
    stub.seen.clear()
    stub.cut_after.clear()
    assert farm.pull("digits", "sm_89", tmp_path).path.read_bytes() == PLAN
    assert [headers.get("range") for headers in stub.asked("GET", CONTENT)] == ["bytes=200000-"]
    assert files(tmp_path) == [NAME, f"{NAME}.json"]


def test_wrong_bytes_are_deleted_and_told(farm: Farm, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(PLAN, sent=rtx_plan(seed=8))
    with pytest.raises(DigestMismatch, match="nothing was kept"):
        farm.pull("digits", "sm_89", tmp_path)
    assert files(tmp_path) == []


def test_wrong_bytes_do_not_touch_the_engine_that_is_there(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    farm.pull("digits", "sm_89", tmp_path)
    stub.add(rtx_plan(seed=9), sent=rtx_plan(seed=8))
    with pytest.raises(DigestMismatch):
        farm.pull("digits", "sm_89", tmp_path)
    assert (tmp_path / NAME).read_bytes() == PLAN
    assert files(tmp_path) == [NAME, f"{NAME}.json"]


def test_too_many_bytes_are_refused(farm: Farm, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(PLAN, sent=PLAN + b"more")
    with pytest.raises((DigestMismatch, Unavailable)):
        farm.pull("digits", "sm_89", tmp_path)
    assert NAME not in files(tmp_path)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_file_of_another_engine_is_replaced(
    farm: Farm, stub: StubFarm, tmp_path: Path, ranges: bool
) -> None:
    stub.add(PLAN)
    stub.ranges = ranges
    (tmp_path / f"{NAME}.partial").write_bytes(b"of another engine" * 1000)
    assert farm.pull("digits", "sm_89", tmp_path).path.read_bytes() == PLAN


def test_a_partial_file_that_is_longer_than_the_engine_is_replaced(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    (tmp_path / f"{NAME}.partial").write_bytes(b"x" * (len(PLAN) + 1))
    assert farm.pull("digits", "sm_89", tmp_path).path.read_bytes() == PLAN


def test_an_engine_that_is_here_is_verified_and_not_fetched_again(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    assert farm.pull("digits", "sm_89", tmp_path).fresh
    assert not farm.pull("digits", "sm_89", tmp_path).fresh
    assert len(stub.asked("GET", CONTENT)) == 1


def test_an_engine_that_was_damaged_here_is_fetched_again(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    path = farm.pull("digits", "sm_89", tmp_path).path
    path.write_bytes(b"\0" + PLAN[1:])
    assert farm.pull("digits", "sm_89", tmp_path).fresh
    assert path.read_bytes() == PLAN


def test_a_newer_engine_replaces_the_one_of_the_same_name(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    farm.pull("digits", "sm_89", tmp_path)
    newer = rtx_plan(seed=9)
    stub.add(newer)
    assert farm.pull("digits", "sm_89", tmp_path).path.read_bytes() == newer


@pytest.mark.parametrize(
    ("data", "row", "said"),
    [
        (rtx_plan(capability_bit=0x10), {}, "it is for sm_89, its header for sm_120"),
        (PLAN, {"runtime_version": "1.6.0"}, "TensorRT-RTX 1.6.0, its header 1.7.1.116"),
        (rtx_plan()[:-1], {}, "299999 bytes, its header 300000"),
        (b"<html>" + b" " * 100, {}, "this one with b'<htm'"),
    ],
)
def test_an_rtx_engine_whose_header_disagrees_with_the_registry_is_not_kept(
    farm: Farm, stub: StubFarm, tmp_path: Path, data: bytes, row: dict[str, Any], said: str
) -> None:
    stub.add(data, **row)
    with pytest.raises(DigestMismatch, match=said):
        farm.pull("digits", "sm_89", tmp_path)
    assert files(tmp_path) == []


def test_a_manifest_of_other_bytes_is_refused(farm: Farm, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(PLAN)
    found = farm.match("digits", "sm_89")
    stub.add(rtx_plan(seed=9))
    with pytest.raises(DigestMismatch, match="in its manifest"):
        farm.fetch(found, tmp_path)
    assert files(tmp_path) == []


def test_two_pulls_of_one_file_do_not_mix(farm: Farm, stub: StubFarm, tmp_path: Path) -> None:
    stub.add(PLAN)
    with (tmp_path / f"{NAME}.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another pull"):
            farm.pull("digits", "sm_89", tmp_path)
    assert farm.pull("digits", "sm_89", tmp_path).path.read_bytes() == PLAN


def test_progress_of_a_resumed_download_counts_what_was_there(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(PLAN)
    (tmp_path / f"{NAME}.partial").write_bytes(PLAN[:200_000])
    told: list[tuple[str, int, int]] = []
    farm.pull("digits", "sm_89", tmp_path, progress=lambda *facts: told.append(facts))
    assert told[0][1] > 200_000
    assert told[-1] == (f"download {NAME}", len(PLAN), len(PLAN))


def _two_engines(stub: StubFarm) -> None:
    onnx = b"onnx" * 100
    stub.add(PLAN)
    cpu: dict[str, Any] = {
        "runtime": "onnxruntime",
        "gpu": "cpu",
        "runtime_version": "1.31",
        "id": "E2",
    }
    stub.add(onnx, **cpu)
    view = documents.build(engines_total=2, engines_done=2)
    want = view["engines"][0]
    view["engines"] = [want, want | {"target": "onnxruntime:cpu", "engine": "E2"}, want]
    stub.builds[BUILD] = view


def test_pulling_a_build_brings_every_engine_once(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    _two_engines(stub)
    paths = farm.build(BUILD).wait().pull(tmp_path)
    assert [path.name for path in paths] == [NAME, "digits-v1-int8-cpu.onnx"]
    assert all(path.is_file() for path in paths)


def test_pulling_a_build_for_a_gpu_brings_that_engine(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    _two_engines(stub)
    paths = farm.build(BUILD).pull(tmp_path, gpu="rtx-4090", precision="int8")
    assert [path.name for path in paths] == [NAME]


def test_pulling_a_build_for_another_gpu_names_what_there_is(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    _two_engines(stub)
    with pytest.raises(NotFound, match="no h100 engine; there is int8@sm_89, int8@cpu"):
        farm.build(BUILD).pull(tmp_path, gpu="h100")


def test_engines_that_would_share_a_name_are_told_apart_by_runtime(
    farm: Farm, stub: StubFarm, tmp_path: Path
) -> None:
    _two_engines(stub)
    stub.add(b"plan" * 100, id="E2", runtime="tensorrt", runtime_version="10.13")
    names = [path.name for path in farm.build(BUILD).pull(tmp_path)]
    assert names == [
        "digits-v1-int8-sm_89-tensorrt-rtx.engine",
        "digits-v1-int8-sm_89-tensorrt.engine",
    ]


def test_the_client_imports_no_framework_no_database_and_no_broker() -> None:
    code = (
        "import sys, farm.client, farm.cli\n"
        "heavy = {'torch', 'onnx', 'numpy', 'celery', 'sqlalchemy', 'fastapi', 'tensorrt'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
