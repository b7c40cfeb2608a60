"""What is expected of builds: of a dry run, which leaves nothing behind, and of one that runs."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import onnx
import pytest
from sqlalchemy import event, select, update
from typer.testing import CliRunner

from farm.cli import app, bench, exits, submit
from farm.client import Farm
from farm.database.base import Base, now
from farm.database.tables import Artifact, Job
from farm.specs.scopes import Scope
from tests.contract.conftest import REQUEST, Api, OverTheApi, request
from tests.keys import a_key
from tests.ledger import Ledger

DRY = {"dry_run": True}
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
ABSENT = "sha256:" + "9" * 64


def slots(api: Api, db, number: int) -> Ledger:
    """Have one CPU worker online, which runs so many jobs at once."""
    ledger = Ledger(db)
    ledger.worker(slots=number)
    api.app.state.services._known_fleet = None
    return ledger


@pytest.fixture
def online(api, db) -> Ledger:
    return slots(api, db, 1)


def everything(db) -> dict[str, list]:
    """All rows of all tables, but for when keys were used."""
    found = {}
    with db.read() as session:
        for name, table in Base.metadata.tables.items():
            columns = [column for column in table.c if column.name != "last_used_at"]
            found[name] = sorted(map(repr, session.execute(select(*columns))))
    return found


def dry(api: Api, asked, **query):
    answer = api.post("/v1/builds", json=asked, params=DRY | query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_kind(told) -> dict[str, dict]:
    return {job["kind"]: job for job in told["jobs"]}


def took(db, seconds: float, **facts) -> None:
    """Have all jobs that ran taken so long."""
    with db.write() as session:
        ended = now()
        session.execute(
            update(Job)
            .where(Job.facts.is_not(None))
            .values(started_at=ended - timedelta(seconds=seconds), finished_at=ended)
        )
        for job in session.scalars(select(Job).where(Job.facts.is_not(None))):
            job.facts = job.facts | facts


@pytest.mark.parametrize("is_known", [False, True], ids=["a new model", "a model it has"])
def test_nothing_is_left_behind(api, db, store, online, made, is_known):
    if is_known:
        made()
    asked = request(api, precisions=["fp16", "fp32"], labels={"team": "vision"}, note="a try")
    before, files = everything(db), {file.digest for file in store.blobs()}
    told = dry(api, asked)
    assert (told["version"], told["is_new_version"]) == (1, not is_known)
    assert [job["title"] for job in told["jobs"] if job["reuse"] == "ran"]
    assert everything(db) == before
    assert {file.digest for file in store.blobs()} == files


def test_an_idempotency_key_stays_free(api, online):
    asked = request(api)
    key = {"Idempotency-Key": "once"}
    assert api.post("/v1/builds", json=asked, params=DRY, headers=key).status_code == 200
    other = asked | {"precisions": ["fp32"]}
    assert api.post("/v1/builds", json=other, headers=key).status_code == 202


def test_jobs_are_told_in_order_with_what_they_take(api, online):
    told = dry(api, request(api))
    assert [job["title"] for job in told["jobs"]] == [
        "export digits",
        "cast digits:fp16",
        "build digits:fp16@sm_89",
        "measure digits:fp16",
    ]
    jobs = by_kind(told)
    assert jobs["cast"]["after"] == [jobs["export"]["key"]]
    assert jobs["build"]["queue"] == "tensorrt-rtx.cpu"
    [engine] = told["engines"]
    assert (engine["target"], engine["is_new"]) == ("tensorrt-rtx:sm_89", True)


def test_the_submission_does_what_was_told(api, online):
    asked = request(api, precisions=["fp16", "fp32"])
    told = dry(api, asked)
    done = api.post("/v1/builds", json=asked).json()
    assert [(job["key"], job["reuse"]) for job in done["jobs"]] == [
        (job["key"], job["reuse"]) for job in told["jobs"]
    ]
    assert (done["model"], done["version"]) == (told["model"], told["version"])


def test_without_history_the_time_is_unknown(api, online):
    told = dry(api, request(api))
    assert [job["forecast"] for job in told["jobs"]] == [None] * 4
    assert told["wall"] == {"took": None, "is_least": True, "unknown": 4, "stuck": 0}


def test_what_has_succeeded_is_reused_and_takes_no_time(api, online, made):
    made()
    told = dry(api, request(api))
    assert {(job["reuse"], job["state"]) for job in told["jobs"]} == {("cached", "succeeded")}
    assert [engine["is_new"] for engine in told["engines"]] == [False]
    assert told["queues"] == []
    assert told["wall"]["took"]["expected"] == 0
    assert not told["wall"]["is_least"]


def test_what_is_on_its_way_is_joined(api, online):
    asked = request(api)
    build = api.post("/v1/builds", json=asked).json()
    online.claim_next()
    told = dry(api, asked)
    assert [(job["reuse"], job["state"]) for job in told["jobs"]] == [
        ("joined", "running"),
        ("joined", "waiting"),
        ("joined", "waiting"),
        ("joined", "waiting"),
    ]
    assert [job["job"] for job in told["jobs"]] == [job["id"] for job in build["jobs"]]
    assert [queue["ahead"] for queue in told["queues"]] == [0, 0]


def test_like_jobs_tell_time_and_memory(api, db, online, made):
    made()
    took(db, 8.0, peak_memory_bytes=5_000_000_000)
    source = {"digest": api.upload(b"a model, a bit larger"), "format": "onnx"}
    told = dry(api, REQUEST | {"source": source})
    assert told["version"] == 2
    for job in told["jobs"]:
        assert job["forecast"] == {
            "jobs": 1,
            "took": {"expected": 8.0, "low": None, "high": None},
            "peak_memory": {"expected": 5_000_000_000, "low": None, "high": None},
        }
    assert told["wall"]["took"]["expected"] == 32.0
    assert not told["wall"]["is_least"]
    slots(api, db, 2)
    # An export, a cast, and then the build beside the measurement of the typed graph.
    told = dry(api, REQUEST | {"source": source})
    assert told["wall"]["took"]["expected"] == 24.0


def test_jobs_of_much_larger_sources_tell_nothing(api, db, online, made):
    made()
    with db.write() as session:
        session.execute(update(Job).values(source_bytes=2**30))
    source = {"digest": api.upload(b"another model"), "format": "onnx"}
    told = dry(api, REQUEST | {"source": source})
    assert [job["forecast"] for job in told["jobs"]] == [None] * 4


def test_jobs_whose_outputs_were_deleted_still_tell(api, db, online, made):
    made()
    took(db, 8.0)
    assert api.request("DELETE", "/v1/models/digits").is_success
    told = dry(api, request(api))
    assert {job["reuse"] for job in told["jobs"]} == {"ran"}
    assert [job["forecast"]["took"]["expected"] for job in told["jobs"]] == [8.0] * 4


def test_a_gpu_without_a_worker_is_named(api, online):
    told = dry(api, request(api, targets=["tensorrt:h200", "tensorrt-rtx:sm_89"]))
    stuck = {job["title"]: job["waits_for"] for job in told["jobs"] if job["waits_for"]}
    assert set(stuck) == {"build digits:fp16@h200", "measure digits:fp16@h200"}
    assert "a worker with a GPU h200" in stuck["build digits:fp16@h200"]
    queues = {queue["queue"]: queue for queue in told["queues"]}
    gpu = queues["tensorrt.h200"]
    assert (gpu["jobs"], gpu["workers"], gpu["starts_s"]) == (2, 0, None)
    assert gpu["waits_for"] == stuck["build digits:fp16@h200"]
    assert queues["cpu"]["waits_for"] is None
    assert told["wall"]["stuck"] == 2
    assert told["wall"]["is_least"]


def test_jobs_ahead_are_counted_with_whose_they_are_and_how_long_they_take(api, db, online, made):
    made()
    took(db, 10.0)

    def submitted(key, number, **more):
        source = {"digest": api.upload(b"model %d" % number), "format": "onnx"}
        asked = REQUEST | {"source": source} | more
        assert Api(api.app, key).post("/v1/builds", json=asked).status_code == 202

    other, mine = (a_key(db, Scope.READ, Scope.SUBMIT, name=name) for name in ("ci", "mine"))
    submitted(other, 1, priority=9)
    submitted(mine, 2)
    submitted(other, 3, priority=1)
    source = {"digest": api.upload(b"model 4"), "format": "onnx"}
    told = dry(Api(api.app, mine), REQUEST | {"source": source})
    cpu = next(queue for queue in told["queues"] if queue["queue"] == "cpu")
    # An export, a cast and a measurement of each: 9 and 5 come before this 5, 1 doesn't.
    assert (cpu["ahead"], cpu["more_urgent"], cpu["own"]) == (6, 3, 3)
    # Two builds of four jobs of 10 s, one after the other, and then its own.
    assert cpu["starts_s"] == 80.0
    assert told["wall"]["took"]["expected"] == 120.0
    # Of as many turns the one that began first comes first.
    urgent = dry(Api(api.app, mine), REQUEST | {"source": source, "priority": 9})
    cpu = next(queue for queue in urgent["queues"] if queue["queue"] == "cpu")
    assert (cpu["ahead"], cpu["more_urgent"], cpu["own"]) == (3, 0, 0)


def test_a_source_needs_no_upload(api, db, online, made):
    made()
    took(db, 8.0)
    asked = REQUEST | {"source": {"digest": ABSENT, "format": "pt2"}}
    told = dry(api, asked, source_bytes=7)
    assert told["absent"] == [{"role": "source", "digest": ABSENT}]
    assert len(told["unchecked"]) == 1
    assert by_kind(told)["export"]["forecast"]["took"]["expected"] == 8.0
    without = dry(api, asked)
    assert [job["forecast"] for job in without["jobs"]] == [None] * 4
    assert api.post("/v1/builds", json=asked).status_code == 404


def test_a_graph_that_nobody_has_seen_may_be_quantised_and_that_is_said(api, online):
    asked = REQUEST | {"source": {"digest": ABSENT, "format": "onnx"}, "precisions": ["int8"]}
    told = dry(api, asked)
    assert by_kind(told)["calibrate"]["reuse"] == "ran"
    assert "whether its graph is quantised" in told["unchecked"][1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"targets": ["sm_999"]}, "sm_999"),
        ({"targets": ["t4"], "precisions": ["bf16"]}, "bf16"),
        ({"precisions": ["int8"]}, "calibration data"),
        ({"model": "a b"}, "a model's name"),
    ],
)
def test_what_a_submission_refuses_a_dry_run_refuses_alike(api, online, changes, why):
    asked = request(api, **changes)
    said = api.post("/v1/builds", json=asked)
    told = api.post("/v1/builds", json=asked, params=DRY)
    assert told.status_code == said.status_code == 422
    assert told.json() == said.json()
    assert why in told.json()["detail"]


def test_who_may_only_read_gets_no_dry_run(api, db):
    reader = Api(api.app, a_key(db, Scope.READ))
    assert reader.post("/v1/builds", json=request(api), params=DRY).status_code == 403


def test_a_size_that_is_none_is_refused(api):
    for size in (0, -1, 2**70, "x"):
        answer = api.post("/v1/builds", json=request(api), params=DRY | {"source_bytes": size})
        assert answer.status_code == 422


def test_a_blob_that_nobody_uploaded_stays_unknown(api, db, online):
    dry(api, REQUEST | {"source": {"digest": ABSENT, "format": "pt2"}}, source_bytes=7)
    with db.read() as session:
        assert session.get(Artifact, ABSENT) is None


def test_a_live_build_tells_what_is_expected_of_it(api, db, online, made):
    made()
    took(db, 8.0)
    source = {"digest": api.upload(b"model 2"), "format": "onnx"}
    build = api.post("/v1/builds", json=REQUEST | {"source": source}).json()["id"]
    told = api.get(f"/v1/builds/{build}").json()
    assert [job["expected_s"] for job in told["jobs"]] == [8.0] * 4
    assert told["remaining_s"] == 32.0
    claim = online.claim_next()
    assert 24.0 <= api.get(f"/v1/builds/{build}").json()["remaining_s"] <= 32.0
    online.succeed(claim)
    told = api.get(f"/v1/builds/{build}").json()
    assert [job["expected_s"] for job in told["jobs"]] == [None, 8.0, 8.0, 8.0]
    assert told["remaining_s"] == 24.0
    online.run_all()
    told = api.get(f"/v1/builds/{build}").json()
    assert (told["state"], told["remaining_s"]) == ("succeeded", None)
    assert {job["expected_s"] for job in told["jobs"]} == {None}


def test_a_build_in_line_waits_for_those_before_it(api, db, online, made):
    made()
    took(db, 8.0)
    left = []
    for number in (2, 3):
        source = {"digest": api.upload(b"model %d" % number), "format": "onnx"}
        build = api.post("/v1/builds", json=REQUEST | {"source": source}).json()["id"]
        left.append(api.get(f"/v1/builds/{build}").json()["remaining_s"])
    assert left == [32.0, 64.0]


def test_what_is_left_is_unknown_if_one_job_is_unlike_any(api, db, online, made):
    made()
    took(db, 8.0)
    build = api.post("/v1/builds", json=request(api, precisions=["fp32", "fp16"])).json()["id"]
    told = api.get(f"/v1/builds/{build}").json()
    assert told["remaining_s"] is None
    assert {job["title"]: job["expected_s"] for job in told["jobs"]}["measure digits:fp32"] is None


def test_what_is_read_of_many_jobs_is_found_by_indexes(api, db, online):
    """SQLite tells its plan without statistics; Postgres scans what is small."""
    if not db.is_sqlite:
        pytest.skip("Postgres chooses by the number of rows")
    plans = []

    def planned(_connection, cursor, statement, values, _context, _many):
        if "FROM jobs" in statement and statement.startswith("SELECT"):
            found = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            plans.extend(row[3] for row in found.fetchall())
        return statement, values

    event.listen(db.engine, "before_cursor_execute", planned, retval=True)
    dry(api, REQUEST | {"source": {"digest": ABSENT, "format": "pt2"}}, source_bytes=7)
    assert {"ix_jobs_like", "ix_jobs_running_queue", "ix_jobs_queue_client_place"} <= {
        word for plan in plans for word in plan.split()
    }
    assert not [plan for plan in plans if plan.startswith("SCAN jobs")]


# On the command line


@pytest.fixture
def run(api, monkeypatch):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    for module in (submit, bench):
        monkeypatch.setattr(module, "connect", lambda _url: farm)
    return lambda *words, command="submit": CliRunner().invoke(app, [command, *map(str, words)])


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "digits.onnx"
    path.write_bytes((LIGHT / "light_squeezenet.onnx").read_bytes())
    return path


def test_the_command_uploads_nothing_and_fits_a_terminal(api, db, store, online, made, run, model):
    made()
    took(db, 8.0, peak_memory_bytes=812_000_000)
    with db.write() as session:
        session.execute(update(Job).values(source_bytes=model.stat().st_size))
    before = everything(db)
    words = (model, "--gpu", "tensorrt:h200,sm_89", "--precision", "fp16")
    result = run(*words, "--dry-run")
    assert result.exit_code == exits.OK, result.output
    assert everything(db) == before
    table, rest = result.stdout.split("jobs, 0 of them reused")
    assert "dry run of digits v2, a new version: nothing is submitted\n" in table
    assert re.search(r"cast +fp16 +new +8\.0 s +– +812\.0 MB +1\b", table)
    assert re.search(r"build +fp16@h200 +new +unknown +– +unknown +0\b", table)
    assert "to be uploaded: the source" in rest
    assert "would wait for a worker with a GPU h200" in rest
    assert "expected to take at least 32.0 s" in rest
    tables = [line for line in result.stdout.splitlines() if "  " in line.strip()]
    assert tables
    assert max(len(line.rstrip()) for line in tables) <= 80
    told = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert told["wall"]["stuck"] == 2


def test_the_command_waits_for_no_dry_run(run, model):
    for more in (["--wait"], ["--idempotency-key", "once"]):
        result = run(model, "--gpu", "sm_89", "--dry-run", *more)
        assert result.exit_code == exits.USAGE
        assert "a dry run submits nothing" in result.stderr


def test_the_client_tells_it_in_python(api, online, model):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    told = farm.dry_run(model, targets=["sm_89"], precisions=["fp16"])
    assert [job.kind for job in told.jobs] == ["export", "cast", "build", "measure"]
    assert told.absent[0].role == "source"
    assert farm.builds() == []


@pytest.mark.parametrize("of", ["model", "file"])
def test_a_bench_is_foretold_as_its_submission_would_be(api, db, online, made, run, model, of):
    made()
    before = everything(db)
    asked = {"model": ("digits",), "file": (model, "--name", "digits", "--new-inputs")}[of]
    result = run(*asked, "--gpu", "cpu", "--dry-run", "--json", command="bench")
    assert result.exit_code == exits.OK, result.output
    told = json.loads(result.stdout)
    assert everything(db) == before
    assert told["is_new_version"] == (of == "file")
    assert {(one["target"], one["precision"]) for one in told["engines"]} >= {
        ("onnxruntime:cpu", "fp32"),
        ("onnxruntime:cpu", "int8-dynamic"),
    }
    assert any("AOTInductor" in one["why"] for one in told["left_out"])
    if of == "model":
        view = api.post("/v1/models/digits/bench", json={"targets": ["cpu"]}).json()
        assert [job["title"] for job in view["jobs"]] == [job["title"] for job in told["jobs"]]


def test_a_bench_that_only_shows_has_no_dry_run(run):
    for more in (("--no-build",), ("--idempotency-key", "again")):
        result = run("digits", "--gpu", "cpu", "--dry-run", *more, command="bench")
        assert result.exit_code == exits.USAGE
        assert "a dry run submits nothing" in result.stderr
