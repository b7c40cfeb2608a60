"""What keys may use: builds in flight, time on GPUs, bytes stored, requests; told before they bite."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from farm.api.app import create_app
from farm.cli import app as commands
from farm.client import Farm
from farm.database.base import now
from farm.database.tables import Artifact, AuditRow, Build, Job, Model, Version
from farm.queue.jobs import Claim
from farm.settings import Settings
from farm.specs.limits import Limits
from farm.trust import credentials, keys
from farm.trust.callers import THE_FARM
from tests.again import until_served
from tests.contract.conftest import REQUEST, Api, OverTheApi, with_key
from tests.contract.registry import digest_of
from tests.contract.test_api import problem
from tests.keys import a_key
from tests.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("within_a_minute")


def limited(api: Api, *scopes: str, name="ci", **limits) -> Api:
    """The API with a key that has these limits."""
    text = a_key(api.app.state.services.db, *(scopes or ["submit"]), name=name)
    with api.app.state.services.db.write() as session:
        keys.limit(session, credentials.id_of(text), Limits(**limits), by=THE_FARM)
    return with_key(api, text)


def own(number: int) -> bytes:
    return f"model {number}".encode()


def submit(api: Api, number: int, **changes):
    """Submit a model of its own, so that builds share no work."""
    api.upload(own(number))
    return api.post("/v1/builds", json=body_of(number) | changes)


def body_of(number: int) -> dict:
    source = {"digest": digest_of(own(number)), "format": "onnx"}
    return REQUEST | {"source": source, "model": f"model-{number}"}


def used(api: Api) -> dict[str, tuple[float, float | None]]:
    me = api.get("/v1/me").json()
    return {one["quota"]: (one["used"], one["limit"]) for one in me["limits"]}


def counted(db) -> dict[str, int]:
    with db.read() as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table))
            for table in (Build, Job, Model, Version, AuditRow)
        }


@pytest.fixture
def ledger(db) -> Ledger:
    made = Ledger(db)
    made.worker()
    return made


@pytest.fixture
def gpu(ledger) -> Ledger:
    ledger.worker("gpu@there", queues=("tensorrt.sm_89",), gpu="RTX 4090", tags=("sm_89",))
    return ledger


# Builds in flight


def test_a_key_has_no_more_builds_in_flight_than_it_may(api, ledger):
    mine = limited(api, builds=2)
    first, _ = submit(mine, 1), submit(mine, 2)
    told = problem(submit(mine, 3), 403)
    assert told["code"] == "quota-exceeded"
    assert told["detail"] == "the key ci has 2 of 2 builds in flight"
    key_id = credentials.id_of(mine.key)
    assert told["hint"] == (
        "wait for one to end, or cancel one: farm builds, farm cancel ID; an administrator can raise it: "
        f"farm keys limits {key_id} builds=…"
    )
    assert mine.post(f"/v1/builds/{first.json()['id']}/cancel").is_success
    assert submit(mine, 3).status_code == 202
    assert used(mine)["builds"] == (2, 2)


def test_a_refused_build_leaves_nothing(api, ledger, db):
    mine = limited(api, builds=1)
    submit(mine, 1)
    mine.upload(own(2))
    before = counted(db)
    body = body_of(2) | {"labels": {"team": "vision"}}
    answer = mine.post("/v1/builds", json=body, headers={"Idempotency-Key": "once"})
    problem(answer, 403)
    assert counted(db) == before
    # Nor is the idempotency key used up.
    ledger.run_all()
    answer = mine.post("/v1/builds", json=body, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 202


def test_a_repeated_submission_gets_its_build_at_the_limit(api, ledger):
    mine = limited(api, builds=1)
    mine.upload(own(1))
    body = body_of(1)
    once = {"Idempotency-Key": "once"}
    first = mine.post("/v1/builds", json=body, headers=once)
    again = mine.post("/v1/builds", json=body, headers=once)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]


def test_what_is_there_already_takes_no_place(api, ledger):
    mine = limited(api, builds=1)
    submit(mine, 1)
    ledger.run_all()
    submit(mine, 2)
    again = submit(mine, 1)
    assert (again.status_code, again.json()["state"]) == (202, "succeeded")


def test_a_retried_build_takes_a_place_of_the_key_that_submitted_it(api, ledger):
    mine = limited(api, builds=1)
    first = submit(mine, 1).json()["id"]
    assert mine.post(f"/v1/builds/{first}/cancel").is_success
    submit(mine, 2)
    told = problem(api.post(f"/v1/builds/{first}/retry"), 403)  # by an administrator
    assert told["detail"] == "the key ci has 1 of 1 builds in flight"
    assert api.get(f"/v1/builds/{first}").json()["state"] == "cancelled"


def test_two_submissions_at_once_do_not_both_take_the_last_place(api, ledger, db):
    mine = limited(api, builds=1)
    bodies = []
    for number in range(6):
        mine.upload(own(number))
        bodies.append(body_of(number))
    barrier = threading.Barrier(len(bodies))

    def go(body):
        barrier.wait()
        return until_served(lambda: mine.post("/v1/builds", json=body)).status_code

    with ThreadPoolExecutor(len(bodies)) as pool:
        statuses = list(pool.map(go, bodies))
    assert sorted(statuses) == [202, 403, 403, 403, 403, 403]
    assert counted(db)["builds"] == 1


def test_others_are_not_touched_by_a_keys_limit(api, ledger):
    mine, other = limited(api, builds=1), limited(api, name="other")
    submit(mine, 1)
    problem(submit(mine, 2), 403)
    assert submit(other, 2).status_code == 202


# Time on GPUs


def spend(ledger: Ledger, minutes: float, owner="gpu@there") -> None:
    """Run what is queued; what takes a GPU takes it for so long."""
    while queued := ledger.queued():
        claim = ledger.claim(queued[0], owner=owner)
        with ledger.db.write() as session:
            job = session.get_one(Job, claim.job_id)
            if job.queue == "tensorrt.sm_89":
                job.started_at = now() - timedelta(minutes=minutes)
        ledger.succeed(claim)


def begin(ledger: Ledger, minutes: float) -> Claim:
    """Run what is queued up to the first job for a GPU, which has run for so long."""
    while (job := ledger.queued()[0]).queue != "tensorrt.sm_89":
        ledger.succeed(ledger.claim(job))
    claim = ledger.claim(job, owner="gpu@there")
    with ledger.db.write() as session:
        session.get_one(Job, claim.job_id).started_at = now() - timedelta(minutes=minutes)
    return claim


GPU = {"targets": ["tensorrt:sm_89"]}


def test_gpu_minutes_are_those_of_recorded_jobs(api, gpu):
    mine = limited(api, gpu_minutes_day=10)
    assert submit(mine, 1, **GPU).status_code == 202
    spend(gpu, 6)  # build and measure; of others like them nothing was known
    # And however long the test itself took.
    assert used(mine)["gpu_minutes_day"] == (pytest.approx(12.5, abs=0.5), 10)
    assert used(mine)["gpu_minutes_month"] == (pytest.approx(12.5, abs=0.5), None)
    told = problem(submit(mine, 3, **GPU), 403)
    assert re.fullmatch(r"the key ci has 12\.\d of 10 GPU minutes today \(UTC\).*", told["detail"])
    assert "the next day begins at 00:00 UTC; builds for cpu take no GPU" in told["hint"]
    # What takes no GPU, and what is there, goes on.
    assert submit(mine, 3, targets=["tensorrt-rtx:sm_89"]).status_code == 202
    assert submit(mine, 1, **GPU).json()["state"] == "succeeded"


def test_a_job_that_runs_counts_so_far(api, gpu):
    mine = limited(api, gpu_minutes_month=5)
    submit(mine, 1, **GPU)
    begin(gpu, 5)
    problem(submit(mine, 2, **GPU), 403)


def reserved(api: Api) -> float:
    me = api.get("/v1/me").json()
    return {one["quota"]: one["reserved"] for one in me["limits"]}["gpu_minutes_day"]


def test_minutes_that_queued_jobs_are_expected_to_take_are_reserved_until_they_end(api, gpu):
    submit(api, 0, **GPU)
    spend(gpu, 3)  # somebody else's build and measure, which tell how long such jobs take
    mine = limited(api, gpu_minutes_day=14)
    assert [submit(mine, number, **GPU).status_code for number in (1, 2)] == [202, 202]
    assert reserved(mine) == pytest.approx(12, abs=0.1)
    assert used(mine)["gpu_minutes_day"] == (0, 14)
    told = problem(submit(mine, 3, **GPU), 403)
    assert told["detail"] == (
        "the key ci has 0 of 14 GPU minutes today (UTC), and 18.0 more reserved for jobs that are queued or "
        "running"
    )
    assert reserved(mine) == pytest.approx(12, abs=0.1)  # the refused build left nothing
    spend(gpu, 1)
    assert reserved(mine) == 0
    assert used(mine)["gpu_minutes_day"] == (pytest.approx(4, abs=0.1), 14)
    assert submit(mine, 3, **GPU).status_code == 202


def test_the_rest_of_a_job_that_runs_is_reserved(api, gpu):
    submit(api, 0, **GPU)
    spend(gpu, 3)
    mine = limited(api, gpu_minutes_day=100)
    submit(mine, 1, **GPU)
    claim = begin(gpu, 2)
    assert used(mine)["gpu_minutes_day"] == (pytest.approx(2, abs=0.1), 100)
    assert reserved(mine) == pytest.approx(1 + 3, abs=0.1)  # of this one, and the measure after it
    with gpu.db.write() as session:
        session.get_one(Job, claim.job_id).started_at = now() - timedelta(minutes=9)
    assert reserved(mine) == pytest.approx(3, abs=0.1)


def test_reserved_minutes_are_warned_of_and_foreseen(api, gpu):
    submit(api, 0, **GPU)
    spend(gpu, 3)
    mine = limited(api, gpu_minutes_day=7)
    body = body_of(1) | GPU
    mine.upload(own(1))
    foreseen = mine.post("/v1/builds", params={"dry_run": True}, json=body).json()
    assert foreseen["refusal"] is None
    assert "6.0 more reserved" in foreseen["warnings"][0]
    made = mine.post("/v1/builds", json=body).json()
    assert "0 of 7 GPU minutes today (UTC), and 6.0 more reserved" in made["warnings"][0]
    mine.upload(own(2))
    foreseen = mine.post("/v1/builds", params={"dry_run": True}, json=body_of(2) | GPU).json()
    assert "12.0 more reserved" in foreseen["refusal"]
    # What takes no GPU doesn't mind.
    assert submit(mine, 2, targets=["tensorrt-rtx:sm_89"]).status_code == 202


def test_gpu_minutes_outlive_the_jobs(api, gpu, db):
    from farm.database import gpu_times

    mine = limited(api, gpu_minutes_day=5, gpu_minutes_month=100)
    client = f"key {credentials.id_of(mine.key)}"
    with db.write() as session:
        gpu_times.add(session, client, now() - timedelta(days=40), 9000)
        gpu_times.add(session, client, now(), 240)
        gpu_times.add(session, client, now(), 60)
    assert used(mine)["gpu_minutes_day"] == (5, 5)
    assert used(mine)["gpu_minutes_month"] == (5, 100)


# Bytes stored


def test_an_upload_beyond_the_limit_is_refused_before_it_is_read(api, db):
    mine = limited(api, stored_bytes=100)
    assert mine.post("/v1/blobs", content=b"x" * 60).status_code == 201
    read = []

    async def pieces():
        for number in range(50):
            read.append(number)
            yield b"y" * 2**20

    told = problem(mine.post("/v1/blobs", content=b"y" * 41), 403)
    assert told["detail"] == "the key ci has 60 B of 100 B stored, and this upload takes 41 bytes"
    assert "farm delete DIGEST" in told["hint"]
    announced = {"Content-Length": str(50 * 2**20)}
    problem(mine.post("/v1/blobs", content=pieces(), headers=announced), 403)
    problem(mine.post("/v1/blobs", content=pieces()), 403)
    assert len(read) < 50 + 10
    assert used(mine)["stored_bytes"] == (60, 100)
    assert not api.app.state.services.store.has(digest_of(b"y" * 41))


def test_what_builds_make_counts_for_the_key_that_had_them_built(api, ledger):
    mine = limited(api, stored_bytes=1000)
    submit(mine, 1)
    before = used(mine)["stored_bytes"][0]
    assert before == len(own(1))
    ledger.run_all()
    with ledger.db.read() as session:
        made = int(session.scalar(select(func.sum(Artifact.bytes)))) - before
    assert made > 0
    assert used(mine)["stored_bytes"] == (before + made, 1000)
    # Who stored it first has it: another key's build of the same makes nothing.
    other = limited(api, stored_bytes=1000)
    assert submit(other, 1).json()["state"] == "succeeded"
    assert used(other)["stored_bytes"] == (0, 1000)


def test_a_build_is_refused_once_the_bytes_are_used_up(api, ledger):
    mine = limited(api, stored_bytes=len(own(1)))
    told = problem(submit(mine, 1), 403)
    assert "stored" in told["detail"]


def test_deleting_gives_bytes_back(api, ledger):
    mine = limited(api, stored_bytes=100)
    digest = mine.upload(b"x" * 100)
    problem(mine.post("/v1/blobs", content=b"y"), 403)
    assert mine.request("DELETE", f"/v1/blobs/{digest}").is_success
    assert mine.post("/v1/blobs", content=b"y").status_code == 201


def test_two_uploads_at_once_do_not_pass_the_limit_together(api):
    mine = limited(api, stored_bytes=100)

    def upload(number):
        content = bytes([number]) * 60
        return until_served(lambda: mine.post("/v1/blobs", content=content)).status_code

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(upload, range(4)))
    assert sorted(found) == [201, 403, 403, 403]


# Requests


def test_requests_beyond_the_rate_are_told_when_to_come_again(api):
    mine = limited(api, requests_per_minute=3)
    first = mine.get("/v1/builds")
    assert first.headers["RateLimit-Policy"] == '"requests";q=3;w=60'
    assert first.headers["RateLimit"].startswith('"requests";r=2;t=')
    mine.get("/v1/builds")
    mine.get("/v1/builds")
    refused = mine.get("/v1/builds")
    told = problem(refused, 429)
    assert told["code"] == "rate-exceeded"
    assert (
        told["detail"]
        == f"the key {credentials.id_of(mine.key)} may send 3 requests a minute, and has"
    )
    wait_s = int(refused.headers["Retry-After"])
    assert 1 <= wait_s <= 60
    assert f"wait {wait_s} s" in told["hint"]
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')
    assert api.get("/v1/builds").status_code == 200
    assert "RateLimit" not in api.get("/v1/builds").headers


def test_a_refused_request_is_not_read(api):
    mine = limited(api, requests_per_minute=1)
    mine.get("/v1/me")
    read = []

    async def pieces():
        for number in range(50):
            read.append(number)
            yield b"y" * 2**20

    problem(mine.post("/v1/blobs", content=pieces()), 429)
    assert read in ([], [0])


def test_health_needs_none_of_a_keys_requests(api):
    mine = limited(api, requests_per_minute=1)
    assert [mine.get("/healthz").status_code for _ in range(3)] == [200] * 3
    assert mine.get("/v1/me").status_code == 200


# Told before they bite


def test_a_submission_near_a_limit_is_warned(api, ledger):
    mine = limited(api, builds=5)
    warned = [submit(mine, number).json()["warnings"] for number in range(5)]
    assert warned[:3] == [[], [], []]
    assert warned[3] == [
        "4 of 5 builds in flight: wait for one to end, or cancel one: farm builds, farm cancel ID"
    ]
    assert warned[4][0].startswith("5 of 5 builds in flight")


def test_a_dry_run_says_that_a_submission_would_be_refused(api, ledger):
    mine = limited(api, builds=2)
    dry = {"dry_run": "true"}
    assert submit(mine, 1).status_code == 202
    found = mine.post("/v1/builds", json=body_of(2), params=dry).json()
    assert found["refusal"] is None
    assert found["warnings"][0].startswith("2 of 2 builds in flight")
    submit(mine, 2)
    found = mine.post("/v1/builds", json=body_of(3), params=dry).json()
    assert found["refusal"].startswith("the key ci has 2 of 2 builds in flight: wait for one")


def test_a_dry_run_says_that_the_source_would_not_fit(api, ledger):
    mine = limited(api, stored_bytes=100)
    query = {"dry_run": "true", "source_bytes": 101}
    found = mine.post("/v1/builds", json=body_of(1), params=query).json()
    assert found["refusal"].startswith("the key ci has 101 B of 100 B stored")


def test_a_key_sees_its_use_and_its_limits(api, ledger):
    mine = limited(api, builds=1, requests_per_minute=100)
    submit(mine, 1)
    me = mine.get("/v1/me").json()
    assert (me["key"], me["name"], me["scopes"]) == (credentials.id_of(mine.key), "ci", ["submit"])
    by_quota = {one["quota"]: one for one in me["limits"]}
    assert by_quota["builds"]["told"] == "1 of 1 builds in flight"
    assert by_quota["builds"]["is_near"]
    assert by_quota["stored_bytes"]["limit"] is None
    assert by_quota["requests_per_minute"]["used"] == 3  # an upload, a submission, this
    assert by_quota["gpu_minutes_day"]["resets_at"].endswith("T00:00:00Z")
    assert me["warnings"] == [
        "1 of 1 builds in flight: wait for one to end, or cancel one: farm builds, farm cancel ID"
    ]


# Set


def test_limits_are_set_with_a_key_and_changed_by_administrators(api):
    asked = {"name": "ci", "scopes": ["submit"], "limits": {"builds": 5, "stored_bytes": "1.5 GB"}}
    made = api.post("/v1/keys", json=asked).json()
    assert made["limits"]["builds"] == 5
    assert made["limits"]["stored_bytes"] == 1_500_000_000
    path = f"/v1/keys/{made['id']}/limits"
    changed = api.request("PATCH", path, json={"builds": None, "gpu_minutes_day": "Unlimited"})
    assert changed.json()["own"] == {
        "builds": None,
        "gpu_minutes_day": "unlimited",
        "gpu_minutes_month": None,
        "stored_bytes": 1_500_000_000,
        "requests_per_minute": None,
    }
    assert api.get(path).json() == changed.json()
    mine = with_key(api, made["key"])
    assert problem(mine.request("PATCH", path, json={"builds": 9}), 403)["code"] == "scope-missing"
    [entry] = api.get("/v1/audit", params={"action": "key.limits"}).json()["items"]
    assert entry["object"] == made["id"]
    assert entry["details"] == {
        "name": "ci",
        "limits": {"gpu_minutes_day": "unlimited", "stored_bytes": 1_500_000_000},
    }
    assert api.request("PATCH", path, json={"builds": None}).is_success  # changes nothing
    assert len(api.get("/v1/audit", params={"action": "key.limits"}).json()["items"]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"builds": -1},
        {"builds": 1.5},
        {"builds": "many"},
        {"gpu_minutes_day": "NaN"},
        {"stored_bytes": "5 parsecs"},
        {"requests_per_minute": 0},
        {"bilds": 5},
    ],
)
def test_wrong_limits_are_refused(api, wrong):
    key_id = credentials.id_of(api.key)
    problem(api.request("PATCH", f"/v1/keys/{key_id}/limits", json=wrong), 422)


def test_the_farms_defaults_hold_for_keys_without_limits_but_not_for_administrators_and_workers(
    database_url, tmp_path
):
    settings = Settings(
        home=tmp_path / "home",
        database_url=database_url,
        limits={"builds": 1, "requests_per_minute": 50},
    )
    assert (
        Settings.model_validate(
            {"limits": Limits.model_validate_json(settings.environment()["FARM_LIMITS"])}
        ).limits
        == settings.limits
    )
    app = create_app(settings)
    api = Api(app)
    Ledger(app.state.services.db).worker()
    mine, free = limited(api, name="ci"), limited(api, name="free", builds="unlimited")
    assert used(mine)["builds"] == (0, 1)
    assert used(free)["builds"] == (0, None)
    assert used(free)["requests_per_minute"][1] == 50
    assert used(api)["builds"] == (0, None)
    worker = with_key(api, a_key(app.state.services.db, "work", name="worker"))
    assert used(worker)["requests_per_minute"][1] is None
    submit(mine, 1)
    problem(submit(mine, 2), 403)
    assert submit(free, 3).status_code == 202
    assert submit(free, 4).status_code == 202
    app.state.services.db.dispose()


def test_refusals_are_counted_by_limit_and_not_by_key(api, ledger):
    mine = limited(api, builds=0, requests_per_minute=5)
    problem(submit(mine, 1), 403)
    while mine.get("/v1/me").status_code == 200:
        pass
    text = api.get("/metrics").text
    told = [line for line in text.splitlines() if line.startswith("farm_quota_refusals_total")]
    assert sorted(told) == [
        'farm_quota_refusals_total{quota="builds"} 1.0',
        'farm_quota_refusals_total{quota="gpu_minutes_day"} 0.0',
        'farm_quota_refusals_total{quota="gpu_minutes_month"} 0.0',
        'farm_quota_refusals_total{quota="requests_per_minute"} 1.0',
        'farm_quota_refusals_total{quota="stored_bytes"} 0.0',
    ]


# On the command line


@pytest.fixture
def said(api, monkeypatch):
    def run(*words: str, key: str | None = None, fails: bool = False) -> str:
        farm = Farm("http://localhost", key=key or api.key, transport=OverTheApi(api))
        monkeypatch.setattr("farm.client.Farm", lambda *_, **__: farm)
        told = CliRunner().invoke(commands, words)
        assert (told.exit_code != 0) == fails, told.output
        return told.output

    return run


def rows_of(table: str) -> dict[str, list[str]]:
    found = (re.split(r" {2,}", line.strip()) for line in table.splitlines())
    return {row[0]: row[1:] for row in found if len(row) > 1}


def test_the_commands_of_the_page_on_limits_do_what_it_says(api, said):
    page = (ROOT / "docs/how-to/limits.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line.split() for block in blocks for line in block.splitlines()]
    outputs, key_id = [], ""
    for words in lines:
        if words[0] == "farm":
            asked = [key_id if word == "7k2c9qd4mx" else word for word in words[1:]]
            outputs.append(said(*asked))
            key_id = key_id or credentials.id_of(outputs[0].splitlines()[0])
    assert len(outputs) == 6
    second, third = rows_of(outputs[1]), rows_of(outputs[3])
    assert second["builds"] == ["0", "5", "–", "–"]
    assert second["gpu-minutes-day"][:2] == ["0", "600"]
    assert second["stored-bytes"] == ["0 B", "50.0 GB", "–", "–"]
    assert third["builds"] == ["0", "unlimited", "–", "–"]
    assert third["gpu-minutes-day"][1] == "unlimited"
    assert "key.limits" in outputs[4]
    assert outputs[5].startswith(f"tests ({credentials.id_of(api.key)}): admin\n")


def test_whoami_warns_and_a_wrong_limit_is_told(api, said, ledger):
    mine = limited(api, builds=1)
    submit(mine, 1)
    told = said("whoami", key=mine.key)
    assert told.startswith(f"ci ({credentials.id_of(mine.key)}): submit\n")
    assert "warning: 1 of 1 builds in flight" in told
    wrong = said("keys", "limits", "7k2c9qd4mx", "bilds=5", fails=True)
    assert "'bilds=5' isn't a limit" in wrong
    assert "builds, gpu-minutes-day" in wrong
    wrong = said("keys", "create", "--scope", "read", "--quota", "builds=many", fails=True)
    assert "limits.builds" in wrong


def test_a_submission_says_on_the_command_line_what_is_near_and_what_is_beyond(
    api, said, ledger, tmp_path
):
    mine = limited(api, builds=1, requests_per_minute=1000)
    model = tmp_path / "one.onnx"
    model.write_bytes(own(1))
    words = ("submit", str(model), "--gpu", "sm_89", "--name", "one")
    assert "warning: 1 of 1 builds in flight" in said(*words, "--dry-run", key=mine.key)
    assert "warning: 1 of 1 builds in flight" in said(*words, key=mine.key)
    model.write_bytes(own(2))
    told = said(*words, "--dry-run", key=mine.key)
    assert "it would be refused now: the key ci has 1 of 1 builds in flight" in told
    told = said(*words, key=mine.key, fails=True)
    assert "the key ci has 1 of 1 builds in flight" in told
    assert "farm cancel ID" in told
