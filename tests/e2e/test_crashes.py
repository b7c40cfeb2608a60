"""Cancelled, killed, starved: the worker goes on, the job is run again, no child is orphaned."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.live import LiveFarm, Process, fork_servers, processes, stages, wait_until, workers
from workers.sandbox import tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("tidy"),
]


def long_build(farm: LiveFarm, files: Path, seed: int, samples: int = 6000) -> Any:
    """A build whose calibration takes a few seconds."""
    data = farm.long_calibration(seed, samples)
    return farm.submit("small", files / "small.onnx", precisions=["int8"], calibration=data)


def only_stage(farm: LiveFarm) -> Process:
    (stage,) = stages(farm.home)
    return stage


def has_gone(farm: LiveFarm, *gone: Process) -> None:
    pids = {process.pid for process in gone}
    wait_until("they have ended", lambda: not pids & {p.pid for p in processes(farm.home)})


def test_cancelling_a_running_build_ends_its_child_and_the_worker_goes_on(
    farm: LiveFarm, files: Path
) -> None:
    build = long_build(farm, files, seed=1, samples=60_000)
    farm.running(build["id"], "calibrate")
    child = only_stage(farm)
    answer = farm.http.post(f"/v1/builds/{build['id']}/cancel").json()
    assert answer["state"] == "cancelled"
    next_build = farm.submit("after-a-cancel", files / "small.onnx")
    has_gone(farm, child)
    assert farm.ended(next_build["id"])["state"] == "succeeded"
    states = {j["kind"]: j["state"] for j in farm.build(build["id"])["jobs"]}
    assert states == {
        "export": "succeeded",
        "calibrate": "cancelled",
        "build": "cancelled",
        "measure": "cancelled",
    }


@pytest.mark.heavy
def test_a_job_whose_fork_server_is_killed_is_run_again(farm: LiveFarm, files: Path) -> None:
    build = long_build(farm, files, seed=2)
    farm.running(build["id"], "calibrate")
    (server,), child = fork_servers(farm.home), only_stage(farm)
    os.kill(server.pid, signal.SIGKILL)
    has_gone(farm, server, child)
    view = farm.ended(build["id"])
    assert view["state"] == "succeeded", view["error"]
    assert {j["kind"]: j["attempt"] for j in view["jobs"]}["calibrate"] == 2


@pytest.mark.heavy
def test_a_job_whose_whole_worker_is_killed_is_run_again(farm: LiveFarm, files: Path) -> None:
    build = long_build(farm, files, seed=3)
    farm.running(build["id"], "calibrate")
    (worker,), child = workers(farm.home), only_stage(farm)
    os.kill(worker.pid, signal.SIGKILL)
    has_gone(farm, worker, child)
    view = farm.ended(build["id"])
    assert view["state"] == "succeeded", view["error"]
    assert {j["kind"]: j["attempt"] for j in view["jobs"]}["calibrate"] == 2


@pytest.mark.heavy
def test_a_job_whose_worker_and_children_are_all_told_to_end_at_once_is_run_again(
    farm: LiveFarm, files: Path
) -> None:
    build = long_build(farm, files, seed=5)
    farm.running(build["id"], "calibrate")
    (worker,), child = workers(farm.home), only_stage(farm)
    # As by a service manager; those hear it first that the worker waits for.
    for pid in (*reversed(tree.below(worker.pid)), worker.pid):
        os.kill(pid, signal.SIGTERM)
    has_gone(farm, worker, child)
    view = farm.ended(build["id"])
    assert view["state"] == "succeeded", view["error"]
    assert {j["kind"]: j["attempt"] for j in view["jobs"]}["calibrate"] == 2


def test_a_cpu_worker_runs_two_jobs_side_by_side(farm: LiveFarm, files: Path) -> None:
    builds = [long_build(farm, files, seed=seed, samples=60_000) for seed in (31, 32, 33)]
    wait_until("two of them run", lambda: len(stages(farm.home)) == 2)
    for build in builds:
        farm.http.post(f"/v1/builds/{build['id']}/cancel").raise_for_status()
    wait_until("they have ended", lambda: not stages(farm.home))


@pytest.mark.heavy
def test_a_stage_that_is_killed_fails_its_build_which_a_retry_finishes(
    farm: LiveFarm, files: Path
) -> None:
    build = long_build(farm, files, seed=4)
    farm.running(build["id"], "calibrate")
    # As for lack of memory. Its guard lives: without one, the job would be tried again.
    for pid in tree.of_job(only_stage(farm).pid):
        os.kill(pid, signal.SIGKILL)
    view = farm.ended(build["id"])
    assert view["state"] == "failed"
    assert view["error"]["code"] == "child-out-of-memory"
    assert view["error"]["hint"]
    farm.http.post(f"/v1/builds/{build['id']}/retry").raise_for_status()
    view = farm.ended(build["id"])
    assert view["state"] == "succeeded", view["error"]
    assert {j["kind"]: j["attempt"] for j in view["jobs"]}["calibrate"] == 2
