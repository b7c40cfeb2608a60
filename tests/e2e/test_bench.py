"""A bench with the real stages, on a CPU: every engine measured, and a winner that a pull takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.live import LiveFarm

pytestmark = pytest.mark.slow


@pytest.fixture
def farm(pages: LiveFarm) -> LiveFarm:
    return pages


def test_a_bench_on_a_cpu_has_a_winner_that_a_pull_takes(
    farm: LiveFarm, files: Path, tmp_path: Path
) -> None:
    found = farm.says(
        "bench", files / "digits.pt2", "--name", "benched", "--gpu", "cpu", "--goal", "throughput",
        "--calibration", files / "calibration.npz", "--evaluation", files / "evaluation.npz",
        "--metric", "top1", "--precision", "fp32,int8,int8-dynamic",
    )  # fmt: skip
    rows = {(row["runtime"], row["precision"]): row for row in found["rows"]}
    there = [("onnxruntime", one) for one in ("fp32", "int8", "int8-dynamic")]
    assert {*there, ("torchscript", "fp32")} <= rows.keys()
    assert all(row["engine"] or row["error"] for row in rows.values())
    left_out = {one["target"]: one["why"] for one in found["left_out"]}
    assert "run" in left_out["tensorrt:cpu"]
    won = next(row for row in found["rows"] if row["engine"] == found["winner"])
    assert won["samples_per_s"] > 0
    shown = farm.says("bench", "benched", "--gpu", "cpu", "--no-build")
    assert shown["winner"] == found["winner"]
    [pulled] = farm.says("pull", "benched", "--gpu", "cpu", "-o", tmp_path)
    assert pulled["engine"]["id"] == found["winner"]
    assert "the goal kept for cpu is throughput" in pulled["why"]
    again = farm.says("bench", "benched", "--gpu", "cpu", "--precision", "fp32,int8")
    jobs = farm.get(f"/v1/builds/{again['build']}")["jobs"]
    assert {job["reuse"] for job in jobs} == {"cached"}  # what is there isn't built again
