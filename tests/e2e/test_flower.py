"""Flower of a running farm: one row an attempt, in the database's state, with links to the farm's pages."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm.local.up import free_port
from farm.queue import shown
from tests.e2e.live import LiveFarm, wait_until, workers
from tests.keys import bearer

pytestmark = pytest.mark.slow

NAME = "flower.x_1-y"


def task(farm: LiveFarm, job: Any, attempt: int = 1) -> Any:
    """An attempt's task once Flower has it."""
    uuid = shown.task_id(job["id"], attempt)
    return wait_until(f"Flower has {uuid}", lambda: farm.flower("/api/tasks").get(uuid))


def settled(farm: LiveFarm, job: Any, state: str, attempt: int = 1) -> Any:
    """An attempt's task once it is in this state, and the build known that it is for."""

    def look() -> Any:
        found = task(farm, job, attempt)
        return found if found["state"] == state and found["build"] else None

    return wait_until(f"attempt {attempt} of {job['title']} is {state}", look)


def page(farm: LiveFarm, path: str) -> httpx2.Response:
    url = f"{farm.addresses.flower}{path}"
    return httpx2.get(url, headers=bearer(farm.key), timeout=120).raise_for_status()


def rows(farm: LiveFarm, search: str) -> list[Any]:
    """What the task list shows."""
    query = {"draw": 1, "start": 0, "length": 50, "search[value]": search,
             "order[0][column]": 0, "columns[0][data]": "received"}  # fmt: skip
    url = f"{farm.addresses.flower}/tasks/datatable"
    answer = httpx2.get(url, params=query, headers=bearer(farm.key), timeout=120)
    return answer.raise_for_status().json()["data"]


@pytest.fixture(scope="module")
def done(farm: LiveFarm, files: Path) -> Any:
    build = farm.submit(NAME, files / "small.onnx", targets=["tensorrt-rtx:sm_75"])
    return farm.ended(build["id"])


@pytest.fixture(scope="module")
def failed(farm: LiveFarm, files: Path) -> Any:
    build = farm.submit(NAME, files / "custom.onnx", targets=["tensorrt-rtx:sm_75"])
    return farm.ended(build["id"])


def test_a_row_names_the_build_the_version_and_the_jobs_page(done: Any, farm: LiveFarm) -> None:
    assert done["state"] == "succeeded", done["error"]
    for job in done["jobs"]:
        found = settled(farm, job, "SUCCESS", job["attempt"])
        assert found["name"] == job["title"]
        assert (found["job"], found["attempt"], found["stage"]) == (job["id"], 1, job["kind"])
        if job["reuse"] == "ran":
            assert (found["build"], found["model"]) == (done["id"], f"{NAME}@1")
            assert found["build_page"] == f"{farm.addresses.api}/builds/{done['id']}"
        assert found["job_page"] == f"{farm.addresses.api}/jobs/{job['id']}"
        assert found["worker"] == job["worker"]
    build = next(job for job in done["jobs"] if job["kind"] == "build")
    found = settled(farm, build, "SUCCESS")
    assert found["gpu"] == "sm_75"
    # Of another build, if another module's has run it before.
    assert build["id"] in {row["job"] for row in rows(farm, found["build"])}


def test_a_failed_attempt_is_red_and_says_what_failed(failed: Any, farm: LiveFarm) -> None:
    assert failed["state"] == "failed"
    job = next(job for job in failed["jobs"] if job["state"] == "failed" and job["worker"])
    found = settled(farm, job, "FAILURE")
    assert found["exception"].startswith(f"{job['error']['code']}: {job['error']['detail']}"[:200])
    html = page(farm, f"/task/{found['uuid']}").text
    assert 'text-bg-danger">FAILURE</span>' in html
    assert job["error"]["code"] in html
    assert f"{farm.addresses.api}/jobs/{job['id']}" in html
    assert not re.search("Traceback", html)
    (log,) = (farm.home / "logs").glob("workers.log")
    assert "raised expected" in log.read_text()


def test_what_never_ran_has_no_row(failed: Any, farm: LiveFarm) -> None:
    never = [job for job in failed["jobs"] if not job["worker"]]
    assert never
    tasks = farm.flower("/api/tasks")
    assert not {shown.task_id(job["id"], 1) for job in never} & tasks.keys()


def test_the_pages_bring_the_script_that_makes_links(done: Any, farm: LiveFarm) -> None:
    for path in ("/tasks", f"/task/{shown.task_id(done['jobs'][0]['id'], 1)}"):
        assert '<script src="/links.js"' in page(farm, path).text
    answer = page(farm, "/links.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "job_page" in answer.text


def test_its_metrics_name_stages_and_no_titles(done: Any, failed: Any, farm: LiveFarm) -> None:
    def told() -> tuple[str, set[str]]:
        text = page(farm, "/metrics").text
        return text, set(re.findall(r'flower_events_total\{.*type="(task-[a-z]+)"', text))

    heard = {"task-sent", "task-succeeded", "task-failed"}
    wait_until("it has heard of them", lambda: heard <= told()[1])
    text, kinds = told()
    named = set(re.findall(r'task="([^"]*)"', text))
    assert {"export", "build"} <= named
    assert named <= {"prune", "export", "cast", "calibrate", "build", "measure", "infer", "other"}
    assert NAME not in text
    known = "sent received started progress succeeded failed revoked".split()
    assert kinds <= {f"task-{kind}" for kind in known}


def test_the_broker_page_lists_the_queues_of_absent_gpus(farm: LiveFarm, files: Path) -> None:
    # A GPU with a name of its own has a queue once a job waits for it.
    wait = farm.submit(NAME, files / "small.onnx", targets=["onnxruntime:h200"])
    listed = {queue["name"]: queue for queue in farm.flower("/api/queues/length")["active_queues"]}
    assert {"cpu", "tensorrt.sm_90", "tensorrt-rtx.sm_120", "onnxruntime.sm_75"} <= listed.keys()
    assert listed["cpu"]["consumers"] == 1
    assert listed["tensorrt.sm_90"]["consumers"] == 0
    assert "tensorrt.sm_90" in page(farm, "/broker").text

    def waits() -> Any:
        found = farm.flower("/api/queues/length")["active_queues"][0]
        return found if found["name"] == "onnxruntime.h200" else None

    first = wait_until("the queue without a worker comes first", waits)
    assert first["consumers"] == 0
    assert first["messages_ready"] == 1
    farm.http.post(f"/v1/builds/{wait['id']}/cancel").raise_for_status()
    (job,) = (job for job in farm.build(wait["id"])["jobs"] if job["kind"] == "build")
    assert "worker" not in settled(farm, job, "REVOKED")


@contextmanager
def another_flower(farm: LiveFarm) -> Iterator[str]:
    """A Flower that has just been started."""
    port = free_port()
    with (farm.home / "logs" / "another-flower.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "farm", "flower", "--port", str(port)],
            env=os.environ | farm.settings.environment(),
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


@pytest.mark.heavy
def test_an_attempt_whose_worker_was_killed_turns_red_and_history_outlasts_flower(
    done: Any, failed: Any, farm: LiveFarm, files: Path
) -> None:
    data = farm.long_calibration(91, 60_000)
    build = farm.submit(NAME, files / "small.onnx", precisions=["int8"], calibration=data)
    job = farm.running(build["id"], "calibrate")
    settled(farm, job, "STARTED")
    wait_until("its progress is shown", lambda: task(farm, job)["kwargs"])
    uuid, name = shown.task_id(job["id"], 1), task(farm, job)["worker"]

    def active() -> Any:
        told = farm.flower(f"/api/workers?refresh=true&workername={name}")[name]
        return [(one["id"], one["name"]) for one in told.get("active", ())]

    wait_until("the worker says so", lambda: active() == [(uuid, job["title"])])
    (worker,) = workers(farm.home)
    os.kill(worker.pid, signal.SIGKILL)
    found = settled(farm, job, "FAILURE")
    assert re.fullmatch(r"interrupted: worker cpu@\S+ let its lease expire", found["exception"])
    with another_flower(farm) as url:

        def shows() -> Any:
            try:
                return httpx2.get(f"{url}/api/tasks", headers=bearer(farm.key), timeout=120).json()
            except httpx2.TransportError:
                return None

        wanted = [(job, 1, "FAILURE"), *((one, 1, "SUCCESS") for one in done["jobs"])]
        ids = {shown.task_id(one["id"], attempt): state for one, attempt, state in wanted}
        wait_until("it shows what was before it", lambda: ids.keys() <= (shows() or {}).keys())
        told = shows()
        assert {uuid: told[uuid]["state"] for uuid in ids} == ids
        assert told[shown.task_id(job["id"], 1)]["exception"] == found["exception"]
        assert all(told[shown.task_id(one["id"], 1)]["runtime"] > 0 for one in done["jobs"])
    farm.running(build["id"], "calibrate")
    farm.http.post(f"/v1/builds/{build['id']}/cancel").raise_for_status()
    assert settled(farm, job, "REVOKED", attempt=2)["worker"]
