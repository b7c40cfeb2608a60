"""The REST contract."""

import base64
import hashlib
import json
import re
import subprocess
import sys

import pytest

from farm.api import streams
from farm.database.session import Database
from farm.fleet import timing_caches
from farm.fleet.timing_caches import Revision, Timed
from tests.ledger import Ledger


def body(digest, **changes):
    return {
        "model": "digits",
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp16"],
        "targets": ["tensorrt-rtx:sm_89"],
    } | changes


@pytest.fixture
def digest(api):
    return api.upload(b"a model")


@pytest.fixture
def ledger(settings):
    db = Database(settings.database)
    yield Ledger(db)
    db.dispose()


def submit(api, digest, **changes):
    answer = api.post("/v1/builds", json=body(digest, **changes))
    assert answer.status_code == 202, answer.text
    return answer.json()


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    return found


def test_an_upload_is_stored_under_its_sha256(api, settings):
    answer = api.post("/v1/blobs", content=b"abc")
    assert answer.status_code == 201
    assert answer.json() == {"digest": f"sha256:{hashlib.sha256(b'abc').hexdigest()}", "bytes": 3}
    head = api.request("HEAD", f"/v1/blobs/{answer.json()['digest']}")
    assert (head.status_code, head.headers["content-length"]) == (200, "3")


def test_an_upload_that_is_not_what_its_repr_digest_says_is_not_kept(api, settings):
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    answer = api.post("/v1/blobs", content=b"abc", headers={"Repr-Digest": f"sha-256=:{wrong}:"})
    assert problem(answer, 400)["code"] == "digest-mismatch"
    missing = f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert api.request("HEAD", f"/v1/blobs/{missing}").status_code == 404
    assert [p for p in settings.store_dir.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("header", ["sha-256=abc", "md5=:abc:", "sha-256=:AAAA:", "sha-256=:a:"])
def test_a_repr_digest_that_makes_no_sense_is_refused(api, header):
    answer = api.post("/v1/blobs", content=b"abc", headers={"Repr-Digest": header})
    assert problem(answer, 422)["hint"].startswith("send Repr-Digest")


def test_an_empty_upload_is_refused_and_leaves_nothing(api, settings):
    problem(api.post("/v1/blobs", content=b""), 400)
    assert [p for p in settings.store_dir.rglob("*") if p.is_file()] == []


def test_a_submission_answers_with_the_build_and_where_it_is(api, digest):
    answer = api.post("/v1/builds", json=body(digest))
    assert answer.status_code == 202
    build = answer.json()
    assert answer.headers["location"] == f"/v1/builds/{build['id']}"
    assert build["state"] == "queued"
    assert [job["title"] for job in build["jobs"]] == [
        "export digits",
        "cast digits:fp16",
        "build digits:fp16@sm_89",
        "measure digits:fp16",
    ]
    assert api.get(f"/v1/builds/{build['id']}").json() == build


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"targets": ["t5"]}, 422, "t4"),
        ({"targets": ["tensorrt-rtx:h200"]}, 422, "use tensorrt:h200"),
        ({"targets": []}, 422, "targets"),
        ({"precisions": ["int8"]}, 422, "int8 needs calibration data"),
        ({"precisions": ["int4"]}, 422, "precisions"),
        ({"targets": ["t4"], "precisions": ["bf16"]}, 422, "use fp16"),
        ({"model": "../etc"}, 422, "model"),
        ({"precision": ["fp16"]}, 422, "precision"),
        ({"source": {"digest": "sha256:1", "format": "onnx"}}, 422, "source.digest"),
        ({"source": {"digest": "sha256:" + "0" * 64, "format": "onnx"}}, 404, "upload it first"),
        ({"source": {"digest": "sha256:" + "0" * 64, "format": "pickle"}}, 422, "source.format"),
        ({"profiles": [{"x": {"min": [2], "opt": [1], "max": [3]}}]}, 422, "min 2 ≤ opt 1"),
        (
            {"profiles": [{"x": dict.fromkeys(("min", "opt", "max"), [1] * 17)}]},
            422,
            "the limit is 16",
        ),
        (
            {"profiles": [{"x": {"min": [-1], "opt": [1], "max": [3]}}]},
            422,
            "takes at least 0",
        ),
        ({"priority": 10}, 422, "priority"),
    ],
)
def test_a_bad_submission_is_refused_and_leaves_nothing(api, digest, changes, status, words):
    found = problem(api.post("/v1/builds", json=body(digest, **changes)), status)
    assert words in json.dumps(found, ensure_ascii=False)
    assert found["hint"]
    assert api.get("/v1/builds").json()["items"] == []
    assert api.get("/v1/models").json()["items"] == []


def test_a_pickle_is_refused_with_the_reason(api):
    pickled = api.upload(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.")
    found = problem(api.post("/v1/builds", json=body(pickled)), 422)
    assert found["code"] == "source-refused"
    assert "pickle" in found["detail"]
    assert "torch.export" in found["hint"]


def test_a_source_that_is_not_what_its_format_says_is_refused(api):
    text = api.upload(b"just some text, no archive")
    answer = api.post("/v1/builds", json=body(text, source={"digest": text, "format": "pt2"}))
    assert "isn't a torch.export program" in problem(answer, 422)["detail"]


def test_a_body_that_is_no_json_is_refused(api):
    answer = api.post("/v1/builds", content=b"{", headers={"content-type": "application/json"})
    problem(answer, 422)


def test_an_idempotency_key_gives_the_first_answer_again(api, digest):
    headers = {"Idempotency-Key": "once"}
    first = api.post("/v1/builds", json=body(digest), headers=headers).json()
    assert api.post("/v1/builds", json=body(digest), headers=headers).json()["id"] == first["id"]
    other = api.post("/v1/builds", json=body(digest, priority=1), headers=headers)
    problem(other, 409)


def test_builds_are_listed_newest_first_page_by_page(api, digest):
    made = [submit(api, digest)["id"] for _ in range(5)]
    first = api.get("/v1/builds", params={"limit": 3}).json()
    rest = api.get("/v1/builds", params={"limit": 3, "cursor": first["cursor"]}).json()
    assert [b["id"] for b in first["items"] + rest["items"]] == made[::-1]
    assert rest["cursor"] is None


def test_builds_are_filtered_by_model_and_state(api, digest):
    submit(api, digest)
    other = submit(api, digest, model="other")
    listed = api.get("/v1/builds", params={"model": "other", "state": "queued"}).json()["items"]
    assert [b["id"] for b in listed] == [other["id"]]
    problem(api.get("/v1/builds", params={"model": "never"}), 404)
    problem(api.get("/v1/builds", params={"state": "never"}), 422)


@pytest.mark.parametrize("limit", ["0", "201", "x"])
def test_a_limit_out_of_bounds_is_refused(api, limit):
    problem(api.get("/v1/builds", params={"limit": limit}), 422)


def test_cancel_and_retry_are_idempotent(api, digest):
    build = submit(api, digest)["id"]
    for _ in range(2):
        assert api.post(f"/v1/builds/{build}/cancel").json()["state"] == "cancelled"
    for _ in range(2):
        assert api.post(f"/v1/builds/{build}/retry").json()["state"] == "queued"
    attempts = {job["attempt"] for job in api.get(f"/v1/builds/{build}").json()["jobs"]}
    assert attempts == {2}


@pytest.mark.parametrize("path", ["", "/events", "/logs", "/explain", "/cancel", "/retry"])
def test_a_build_that_is_not_there_is_a_problem(api, path):
    method = "POST" if path in ("/cancel", "/retry") else "GET"
    assert problem(api.request(method, f"/v1/builds/nope{path}"), 404)["hint"]


def events_of(answer):
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    lines = [dict(line.split(": ", 1) for line in event if ": " in line) for event in events]
    return [(int(e["id"]), e["event"], json.loads(e["data"])) for e in lines if "id" in e]


def test_the_event_stream_ends_with_the_build_and_resumes(api, ledger, digest):
    build = submit(api, digest)["id"]
    ledger.run_all()
    events = events_of(api.get(f"/v1/builds/{build}/events"))
    builds = [data["state"] for _, kind, data in events if kind == "build"]
    assert builds == ["queued", "running", "succeeded"]
    assert [i for i, *_ in events] == sorted({i for i, *_ in events})
    middle = events[len(events) // 2][0]
    resumed = api.get(f"/v1/builds/{build}/events", headers={"Last-Event-ID": str(middle)})
    assert events_of(resumed) == [event for event in events if event[0] > middle]


def test_the_stream_of_a_build_ends_at_once_when_others_were_heard_of_since(
    api, ledger, digest, monkeypatch
):
    monkeypatch.setattr(streams, "_PING_S", 60.0)  # longer than all of it takes anywhere
    build = submit(api, digest)["id"]
    ledger.run_all()
    submit(api, digest, model="later")
    answer = api.get(f"/v1/builds/{build}/events")
    assert events_of(answer)[-1][2]["state"] == "succeeded"
    assert not re.search("^:", answer.text, re.MULTILINE), "it waited for more"


def test_the_log_is_text_under_the_jobs_titles(api, ledger, digest):
    from farm.queue import jobs

    build = submit(api, digest)["id"]
    claim = ledger.claim_next()
    with ledger.db.write() as session:
        jobs.report(session, claim.job_id, claim.attempt, text="working…\n")
    assert api.get(f"/v1/builds/{build}/logs").text == "=== export digits\nworking…\n"
    one = api.get(f"/v1/builds/{build}/logs", params={"job": claim.job_id})
    assert one.text == "working…\n"
    problem(api.get(f"/v1/builds/{build}/logs", params={"job": 10**6}), 404)


def test_explain_names_what_differs_from_the_nearest_earlier_job(api, digest):
    submit(api, digest)
    again = submit(api, digest)["id"]
    reasons = api.get(f"/v1/builds/{again}/explain").json()["jobs"]
    assert {reason["reuse"] for reason in reasons} == {"joined"}
    other = submit(api, digest, targets=["tensorrt-rtx:sm_86"])["id"]
    reasons = {r["title"]: r for r in api.get(f"/v1/builds/{other}/explain").json()["jobs"]}
    why = reasons["build digits:fp16@sm_86"]["why"]
    assert "target tensorrt-rtx:sm_89 → tensorrt-rtx:sm_86" in why


@pytest.fixture
def engine(api, ledger, digest):
    """A published engine whose bytes are `0123456789`."""
    build = submit(api, digest)["id"]
    ledger.run_all()
    engine = api.get("/v1/models/digits/engines").json()["items"][0]
    from sqlalchemy import update

    from farm.database.tables import EngineRow

    content = api.upload(b"0123456789")
    with ledger.db.write() as session:
        session.execute(
            update(EngineRow).where(EngineRow.id == engine["id"]).values(digest=content)
        )
    assert engine["build"] == build
    return api.get(f"/v1/engines/{engine['id']}").json()


def test_an_engine_is_pulled_by_model_and_gpu_tag(api, engine):
    match = api.get("/v1/models/digits/engines/rtx-4090").json()
    assert match["engine"]["id"] == engine["id"]
    assert "compute capability of rtx-4090" in match["why"]
    found = problem(api.get("/v1/models/digits/engines/t4"), 404)
    assert "fp16@sm_89" in found["detail"]
    problem(api.get("/v1/models/digits/engines/t5"), 422)
    assert "digits" in problem(api.get("/v1/models/other/engines/t4"), 404)["hint"]


def test_what_is_in_an_engine_is_told(api, ledger, engine):
    path = f"/v1/engines/{engine['id']}/layers"
    assert "without a layer report" in problem(api.get(path), 404)["detail"]
    from sqlalchemy import update

    from farm.database.tables import EngineRow, Job
    from farm.testing.documents import LAYERS

    digest = api.upload(json.dumps(LAYERS).encode())
    with ledger.db.write() as session:
        row = session.get_one(EngineRow, engine["id"])
        outputs = {"engine": row.digest, "layers": digest}
        session.execute(update(Job).where(Job.id == row.build_job_id).values(outputs=outputs))
    told = api.get(path).json()
    assert (told["products"][1]["name"], len(told["layers"])) == ("head", len(LAYERS["layers"]))
    assert told["memory"] is None
    problem(api.get("/v1/engines/none/layers"), 404)


def test_an_int8_engine_is_listed_beside_its_fp16_twin(api, ledger, digest):
    calibration = {"digest": api.upload(b"samples")}
    submit(api, digest, precisions=["fp16", "int8"], calibration=calibration)
    ledger.run_all()
    listed = api.get("/v1/models/digits/engines").json()["items"]
    rows = {row["precision"]: row for row in listed}
    against = rows["int8"]["against"]
    assert (against["engine"], against["precision"]) == (rows["fp16"]["id"], "fp16")
    assert against["size_ratio"] == rows["int8"]["bytes"] / rows["fp16"]["bytes"]
    assert against["latency_ratio"] is None
    assert rows["fp16"]["against"] is None
    assert api.get(f"/v1/engines/{rows['int8']['id']}").json()["against"] == against


def test_engines_are_asked_for_by_their_pruning(api, engine):
    path = "/v1/models/digits/engines"
    assert api.get(path, params={"prune": "none"}).json()["items"][0]["prune"] is None
    assert api.get(path, params={"prune": "2:4"}).json()["items"] == []
    assert "l1:0.5" in problem(api.get(path, params={"prune": "magic"}), 422)["hint"]
    found = problem(api.get(f"{path}/sm_89", params={"prune": "2:4"}), 404)
    assert "has no pruned 2:4 engine" in found["detail"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prune": {"method": "2:4"}}, "source-refused"),
        ({"targets": ["torchscript:cpu"], "precisions": ["fp32"]}, "source-refused"),
        ({"precisions": ["int8-dynamic"]}, "target-unsupported"),
        ({"prune": {"method": "2:4", "amount": 0.5}}, "invalid-request"),
        ({"prune": {"method": "l1-unstructured"}}, "invalid-request"),
    ],
)
def test_what_onnx_or_a_gpu_cannot_have_is_refused_with_what_to_do(api, digest, changes, code):
    assert problem(api.post("/v1/builds", json=body(digest, **changes)), 422)["code"] == code


def test_an_engines_bytes_come_with_its_digest_as_etag(api, engine):
    answer = api.get(f"/v1/engines/{engine['id']}/content")
    assert answer.content == b"0123456789"
    assert answer.headers["etag"] == f'"{engine["digest"]}"'
    path = f"/v1/engines/{engine['id']}/content"
    again = api.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        ("bytes=4-", 206, b"456789"),
        ("bytes=0-0", 206, b"0"),
        ("bytes=-3", 206, b"789"),
        ("bytes=5-2", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=10-", 416, None),
    ],
)
def test_a_download_resumes_by_range(api, engine, header, status, content):
    answer = api.get(f"/v1/engines/{engine['id']}/content", headers={"Range": header})
    assert answer.status_code == status
    if content is not None:
        assert answer.content == content


def test_a_range_of_another_engine_is_not_mixed_in(api, engine):
    headers = {"Range": "bytes=4-", "If-Range": '"sha256:of-another"'}
    answer = api.get(f"/v1/engines/{engine['id']}/content", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"0123456789")


def test_the_manifest_says_where_an_engine_came_from(api, engine):
    manifest = api.get(f"/v1/engines/{engine['id']}/manifest").json()
    assert manifest["engine"]["digest"] == engine["digest"]
    assert manifest["provenance"]["build"]["recipe"]["kind"] == "build"


def test_the_manifest_says_how_to_run_an_engine(api, engine):
    load = api.get(f"/v1/engines/{engine['id']}/manifest").json()["load"]
    compile(load, "load", "exec")
    assert "import tensorrt_rtx as trt" in load
    assert 'Path("digits-v1-fp16-sm_89.engine")' in load


def test_every_runtime_and_tag_is_told_with_the_reason(api, ledger):
    ledger.worker()
    targets = {t["target"]: t for t in api.get("/v1/targets").json()}
    assert targets["tensorrt-rtx:sm_89"]["status"] == "buildable"
    assert "rtx-4090" in targets["tensorrt-rtx:sm_89"]["products"]
    assert targets["tensorrt:sm_90"]["status"] == "waits-for-worker"
    assert targets["tensorrt-rtx:sm_90"]["status"] == "unsupported"
    assert all(t["why"] for t in targets.values())


def test_workers_are_told_with_what_they_do(api, ledger, digest):
    ledger.worker(name="cpu@there")
    submit(api, digest)
    ledger.claim_next(owner="cpu@there")
    worker = api.get("/v1/workers").json()[0]
    assert (worker["name"], worker["online"], worker["job_title"]) == (
        "cpu@there",
        True,
        "export digits",
    )
    assert worker["jobs"] == [{"id": worker["job"], "title": "export digits"}]


def test_a_worker_with_several_slots_is_told_with_all_its_jobs(api, ledger, digest):
    ledger.worker(name="cpu@there")
    submit(api, digest)
    submit(api, api.upload(b"another"), model="letters")
    first = ledger.claim_next(owner="cpu@there")
    second = ledger.claim_next(owner="cpu@there")
    worker = api.get("/v1/workers").json()[0]
    assert [one["id"] for one in worker["jobs"]] == [first.job_id, second.job_id]
    assert worker["job"] == first.job_id


def test_an_unknown_path_is_a_problem_too(api):
    problem(api.get("/v1/nothing"), 404)
    problem(api.request("DELETE", "/v1/builds"), 405)


def test_the_process_is_alive(api):
    assert api.get("/healthz").json() == {"status": "ok"}


def test_a_database_that_is_away_is_a_503_that_may_be_tried_again(api, settings, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    monkeypatch.setattr("sqlalchemy.orm.Session.execute", away)
    answer = api.get("/v1/builds")
    assert problem(answer, 503)["code"] == "database-unavailable"
    assert answer.headers["retry-after"]


def test_gc_frees_uploads_that_nothing_refers_to(api, settings):
    digest = api.upload(b"no build was submitted with it")
    asked = {"dry_run": True, "older_than_s": 0}
    would = api.post("/v1/gc", json=asked).json()
    assert [blob["digest"] for blob in would["removed"]] == [digest]
    did = api.post("/v1/gc", json=asked | {"dry_run": False}).json()
    assert did == would | {"dry_run": False}
    assert api.request("HEAD", f"/v1/blobs/{digest}").status_code == 404
    assert api.upload(b"no build was submitted with it") == digest


def test_gc_takes_a_grace_of_no_less_than_nothing(api):
    assert problem(api.post("/v1/gc", json={"older_than_s": -1}), 422)


def test_every_call_is_documented_with_a_summary(api):
    paths = api.get("/openapi.json").json()["paths"]
    calls = [call for path in paths.values() for call in path.values()]
    assert all(call.get("summary") for call in calls)
    assert "/v1/builds/{build_id}/events" in paths


def test_the_control_plane_imports_no_framework():
    """The processes of API, client and command line stay light."""
    code = (
        "import sys, farm.api.app, farm.client, farm.cli;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'numpy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_timing_caches_are_listed_with_what_they_were_worth(api, ledger):
    timed = Timed(gpu="NVIDIA H200", compute_capability="sm_90", tensorrt="11.4.0.106", cuda="13")
    assert api.get("/v1/timing-caches").json() == []
    with ledger.db.write() as session:
        made = {"digest": "sha256:" + "a" * 64, "size": 4096, "entries": 12}
        assert timing_caches.replace(session, timed, instead_of=Revision(), **made)
        timing_caches.count_hit(session, timed)
    [cache] = api.get("/v1/timing-caches").json()
    assert (cache["gpu"], cache["bytes"], cache["entries"]) == ("NVIDIA H200", 4096, 12)
    assert (cache["builds"], cache["hits"], cache["hit_rate"]) == (2, 1, 0.5)


def test_plugins_are_refused_where_no_key_is_trusted_and_where_nobody_added_them(api, digest):
    library = api.upload(b"\x7fELF")
    asked = {"digest": library, "name": "libfoo.so", "signature": "x"}
    refused = problem(api.post("/v1/plugins", json=asked), 422)
    assert refused["code"] == "plugin-refused"
    assert "FARM_PLUGIN_KEYS" in refused["hint"]
    options = {"plugins": [library]}
    answer = api.post("/v1/builds", json=body(digest, targets=["tensorrt:h200"], options=options))
    assert problem(answer, 422)["code"] == "plugin-refused"
    answer = api.post("/v1/builds", json=body(digest, options=options))
    assert "TensorRT-RTX doesn't support plugins" in problem(answer, 422)["detail"]
    assert api.get("/v1/plugins").json() == []
