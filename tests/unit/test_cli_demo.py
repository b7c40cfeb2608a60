"""``farm demo``: a part that fails is told, the others go on, and the exit code says so."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from farm.cli import app, demo, exits
from farm.testing import documents
from farm.testing.documents import BUILD, rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.arrays import npz

FAILED = "06gm2vw9k3xq4t7n"
Run = Callable[..., Result]


@pytest.fixture
def stub(stub: StubFarm) -> StubFarm:
    stub.add(rtx_plan())
    return stub


@pytest.fixture
def run(stub: StubFarm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The demo against the stub, with files in the place of models."""
    files = tmp_path / "demo" / "models"
    files.mkdir(parents=True)
    for model in demo.MODELS:
        with zipfile.ZipFile(files / f"{model.name}.pt2", "w") as archive:
            archive.writestr(f"{model.name}/archive_format", "pt2")
        for name in ("-calibration.npz", "-evaluation.npz"):
            npz(files / f"{model.name}{name}", image=("<f4", (8, 64)))

    @contextmanager
    def embedded(_settings: object) -> Iterator[SimpleNamespace]:
        addresses = SimpleNamespace(api=stub.url, flower="http://flower")
        yield SimpleNamespace(addresses=addresses, key="a-key")

    @contextmanager
    def models(_folder: Path, *, quiet: bool) -> Iterator[Callable[[], None]]:
        yield lambda: None

    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setattr(demo.up, "embedded", embedded)
    monkeypatch.setattr(demo, "_models", models)
    return lambda *words: CliRunner().invoke(app, ["demo", *words])


def failing() -> dict[str, object]:
    return documents.failed_build() | {"id": FAILED, "engines": []}


def refusal() -> tuple[int, dict[str, object]]:
    problem = {"title": "Not possible", "detail": "no worker builds for sm_86", "code": "conflict"}
    return 409, {"type": "about:blank", "status": 409, "hint": "start one", **problem}


def test_all_parts_that_succeed_end_well(run: Run, tmp_path: Path) -> None:
    result = run()
    assert result.exit_code == exits.OK, result.output
    assert "4 engines pulled" in result.stdout
    assert "error" not in result.stderr


def test_a_part_that_fails_is_told_with_its_reason_and_what_to_do(run: Run, stub: StubFarm) -> None:
    stub.coming = [failing()]
    result = run()
    assert result.exit_code == exits.FAILED
    assert result.stderr.splitlines() == [
        f"error: build {FAILED}, digits in fp16 and int8 for sm_86, sm_89, sm_120: "
        "calibrate digits: no samples [for image]",
        "hint: add samples",
    ]
    assert "3 of 4 builds succeeded." in result.stdout


def test_the_other_parts_go_on_and_are_pulled(run: Run, stub: StubFarm, tmp_path: Path) -> None:
    stub.problems["/v1/builds"] = [refusal()]
    stub.coming = [failing()]
    result = run("--keep", str(tmp_path / "kept"))
    assert result.exit_code == exits.FAILED
    assert [asked["precisions"] for asked in stub.submitted] == [
        ["fp32", "int8"],
        ["fp16", "int8"],
        ["fp32", "int8"],
    ]
    assert "\ndigits\n" in result.stdout
    assert "\nresnet50\n" in result.stdout
    assert "2 engines pulled" in result.stdout
    assert [p.name for p in (tmp_path / "kept").glob("*.engine")] == ["digits-v1-int8-sm_89.engine"]
    [refused, failed] = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert refused.startswith("error: digits in fp16 and int8 for sm_86, sm_89, sm_120: no worker")
    assert failed.startswith(f"error: build {FAILED}, digits in fp32 and int8 for cpu: ")


def test_a_failure_without_a_hint_says_where_its_log_is(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    made = failing()
    made["jobs"] = []
    stub.coming = [made]
    home = tmp_path / "demo"
    farm = f"FARM_HOME={home} farm"
    assert f"hint: read its log with {farm} up, then {farm} logs {FAILED}" in run().stderr


def test_json_says_what_failed_beside_what_was_pulled(run: Run, stub: StubFarm) -> None:
    stub.coming = [failing()]
    result = run("--json")
    assert result.exit_code == exits.FAILED
    said = json.loads(result.stdout)
    assert len(said["pulled"]) == 3
    assert said["engines"].keys() == {"digits", "resnet50"}
    assert said["failed"] == [
        {
            "model": "digits",
            "targets": ["sm_86", "sm_89", "sm_120"],
            "precisions": ["fp16", "int8"],
            "build": FAILED,
            "error": "calibrate digits: no samples [for image]",
            "hint": "add samples",
        }
    ]
    stub.coming = []
    assert json.loads(run("--json").stdout)["failed"] == []
    assert stub.builds.keys() == {BUILD, FAILED}
