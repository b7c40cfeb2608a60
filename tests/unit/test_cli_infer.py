"""``farm infer``: what is sent, shown and written, and what is refused before anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.cli import exits
from farm.testing.documents import BUILD, OUTPUTS
from farm.testing.stub_farm import StubFarm
from tests.arrays import npz
from tests.unit.conftest import Run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return npz(tmp_path / "images.npz", image=("<f4", (8, 3)))


def test_an_engine_is_run_and_its_outputs_are_written(
    run: Run, stub: StubFarm, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    result = run("infer", "digits@prod", "--input", images, "--gpu", "cpu", "-o", out)
    assert result.exit_code == exits.OK, result.output
    [sent] = stub.inferred
    assert {name: sent[name] for name in ("model", "alias", "gpu", "engine")} == {
        "model": "digits",
        "alias": "prod",
        "gpu": "cpu",
        "engine": None,
    }
    assert sent["inputs"] in stub.blobs
    assert f"engine {BUILD} on onnxruntime:cpu: built for cpu" in result.stdout
    assert "scores  float32  8x10" in result.stdout
    assert out.read_bytes() == OUTPUTS
    as_json = json.loads(run("infer", "--engine", "x", "--input", images, "--json").stdout)
    assert (as_json["engine"], as_json["output"]) == (BUILD, None)
    assert (as_json["outputs"][0]["name"], as_json["run_ms"]) == ("scores", 1.5)


def test_a_failure_is_told_as_the_jobs_own(run: Run, stub: StubFarm, images: Path) -> None:
    error = {"code": "invalid-model", "detail": "no kernel", "hint": "another runtime"}
    stub.inference |= {"state": "failed", "error": error}
    result = run("infer", "digits", "--input", images)
    assert result.exit_code == exits.FAILED
    assert result.stderr == "error: no kernel\nhint: another runtime\n"


def test_after_its_timeout_an_inference_is_cancelled(
    run: Run, stub: StubFarm, images: Path
) -> None:
    stub.inference |= {"state": "queued", "waits_for": "a CPU worker (start one: farm worker)"}
    result = run("infer", "digits", "--input", images, "--timeout", "0s")
    assert result.exit_code == exits.TIMED_OUT
    assert "hadn't ended after 0 s, and is cancelled" in result.stderr
    assert "it waits for a CPU worker" in result.stderr
    assert len(stub.asked("DELETE", "/v1/infer/42")) == 1


def test_outputs_that_arrive_damaged_are_not_kept(
    run: Run, stub: StubFarm, images: Path, tmp_path: Path
) -> None:
    stub.inference["digest"] = "sha256:" + "0" * 64
    result = run("infer", "digits", "--input", images, "-o", tmp_path / "out.npz")
    assert result.exit_code == exits.FAILED
    assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]


def test_outputs_without_end_are_not_read_on(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.client.inference._MOST_BYTES", len(OUTPUTS) - 1)
    result = run("infer", "digits", "--input", images, "-o", tmp_path / "out.npz")
    assert result.exit_code == exits.UNAVAILABLE
    assert "the file of outputs is longer" in result.stderr
    assert not any(tmp_path.glob("*out*"))


def test_what_holds_no_arrays_is_refused_before_anything_is_sent(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    path = tmp_path / "images.npz"
    path.write_bytes(b"\x80\x04 a pickle")
    result = run("infer", "digits", "--input", path)
    assert result.exit_code == exits.USAGE
    assert "neither .npz, .npy nor .safetensors" in result.stderr
    missing = run("infer", "digits", "--input", tmp_path / "nothing.npz")
    assert (missing.exit_code, "doesn't exist" in missing.stderr) == (exits.USAGE, True)
    neither = run("infer", "--input", npz(path, image=("<f4", (1,))))
    assert (neither.exit_code, "name an engine, or a model" in neither.stderr) == (
        exits.USAGE,
        True,
    )
    assert "error: name an engine, or a model" in neither.stderr
    assert not stub.seen


def test_outputs_without_a_place_are_refused_before_anything_is_run(
    run: Run, stub: StubFarm, images: Path, tmp_path: Path
) -> None:
    nowhere = run("infer", "digits", "--input", images, "-o", tmp_path / "nothing" / "out.npz")
    assert nowhere.exit_code == exits.USAGE
    assert f"there is no folder {tmp_path / 'nothing'}" in nowhere.stderr
    folder = run("infer", "digits", "--input", images, "-o", tmp_path)
    assert (folder.exit_code, "is a folder" in folder.stderr) == (exits.USAGE, True)
    assert not stub.seen
