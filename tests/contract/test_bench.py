"""Benches over REST: every engine of a GPU built, in one table, with a winner that pulls follow.

The stages are the farm's fakes, with the speeds that a test gives them.
"""

from __future__ import annotations

import hashlib
import io
import zipfile

import pytest

from farm.database.tables import Job
from farm.errors import EngineBuildFailed
from farm.queue import jobs
from farm.queue.jobs import Output
from farm.stages import JobKind
from farm.testing.stages import FakeStages
from tests.ledger import Ledger

HOPPER = ("tensorrt.h100", "aotinductor.sm_90", "onnxruntime.h100")
SETTINGS = {"device": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1"}
#: Median latencies in ms at batch 8, and samples per second at 1 and 32.
SPEEDS = {
    ("tensorrt:h100", "fp16"): (0.5, 1500, 20000),
    ("aotinductor:sm_90", "fp16"): (0.4, 1900, 18000),
    ("onnxruntime:h100", "fp16"): (0.9, 900, 40000),
}


def timed(p50_ms, at_1, at_32, **more):
    return {
        "latency_ms": {"p50": p50_ms},
        "samples_per_s": 8000 / p50_ms,
        "batch": 8,
        "settings": SETTINGS,
        "throughput": [
            {"batch": 1, "samples_per_s": at_1, "latency_p50_ms": 1000 / at_1},
            {"batch": 32, "samples_per_s": at_32, "latency_p50_ms": 32000 / at_32},
        ],
    } | more


def program(name="digits") -> bytes:
    """What looks like a torch.export program."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}/archive_format"), "pt2")
    return content.getvalue()


class Shop:
    """A farm with one GPU worker, whose jobs run fake stages."""

    def __init__(self, ledger: Ledger, folder) -> None:
        self.ledger, self.folder = ledger, folder
        self.speeds = {name: timed(*speed) for name, speed in SPEEDS.items()}
        self.doubts: dict[tuple[str, str], list[str]] = {}
        self.broken: set[tuple[str, str]] = set()

    def run(self) -> list[str]:
        ran = []
        while queue := self.ledger.queued():
            self._run(queue[0])
            ran.append(queue[0].title)
            assert len(ran) < 200
        return ran

    def _run(self, job: Job) -> None:
        claim = self.ledger.claim(job)
        kind, name = JobKind(claim.kind), (job.target, job.precision)
        stages = FakeStages()
        if kind in (JobKind.BUILD, JobKind.CAST) and name in self.broken:
            stages.failures[kind] = EngineBuildFailed("no kernel for Conv c1\nat line 7")
        if kind is JobKind.MEASURE and name in self.speeds:
            facts = {"metrics": self.speeds[name], "metrics_reason": None}
            stages.facts[kind] = facts | {"doubts": self.doubts.get(name, [])}
        workdir = self.folder / str(job.id)
        workdir.mkdir(parents=True)
        try:
            made = stages.run(kind, workdir, claim.params)
        except EngineBuildFailed as err:
            self.ledger.fail(claim, err)
            return
        outputs = {
            role: Output(
                digest=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
                bytes=path.stat().st_size,
            )
            for role, path in made.outputs.items()
        }
        with self.ledger.db.write() as session:
            jobs.succeed(session, job.id, job.attempt, outputs=outputs, facts=dict(made.facts))


@pytest.fixture
def shop(db, tmp_path) -> Shop:
    ledger = Ledger(db)
    ledger.worker("cpu@here", ("cpu",))
    ledger.worker("h100@there", HOPPER, gpu="NVIDIA H100", tags=("h100", "sm_90"))
    return Shop(ledger, tmp_path / "work")


@pytest.fixture
def submit(api):
    def submitted(**changes):
        source = {"digest": api.upload(program()), "format": "pt2"}
        request = {"model": "digits", "source": source, "targets": ["h100"], "bench": {}}
        answer = api.post("/v1/builds", json=request | changes)
        assert answer.status_code == 202, answer.text
        return answer.json()

    return submitted


def table(api, **asked):
    answer = api.get("/v1/models/digits/bench", params={"gpu": "h100"} | asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def row(found, target, precision):
    [one] = [r for r in found["rows"] if (r["target"], r["precision"]) == (target, precision)]
    return one


def pull(api, **asked):
    answer = api.get("/v1/models/digits/engines/h100", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_bench_builds_every_pair_and_tells_what_it_leaves_out(api, shop, submit):
    view = submit()
    pairs = {(one["target"], one["precision"]) for one in view["engines"]}
    assert {target for target, _ in pairs} == {
        "tensorrt:h100", "aotinductor:sm_90", "onnxruntime:h100",
    }  # fmt: skip
    assert view["precisions"] == []
    assert view["bench"] == {"goal": None, "batch": None, "wait_for_workers": False}
    left_out = {(one["target"], each): one["why"] for one in view["left_out"]
                for each in one["precisions"]}  # fmt: skip
    assert left_out["tensorrt:h100", "int8"] == "int8 needs calibration data"
    assert "can't build for sm_90" in left_out["tensorrt-rtx:sm_90", "fp16"]
    assert not pairs & left_out.keys()
    assert api.get(f"/v1/builds/{view['id']}").json()["left_out"] == view["left_out"]
    [listed] = api.get("/v1/builds").json()["items"]
    assert listed["bench"] == view["bench"]


def test_the_table_has_a_winner_under_the_gate_and_each_failure_its_row(api, shop, submit):
    shop.broken = {("tensorrt:h100", "fp32")}
    shop.doubts = {("aotinductor:sm_90", "fp16"): ["its error is 0.9"]}
    view = submit()
    assert table(api)["why"] == "no engine is finished yet"
    assert {one["state"] for one in table(api)["rows"]} <= {"waiting", "queued"}
    shop.run()
    found = table(api)
    best = row(found, "tensorrt:h100", "fp16")
    assert (found["winner"], best["place"]) == (best["engine"], 1)
    assert "fp16 by tensorrt is the fastest of" in found["why"]
    assert "p50 0.5 ms against 0.9 ms, at batch 8" in found["why"]
    assert (best["latency_ms"], best["batch"], best["samples_batch"]) == (0.5, 8, 32)
    doubtful = row(found, "aotinductor:sm_90", "fp16")
    assert (doubtful["state"], doubtful["place"]) == ("doubtful", None)
    assert doubtful["doubts"] == ["its error is 0.9"]
    failed = row(found, "tensorrt:h100", "fp32")
    assert (failed["state"], failed["engine"]) == ("failed", None)
    assert failed["error"]["detail"].startswith("no kernel for Conv c1")
    unmeasured = row(found, "tensorrt:h100", "bf16")
    assert unmeasured["passed_over"] == "it wasn't measured"
    assert found["rows"][0] == best
    assert found["rows"][-1]["state"] == "failed"
    assert api.get(f"/v1/builds/{view['id']}").json()["state"] == "failed"


def test_what_failed_in_an_input_is_told_with_the_cause(api, shop, submit):
    shop.broken = {(None, "fp16")}
    submit(targets=["tensorrt:h100"], precisions=["fp16"])
    shop.run()
    found = table(api)
    assert (found["winner"], found["why"]) == (None, "no engine could be built")
    error = row(found, "tensorrt:h100", "fp16")["error"]
    assert error["code"] == "input-failed"
    assert error["detail"].startswith("cast digits:fp16 failed: no kernel for Conv c1")


@pytest.mark.parametrize(
    ("goal", "winner"),
    [
        ({}, "aotinductor"),
        ({"goal": "latency"}, "aotinductor"),
        ({"goal": "throughput"}, "onnxruntime"),
        ({"goal": "throughput", "batch": 1}, "aotinductor"),
        ({"batch": 32}, "onnxruntime"),
    ],
)
def test_a_pull_follows_the_goal_of_the_bench(api, shop, submit, goal, winner):
    submit(bench=goal, precisions=["fp16"])
    shop.run()
    found, pulled = table(api), pull(api)
    assert pulled["engine"]["runtime"] == winner
    assert found["winner"] == pulled["engine"]["id"]
    assert found["goal"]["followed"] is True
    assert ("the goal kept for h100 is" in pulled["why"]) is bool(goal)


def test_another_goal_can_be_looked_at_without_changing_what_pulls_follow(api, shop, submit):
    submit(bench={"goal": "latency"}, precisions=["fp16"])
    shop.run()
    found = table(api, goal="throughput")
    assert found["goal"] == {"aim": "throughput", "batch": None, "followed": False}
    assert found["winner"] != pull(api)["engine"]["id"]
    assert table(api)["goal"]["aim"] == "latency"


def test_a_requested_runtime_is_pulled_whatever_the_goal_and_a_precision_by_it(api, shop, submit):
    submit(bench={"goal": "throughput"}, precisions=["fp16"])
    shop.run()
    assert pull(api, runtime="tensorrt")["engine"]["runtime"] == "tensorrt"
    taken = pull(api, precision="fp16")
    assert taken["engine"]["runtime"] == "onnxruntime"
    assert "fp16 as requested; fp16 by onnxruntime has the highest throughput" in taken["why"]


def test_a_model_that_the_farm_has_is_benched_with_its_own_data_and_nothing_built_twice(
    api, shop, submit
):
    data = {"digest": api.upload(b"samples")}
    first = submit(
        targets=["tensorrt:h100"], precisions=["fp16", "int8"], bench=None, calibration=data
    )
    shop.run()
    answer = api.post("/v1/models/digits/bench", json={"targets": ["h100"], "goal": "throughput"})
    assert answer.status_code == 202, answer.text
    view = answer.json()
    assert answer.headers["Location"] == f"/v1/builds/{view['id']}"
    assert view["calibration"]["digest"] == data["digest"]
    assert view["version"] == 1
    reused = {job["id"] for job in view["jobs"] if job["reuse"] == "cached"}
    assert {job["id"] for job in first["jobs"]} <= reused
    assert "build digits:fp16@h100" not in {j["title"] for j in view["jobs"] if j["reuse"] == "ran"
                                             and j["runtime"] == "tensorrt"}  # fmt: skip
    shop.run()
    assert table(api)["goal"] == {"aim": "throughput", "batch": None, "followed": True}
    again = api.post("/v1/models/digits/bench", json={"targets": ["h100"]}).json()
    assert again["state"] == "succeeded"
    assert {job["reuse"] for job in again["jobs"]} == {"cached"}
    assert table(api)["goal"]["aim"] == "throughput"


def test_data_given_to_a_bench_of_a_model_stand_in_for_its_own(api, shop, submit):
    submit(precisions=["fp16"])
    data = {"digest": api.upload(b"samples")}
    view = api.post(
        "/v1/models/digits/bench", json={"targets": ["tensorrt:h100"], "calibration": data}
    ).json()
    assert "int8" in {one["precision"] for one in view["engines"]}


def test_a_null_stands_for_what_the_builds_had(api, shop, submit):
    data = {"digest": api.upload(b"samples")}
    submit(calibration=data, options={"tf32": False}, precisions=["fp16"])
    asked = {"targets": ["h100"], "calibration": None, "options": None, "gates": None}
    answer = api.post("/v1/models/digits/bench", json=asked | {"profiles": None, "goal": None})
    assert answer.status_code == 202, answer.text
    assert answer.json()["calibration"]["digest"] == data["digest"]


def test_a_profile_of_an_input_that_the_version_fixes_is_an_error(api, shop, submit):
    submit(fixed_inputs={"sr": 16000}, precisions=["fp16"])
    profile = {"sr": {"min": [1], "opt": [1], "max": [2]}}
    asked = {"targets": ["h100"], "profiles": [profile]}
    answer = api.post("/v1/models/digits/bench", json=asked)
    assert answer.status_code == 422
    assert "a fixed input has no profile" in answer.json()["detail"]


def test_a_retried_bench_keeps_its_pairs_though_other_workers_are_there_now(api, shop, submit):
    view = submit()
    api.post(f"/v1/builds/{view['id']}/cancel")
    shop.ledger.worker("late@there", ("torchscript.cpu", "tensorrt.h200"))
    again = api.post(f"/v1/builds/{view['id']}/retry").json()

    def pairs(of):
        return {(one["target"], one["precision"]) for one in of["engines"]}

    assert pairs(again) == pairs(view)


def test_the_fastest_measured_runtime_is_chosen_where_none_is_named_and_a_retry_keeps_it(
    api, shop, submit
):
    named = submit(precisions=["fp16"], bench=None)
    [want] = named["engines"]
    assert want["target"] == "tensorrt:h100"
    assert "first of tensorrt, tensorrt-rtx, aotinductor, onnxruntime" in want["why"]
    api.post(f"/v1/builds/{named['id']}/cancel")
    submit(precisions=["fp16"])
    shop.run()
    source = {"digest": api.upload(program("next")), "format": "pt2"}
    [want] = submit(source=source, precisions=["fp16"], bench=None)["engines"]
    assert want["target"] == "aotinductor:sm_90"
    assert "measured of version 1: fp16 by aotinductor is the fastest" in want["why"]
    assert "p50 0.4 ms against 0.5 ms" in want["why"]
    [kept] = api.post(f"/v1/builds/{named['id']}/retry").json()["engines"]
    assert kept["target"] == "tensorrt:h100"


def test_without_precisions_only_a_bench_is_accepted(api, submit):
    source = {"digest": api.upload(program()), "format": "pt2"}
    answer = api.post("/v1/builds", json={"model": "m", "source": source, "targets": ["h100"]})
    assert answer.status_code == 422
    assert "name at least one, or pass `bench`" in answer.json()["detail"]


def test_a_bench_of_which_nothing_is_left_leaves_nothing(api):
    source = {"digest": api.upload(program()), "format": "pt2"}
    request = {"model": "m", "source": source, "targets": ["h100"], "bench": {}}
    answer = api.post("/v1/builds", json=request)
    assert answer.status_code == 422
    assert "no online worker can build it" in answer.json()["detail"]
    assert api.get("/v1/models/m").status_code == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_model_or_version_that_there_is_not_is_not_found(api, submit, shop, method):
    asked = {"params": {"gpu": "h100"}} if method == "GET" else {"json": {"targets": ["h100"]}}
    answer = api.request(method, "/v1/models/nothing/bench", **asked)
    assert answer.status_code == 404
    submit()
    key = "params" if method == "GET" else "json"
    asked[key] |= {"version": 7}
    answer = api.request(method, "/v1/models/digits/bench", **asked)
    assert answer.status_code == 404
    assert "has no version 7" in answer.json()["detail"]


def test_a_repeat_with_the_same_key_returns_the_first_bench(api, shop, submit):
    submit()
    asked = {"json": {"targets": ["h100"]}, "headers": {"Idempotency-Key": "once"}}
    first = api.post("/v1/models/digits/bench", **asked).json()
    assert api.post("/v1/models/digits/bench", **asked).json()["id"] == first["id"]
