"""What a real worker is fed and mustn't be: each ends in a clear refusal, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.live import LiveFarm, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("tidy"),
]

GOOD = np.zeros((16, 1, 8, 8), np.float32)
Profile = dict[str, dict[str, list[int]]]


def profile(name: str, *shapes: list[int]) -> list[Profile]:
    return [{name: dict(zip(("min", "opt", "max"), shapes, strict=True))}]


def engines(farm: LiveFarm, model: str) -> list[Any]:
    return list(farm.get(f"/v1/models/{model}/engines")["items"])


# Refused at once


@pytest.mark.parametrize(
    ("file", "format", "status", "words"),
    [
        ("empty.onnx", "onnx", 400, "empty"),
        ("weights.pt", "pt2", 422, "torch.save"),
        ("weights.pt", "onnx", 422, "torch.save"),
        ("truncated.pt2", "pt2", 422, "broken"),
        ("small.onnx", "pt2", 422, "isn't a torch.export program"),
        ("digits.pt2", "onnx", 422, "archive"),
    ],
)
def test_a_file_that_is_no_model_is_refused_at_the_door(
    file: str, format: str, status: int, words: str, farm: LiveFarm, files: Path
) -> None:
    answer = farm.http.post("/v1/blobs", content=(files / file).read_bytes())
    if answer.status_code == 201:
        source = {"digest": answer.json()["digest"], "format": format}
        body = {"model": "bad", "source": source, "precisions": ["fp16"], "targets": ["sm_86"]}
        answer = farm.http.post("/v1/builds", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert answer.json()["hint"]
    assert farm.http.get("/v1/models/bad").status_code == 404


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ["sm_999"]}, "sm_999"),
        ({"targets": ["tensorrt-rtx:sm_90"]}, "sm_90"),
        ({"precisions": ["int8"]}, "int8 needs calibration data"),
        ({"profiles": profile("image", [4, 1, 8, 8], [1, 1, 8, 8], [8, 1, 8, 8])}, "min"),
        ({"profiles": profile("image", [10**30], [10**30], [10**30])}, ""),
        ({"profiles": profile("image", [1], [1], [2**63])}, ""),
        ({"model": "ünïcode"}, "model"),
        ({"model": "a/b"}, "model"),
        ({"labels": {"k" * 100_000: "v"}}, "labels"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_the_door(
    changes: dict[str, Any], words: str, farm: LiveFarm, files: Path
) -> None:
    answer = farm.request("bad", files / "small.onnx", **changes)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert answer.json()["hint"]
    assert farm.http.get("/v1/models/bad").status_code == 404


@pytest.mark.parametrize(
    ("file", "more", "words"),
    [
        ("weights.pt", [], "pickle"),
        ("empty.onnx", [], "empty"),
        ("nowhere.onnx", [], "doesn't exist"),
        ("small.onnx", ["--gpu", "gtx-9999"], "gtx-9999"),
        ("small.onnx", ["--precision", "int8"], "calibration"),
        ("small.onnx", ["--profile", "image=1x1:nonsense"], "profile"),
    ],
)
def test_the_command_line_says_what_is_wrong_and_what_to_do(
    file: str, more: list[str], words: str, farm: LiveFarm, files: Path
) -> None:
    ran = farm.ran("submit", files / file, "--gpu", "tensorrt-rtx:sm_86", *more)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert "\nhint: " in ran.stderr
    assert "Traceback" not in ran.stderr


# Failed by the worker

#: Of each kind one is failed on Postgres: what differs between them ends in the worker's child.
ALIKE = pytest.mark.apart


def failed(farm: LiveFarm, model: str, answer: Any) -> Any:
    assert answer.status_code == 202, answer.text
    view = farm.ended(answer.json()["id"])
    assert view["state"] == "failed"
    assert view["error"]["detail"]
    assert view["error"]["hint"]
    assert view["engines_done"] == 0
    assert engines(farm, model) == []
    return view["error"]


@pytest.mark.parametrize(
    ("file", "format", "code", "words"),
    [
        ("truncated.onnx", "onnx", "invalid-model", "read"),
        pytest.param("custom.onnx", "onnx", "invalid-model", "MagicBlend", marks=ALIKE),
        pytest.param("malicious.pt2", "pt2", "invalid-model", "pickle", marks=ALIKE),
    ],
)
def test_a_model_that_cannot_be_exported_fails_its_build(
    file: str, format: str, code: str, words: str, farm: LiveFarm, files: Path
) -> None:
    model = f"bad-{Path(file).stem}"
    error = failed(farm, model, farm.request(model, files / file, format))
    assert (error["code"], words in error["detail"]) == (code, True), error
    assert not (files / "executed").exists(), "the file's code was run"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (profile("picture", [1, 1, 8, 8], [1, 1, 8, 8], [1, 1, 8, 8]), "picture"),
        pytest.param(profile("image", [1, 64], [1, 64], [8, 64]), "4 axes", marks=ALIKE),
        pytest.param(
            profile("image", [1, 1, 8, 8], [1, 1, 9, 8], [1, 1, 9, 8]), "axis 2", marks=ALIKE
        ),
    ],
)
def test_a_profile_that_does_not_fit_fails_its_build(
    shapes: list[Profile], words: str, farm: LiveFarm, files: Path
) -> None:
    model = "bad-profile"
    error = failed(farm, model, farm.request(model, files / "small.onnx", profiles=shapes))
    assert error["code"] in ("profile-mismatch", "engine-build-failed"), error
    assert words in error["detail"]


def with_nan() -> np.ndarray:
    data = GOOD.copy()
    data[3, 0, 4, 4] = np.nan
    return data


@pytest.mark.parametrize(
    ("case", "arrays", "words"),
    [
        ("names", {"picture": GOOD}, "picture"),
        pytest.param(
            "shapes", {"image": np.zeros((16, 3, 8, 8), np.float32)}, "image", marks=ALIKE
        ),
        pytest.param("dtypes", {"image": (GOOD * 255).astype(np.uint8)}, "uint8", marks=ALIKE),
        pytest.param("nan", {"image": with_nan()}, "finite", marks=ALIKE),
        pytest.param("objects", {"image": np.array([{}, []], dtype=object)}, "read", marks=ALIKE),
        pytest.param("none", {"image": GOOD[:0]}, "sample", marks=ALIKE),
    ],
)
def test_calibration_data_that_do_not_fit_fail_their_build(
    case: str,
    arrays: dict[str, np.ndarray],
    words: str,
    farm: LiveFarm,
    files: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    model = f"bad-data-{case}"
    answer = farm.request(
        model,
        files / "small.onnx",
        precisions=["int8"],
        calibration={"digest": farm.upload(path)},
    )
    error = failed(farm, model, answer)
    assert error["code"] == "invalid-data"
    assert words in error["detail"], error


def test_the_command_line_tells_why_a_build_failed(farm: LiveFarm, files: Path) -> None:
    arguments = ("submit", files / "custom.onnx", "--name", "told", "--gpu", "cpu", "--precision")
    _, err = farm.cli(*arguments, "fp32", "--wait").end(1)
    assert "MagicBlend" in err
    assert "hint: " in err


# Nobody there to do it


def test_a_build_for_a_gpu_that_no_worker_has_says_for_whom_it_waits(
    farm: LiveFarm, files: Path
) -> None:
    build = farm.submit("patient", files / "small.onnx", targets=["tensorrt:sm_90"])

    def waits() -> str | None:
        jobs = {job["kind"]: job for job in farm.build(build["id"])["jobs"]}
        return str(jobs["build"]["waits_for"]) if jobs["build"]["waits_for"] else None

    told = wait_until("the job says for whom it waits", waits)
    assert "GPU sm_90" in told
    assert "tensorrt" in told
    view = farm.build(build["id"])
    assert view["state"] in ("queued", "running")
    cancelled = farm.http.post(f"/v1/builds/{build['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert engines(farm, "patient") == []
