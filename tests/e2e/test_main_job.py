"""The main job: one model, submitted by the command line, to verified engines for every GPU."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from farm.cli import exits
from farm.formats.rtx_header import parse_header
from tests import loaded
from tests.e2e.conftest import QUICK
from tests.e2e.live import LiveFarm, wait_until

pytestmark = pytest.mark.slow

GPUS = ("sm_86", "sm_89", "sm_120")
RTX = ",".join(f"tensorrt-rtx:{gpu}" for gpu in GPUS)


def options(files: Path, gpu: str, precision: str) -> list[str | Path]:
    return [
        "submit", files / "digits.pt2", "--gpu", gpu, "--precision", precision,
        "--calibration", files / "calibration.npz", "--evaluation", files / "evaluation.npz",
        "--metric", "top1", "--max-drop", "0.05", "--json",
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Built:
    gpu: Any
    cpu: Any
    engines: dict[tuple[str, str], Any]  #: (gpu, precision) → a row of the registry
    pulled: dict[str, tuple[Path, Path]]  #: engine's id → its file and its manifest

    @property
    def jobs(self) -> dict[int, Any]:
        return {job["id"]: job for view in (self.gpu, self.cpu) for job in view["jobs"]}


@pytest.fixture(scope="module")
def built(farm: LiveFarm, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both builds of the digits, submitted at the same time, and their engines, pulled."""
    commands = [
        farm.cli(*options(files, RTX, "fp16,int8"), "--wait"),
        farm.cli(*options(files, "cpu", "fp32,int8"), "--wait"),
    ]
    gpu, cpu = (command.json() for command in commands)
    folder = tmp_path_factory.mktemp("my engines")
    pulls = [
        farm.cli("pull", "digits", "--gpu", ",".join(GPUS), "--precision", "fp16,int8",
                 "-o", folder, "--json"),
        farm.cli("pull", "digits", "--gpu", "cpu", "--precision", "fp32,int8",
                 "-o", folder, "--json"),
    ]  # fmt: skip
    pulled = [one for pull in pulls for one in pull.json()]
    return Built(
        gpu=gpu,
        cpu=cpu,
        engines={
            (one["engine"]["gpu"], one["engine"]["precision"]): one["engine"] for one in pulled
        },
        pulled={one["engine"]["id"]: (Path(one["path"]), Path(one["manifest"])) for one in pulled},
    )


def test_every_engine_that_was_asked_for_is_built_and_pulled(built: Built, farm: LiveFarm) -> None:
    assert (built.gpu["state"], built.cpu["state"]) == ("succeeded", "succeeded")
    asked = {(gpu, precision) for gpu in GPUS for precision in ("fp16", "int8")}
    assert set(built.engines) == asked | {("cpu", "fp32"), ("cpu", "int8")}
    assert farm.get("/v1/models/digits")["versions"][0]["engines"] == len(built.engines)


def test_one_export_and_one_cast_serve_every_engine_and_one_calibration_all_gpus(
    built: Built,
) -> None:
    # Integers on a CPU are another form of the graph: its own build keeps the accuracy in that one.
    kinds = Counter(job["kind"] for job in built.jobs.values())
    assert kinds == {"export": 1, "cast": 1, "calibrate": 2, "build": 8, "measure": 4}
    assert all(job["attempt"] == 1 for job in built.jobs.values())


def test_a_pulled_engine_is_what_the_registry_says_it_is(built: Built) -> None:
    for engine in built.engines.values():
        content = built.pulled[engine["id"]][0].read_bytes()
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == engine["digest"]
        assert len(content) == engine["bytes"]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engines_header_agrees_with_its_row(gpu: str, precision: str, built: Built) -> None:
    engine = built.engines[gpu, precision]
    header = parse_header(built.pulled[engine["id"]][0].read_bytes())
    assert header.compute_capabilities == (gpu,)
    assert header.bytes == engine["bytes"]
    version = engine["runtime_version"]
    assert engine["runtime"] == "tensorrt-rtx"
    assert f"{header.version}.".startswith(f"{version}.") or f"{version}.".startswith(
        f"{header.version}."
    )
    assert engine["toolchain"]["tensorrt-rtx"] == version


def test_the_manifest_beside_an_engine_traces_it_to_its_source(built: Built, files: Path) -> None:
    source = f"sha256:{hashlib.sha256((files / 'digits.pt2').read_bytes()).hexdigest()}"
    for engine in built.engines.values():
        manifest = json.loads(built.pulled[engine["id"]][1].read_text())
        assert manifest["engine"] == engine
        assert engine["source_digest"] == source
        built_by = built.jobs[manifest["provenance"]["build"]["job"]]
        assert built_by["key"] == manifest["provenance"]["build"]["key"]
        assert manifest["provenance"]["measure"]["recipe"]["inputs"]["source"] == source


def test_the_onnx_on_the_way_to_an_engine_is_pulled_for_machines_without_one(
    built: Built, farm: LiveFarm, tmp_path: Path
) -> None:
    _, told = farm.cli("pull", "digits", "--gpu", "h100", "-o", tmp_path).end(exits.NOT_FOUND)
    assert "farm pull digits --onnx has its ONNX for elsewhere" in " ".join(told.split())
    asked = ("pull", "digits", "--onnx", "--precision", "int8", "-o", tmp_path, "--json")
    [pulled] = farm.says(*asked)
    graph = onnx.load(pulled["path"]).graph
    assert Path(pulled["path"]).name == pulled["onnx"]["file_name"]
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert pulled["onnx"]["build"].startswith(f"trtexec --onnx={pulled['onnx']['file_name']}")
    [again] = farm.says(*asked)
    assert (pulled["fresh"], again["fresh"]) == (True, False)


def test_a_build_is_pulled_whole_and_its_engines_run_as_their_manifests_say(
    built: Built, farm: LiveFarm, files: Path, tmp_path: Path
) -> None:
    made = farm.says("pull", "--build", built.cpu["id"], "-o", tmp_path)
    assert made["missing"] == []
    data = np.load(files / "evaluation.npz")
    for one in made["pulled"]:
        engine = one["engine"]
        assert built.engines["cpu", engine["precision"]] == engine
        [again] = farm.says("pull", engine["id"], "-o", tmp_path)
        assert (again["path"], again["load"], again["fresh"]) == (one["path"], one["load"], False)
        [scores] = loaded.run_with(one["load"], {"image": data["image"]}, tmp_path).values()
        right = float((scores.argmax(1) == data["label"]).mean())
        assert right == pytest.approx(engine["accuracy"]["task"]["engine"])


def test_an_engine_that_runs_on_no_gpu_here_says_so_instead_of_inventing_figures(
    built: Built,
) -> None:
    for gpu in GPUS:
        engine = built.engines[gpu, "int8"]
        assert engine["accuracy"]["measured_on"] == "typed-onnx"
        assert engine["metrics"] is None
        assert engine["metrics_reason"]


def test_every_engine_computes_in_the_type_that_it_is_called_by(
    built: Built, farm: LiveFarm
) -> None:
    for (gpu, precision), engine in built.engines.items():
        types = engine["compute"]["types"]
        # What a CPU computes faster in floats stays there.
        least = 0.9 if (gpu, precision) == ("cpu", "int8") else 0.98
        assert types[precision]["share"] > least, (gpu, precision, types)
        report = farm.says("inspect", engine["id"])
        assert report["compute"] == engine["compute"]
        assert len(report["layers"]) > len(report["products"]) == 5


def test_int8_is_shown_beside_its_twin(built: Built, farm: LiveFarm) -> None:
    listed = {(e["gpu"], e["precision"]): e for e in farm.says("engines", "digits")}
    for gpu, wider in [*((gpu, "fp16") for gpu in GPUS), ("cpu", "fp32")]:
        against = listed[gpu, "int8"]["against"]
        assert against["engine"] == built.engines[gpu, wider]["id"]
        # On a busy machine there is no ratio on a CPU either, and the reason instead.
        assert (against["latency_ratio"] is None) == bool(against["latency_reason"])
        assert gpu == "cpu" or against["latency_ratio"] is None
        assert abs(against["task_drop"]) < 0.02


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cpu_engine_gives_the_recorded_accuracy(
    precision: str, built: Built, files: Path
) -> None:
    import onnxruntime
    import torch

    engine = built.engines["cpu", precision]
    data = np.load(files / "evaluation.npz")
    session = onnxruntime.InferenceSession(str(built.pulled[engine["id"]][0]))
    chosen = session.run(None, {"image": data["image"]})[0].argmax(1)
    source = torch.export.load(files / "digits.pt2").module()
    with torch.no_grad():
        expected = source(torch.from_numpy(data["image"])).numpy().argmax(1)
    accuracy, task = engine["accuracy"], engine["accuracy"]["task"]
    assert accuracy["measured_on"] == "engine"
    assert accuracy["samples"] == len(chosen)
    assert accuracy["top1_agreement"] == pytest.approx((chosen == expected).mean())
    assert task["engine"] == pytest.approx((chosen == data["label"]).mean())
    assert task["source"] == pytest.approx((expected == data["label"]).mean())
    assert task["engine"] > 0.9
    assert engine["metrics"]["latency_ms"]["p50"] > 0
    taken = engine["metrics"]["settings"]["latency"]["duration_s"]
    assert taken == QUICK["cpu_timing_share"]  # of the usual second


def test_the_same_build_again_has_succeeded_at_once(
    built: Built, farm: LiveFarm, files: Path
) -> None:
    again = farm.says(*options(files, RTX, "fp16,int8"))
    assert again["id"] != built.gpu["id"]
    assert again["state"] == "succeeded"
    assert {job["reuse"] for job in again["jobs"]} == {"cached"}
    ids = {want["engine"] for want in built.gpu["engines"]}
    assert {want["engine"] for want in again["engines"]} == ids
    why = farm.says("explain", again["id"])
    assert all("already succeeded" in job["why"] for job in why["jobs"])


def events(farm: LiveFarm, build_id: str) -> list[Any]:
    with farm.http.stream("GET", f"/v1/builds/{build_id}/events") as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data:")]
    return [json.loads(line.removeprefix("data:")) for line in lines]


def test_the_events_of_a_build_come_in_order_and_end_with_it(built: Built, farm: LiveFarm) -> None:
    found = events(farm, built.gpu["id"])
    assert [event["id"] for event in found] == sorted(event["id"] for event in found)
    states = [event["state"] for event in found if event["kind"] == "build"]
    assert states == ["queued", "running", "succeeded"]
    assert found[-1]["state"] == "succeeded"
    for job in built.gpu["jobs"]:
        own = [event for event in found if event["job"] == job["id"]]
        lived = [event["state"] for event in own if event["kind"] == "job"]
        assert job["reuse"] != "ran" or lived[-3:-1] == ["queued", "running"]
        # Of a job that another build started the stream tells what came after the submission.
        course = ["waiting", "queued", "running", "succeeded"]
        assert lived == course[-len(lived) :] if lived else job["reuse"] == "cached"


def test_the_logs_of_a_build_hold_what_its_stages_printed(built: Built, farm: LiveFarm) -> None:
    text = farm.cli("logs", built.gpu["id"]).end()[0]
    assert "=== calibrate digits:int8\n" in text
    calibrate = next(job for job in built.gpu["jobs"] if job["kind"] == "calibrate")
    own = farm.cli("logs", built.gpu["id"], "--job", str(calibrate["id"])).end()[0]
    assert len(own) > 100
    assert own in text


def test_explain_names_what_differs_from_the_nearest_job(built: Built, farm: LiveFarm) -> None:
    why = farm.get(f"/v1/builds/{built.gpu['id']}/explain")
    reasons = {job["title"]: job for job in why["jobs"]}
    assert reasons["export digits"]["reuse"] in ("ran", "joined")
    why_89 = reasons["build digits:fp16@sm_89"]["why"]
    assert "target tensorrt-rtx:sm_86 → tensorrt-rtx:sm_89" in why_89


def test_flower_shows_the_worker_and_every_job_by_its_title(built: Built, farm: LiveFarm) -> None:
    online = [worker["name"] for worker in farm.get("/v1/workers") if worker["online"]]
    assert set(farm.flower("/api/workers?refresh=true")) == set(online)

    def finished() -> bool:
        tasks = farm.flower("/api/tasks").values()
        states = {task["name"]: task["state"] for task in tasks}
        return all(states.get(job["title"]) == "SUCCESS" for job in built.jobs.values())

    wait_until("Flower has seen every job end", finished)
    shown = {task["name"]: task for task in farm.flower("/api/tasks").values()}
    task = shown["build digits:int8@sm_89"]
    job = next(job for job in built.jobs.values() if job["title"] == task["name"])
    assert (task["job"], task["attempt"], task["key"]) == (job["id"], 1, job["key"][7:19])
    assert task["worker"] == job["worker"]


def test_the_metrics_tell_of_the_work_of_real_workers(built: Built, farm: LiveFarm) -> None:
    kinds = Counter(job["kind"] for job in built.jobs.values())

    def told() -> dict[str, float]:
        text = farm.http.get("/metrics").raise_for_status().text
        lines = (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
        return {series: float(value) for series, _, value in lines}

    def tells_all() -> bool:
        found = told()  # scrapes share what was read a few seconds ago
        is_counted = 'farm_store_bytes{kind="engines"}' in found
        return is_counted and all(
            found[f'farm_jobs_ended_total{{code="",kind="{kind}",state="succeeded"}}'] >= number
            for kind, number in kinds.items()
        )

    wait_until("the ended jobs and the store are counted", tells_all)
    found = told()
    for kind, number in kinds.items():
        assert found[f'farm_job_attempts_total{{kind="{kind}"}}'] >= number
        timed = f'farm_job_duration_seconds_sum{{kind="{kind}",state="succeeded"}}'
        assert found[timed] > 0
    assert found['farm_queue_workers{gpu="cpu",queue="cpu",runtime=""}'] >= 1
    assert found['farm_workers{state="silent"}'] == 0
