"""The page of a build, and that of a job."""

from __future__ import annotations

import html
import json
import re
from itertools import pairwise

import pytest
from sqlalchemy import select

from farm.api.places import Places
from farm.database.base import now
from farm.database.tables import Job
from farm.errors import CalibrationFailed, StageFailed
from farm.queue import jobs, samples
from farm.specs.scopes import Scope
from tests.contract.conftest import request, with_key
from tests.keys import a_key
from tests.ledger import Ledger

HOSTILE = "<script>alert('1')</script>\x1b[2J\u202e"


@pytest.fixture
def ledger(db):
    found = Ledger(db)
    found.worker()
    return found


@pytest.fixture
def submit(api, ledger):
    def one(**changes) -> str:
        api.app.state.services._known_fleet = None
        answer = api.post("/v1/builds", json=request(api, **changes))
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    return one


def shown(api, path: str) -> str:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def in_words(page: str) -> str:
    """What a reader sees of a page."""
    body = page.partition("<main")[2].partition("</main>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def job_of(ledger, build: str, kind: str) -> int:
    return next(job.id for job in ledger.view(build).jobs if job.kind == kind)


def report(db, claim, **what) -> None:
    with db.write() as session:
        jobs.report(session, claim.job_id, claim.attempt, **what)


def test_a_build_is_shown_with_its_request_jobs_and_engines(api, submit, ledger):
    build = submit(targets=["rtx-4090", "tensorrt-rtx:sm_75"], labels={"team": "vision"})
    ledger.run_all()
    page = shown(api, f"/builds/{build}")
    words = in_words(page)
    assert f"Build {build} digits v1 succeeded Submitted" in words
    assert re.search(r"Submitted .* by tests ·", words)
    assert "2 of 2 engines" in words
    assert "Targets rtx-4090, tensorrt-rtx:sm_75 Precisions fp16" in words
    assert "Labels team=vision" in words
    assert "floats: agreement from 98.0 %, error up to 0.1, drop up to 1.0 %" in words
    for want in ledger.view(build).engines:
        assert f'href="/engines/{want.engine}"' in page
        assert f"{want.target}" in words
    assert "farm pull digits --gpu sm_75 --version 1" in words
    assert f"farm pull --build {build}" in words
    assert f'href="/v1/builds/{build}/logs"' in page
    assert f'href="/v1/builds/{build}"' in page


def test_its_jobs_are_drawn_and_listed_each_with_its_state_in_words(api, submit, ledger):
    build = submit()
    page = shown(api, f"/builds/{build}")
    svg = page.partition("<svg")[2].partition("</svg>")[0]
    for job in ledger.view(build).jobs:
        assert f'<a href="/jobs/{job.id}" aria-label="{job.title}: {job.state}">' in svg
        assert f'<a href="/jobs/{job.id}">{job.title}' in page.partition("</svg>")[2]
    drawn = re.findall(r">([^<]*)</text>", svg)
    assert drawn.count("queued") == 1
    assert drawn.count("waiting") == 3
    assert svg.count("<path") >= 3
    assert "style=" not in page


def test_a_prefix_and_last_show_a_build_and_what_is_none_says_so(api, submit):
    build = submit()
    assert f'Build <span class="id">{build}' in shown(api, f"/builds/{build[:14]}")
    assert f'Build <span class="id">{build}' in shown(api, "/builds/last")
    answer = api.get("/builds/01aaaaaaaaaaaaaa")
    assert answer.status_code == 404
    assert "there is no build" in in_words(answer.text)


def test_a_build_is_followed_while_it_runs_and_can_be_cancelled(api, submit, ledger):
    build = submit()
    page = shown(api, f"/builds/{build}")
    assert (
        f'data-events="/v1/builds/{build}/events" data-kinds="build job phase" data-live="1"'
        in page
    )
    assert f'hx-get="/builds/{build}" hx-trigger="news"' in page
    assert f'data-call="POST /v1/builds/{build}/cancel" data-confirm=' in page
    assert "/retry" not in page
    assert api.post(f"/v1/builds/{build}/cancel").status_code == 200
    page = shown(api, f"/builds/{build}")
    assert 'data-live="1"' not in page
    assert f'data-call="POST /v1/builds/{build}/retry"' in page
    assert f"/v1/builds/{build}/cancel" not in page


def test_whoever_may_only_read_gets_no_buttons(api, submit, db, ring):
    build = submit()
    reader = with_key(api, a_key(db, Scope.READ))
    ring.forget()
    page = shown(reader, f"/builds/{build}")
    assert 'data-call="POST' not in page
    assert shown(reader, "/jobs/1")
    assert with_key(api, None).get(f"/builds/{build}").status_code == 303
    assert with_key(api, None).get("/v1/jobs/1/samples").status_code == 401


def test_what_failed_is_told_first_with_its_hint_and_where(api, submit, ledger):
    build = submit()
    ledger.fail(ledger.claim_next(), CalibrationFailed("no sample fits", hint="send more samples"))
    page = shown(api, f"/builds/{build}")
    words = in_words(page)
    assert "What failed export digits on" not in words  # it is no GPU's work
    assert "no sample fits send more samples calibration-failed" in words
    assert words.index("no sample fits") < words.index("Engines Target")
    assert "tensorrt-rtx:sm_89 fp16 failed export" in words  # the cause, not what never ran
    assert re.search(r"2 cast digits:fp16 not run – – –", words)
    svg = page.partition("<svg")[2].partition("</svg>")[0]
    drawn = re.findall(r">([^<]*)</text>", svg)
    assert (drawn.count("failed"), drawn.count("not run")) == (1, 3)


def test_a_failure_on_a_gpu_names_it(api, submit, ledger):
    ledger.worker("gpu0@there", queues=("tensorrt.sm_89",), gpu="NVIDIA L4", tags=("sm_89",))
    build = submit(targets=["tensorrt:sm_89"])
    for kind in ("export", "cast"):
        claim = ledger.claim_next()
        assert claim.kind == kind
        ledger.succeed(claim)
    ledger.fail(
        ledger.claim_next(owner="gpu0@there"), CalibrationFailed("no tactic", hint="use another")
    )
    assert "on NVIDIA L4 no tactic use another" in in_words(shown(api, f"/builds/{build}"))


def test_doubts_waits_and_what_is_left_out_are_told(api, submit, ledger):
    build = submit(
        targets=["tensorrt:h200", "tensorrt-rtx:sm_89", "tensorrt-rtx:sm_90"], skip_unsupported=True
    )
    ledger.run_all(doubts=["its error is 0.9"])
    words = in_words(shown(api, f"/builds/{build}"))
    assert "doubtful" in words
    assert "its error is 0.9" in words
    assert "Left out tensorrt-rtx:sm_90 fp16:" in words
    other = submit(targets=["tensorrt:h200"], model="other", precisions=["fp32"])
    ledger.succeed(ledger.claim_next())
    words = in_words(shown(api, f"/builds/{other}"))
    assert "Waits for a worker with a GPU h200 and tensorrt" in words


def test_why_each_job_ran_is_told_when_asked(api, submit, ledger, monkeypatch):
    build = submit()
    page = shown(api, f"/builds/{build}")
    assert f'hx-get="/builds/{build}?explain=1" hx-select="#why"' in page
    assert "no earlier job of this kind" not in page
    words = in_words(shown(api, f"/builds/{build}?explain=1"))
    assert "export digits ran: no earlier job of this kind" in words
    services = api.app.state.services
    monkeypatch.setattr("farm.api.services._WAIT_S", 0.0)
    monkeypatch.setattr(services, "planning", Places(0))
    words = in_words(shown(api, f"/builds/{build}?explain=1"))
    assert "busy planning and explaining other builds. Ask again" in words


def test_a_job_is_shown_with_what_it_takes_makes_and_who_uses_it(api, submit, ledger):
    build = submit()
    ledger.run_all()
    cast = job_of(ledger, build, "cast")
    page = shown(api, f"/jobs/{cast}")
    words = in_words(page)
    assert "cast digits:fp16" in words
    assert f"Job {cast} succeeded Planned" in words
    assert f'<a href="/jobs/{job_of(ledger, build, "export")}">export digits</a>' in page
    assert f'<a href="/jobs/{job_of(ledger, build, "build")}">' in page
    assert f"Builds {build} of digits v1 succeeded ran" in words
    assert "Queue cpu, priority 5" in words
    with ledger.db.read() as session:
        job = session.get_one(Job, cast)
    assert job.key in page
    assert all(digest in page for digest in job.outputs.values())
    assert "onnx 1.23.2" in words
    assert "cosine 1" in words
    measured = job_of(ledger, build, "measure")
    [engine] = ledger.view(build).engines
    assert f'href="/engines/{engine.engine}"' in shown(api, f"/jobs/{measured}")


def test_each_attempt_says_where_it_ran_its_phases_and_how_it_ended(api, submit, ledger, db):
    submit()
    first = ledger.claim_next(owner="one@here", lease_s=0.0)
    report(db, first, phase="open")
    ledger.reap()
    second = ledger.claim_next(owner="two@here")
    report(db, second, phase="read")
    report(db, second, phase="read", progress=0.5)
    report(db, second, phase="check")
    words = in_words(shown(api, f"/jobs/{first.job_id}"))
    assert re.search(r"Attempt 1 on one@here interrupted .* Attempt 2 on two@here running", words)
    assert words.count(" open ") == words.count(" read ") == 1
    ledger.fail(second, StageFailed("it went away", hint="look at the machine"))
    words = in_words(shown(api, f"/jobs/{first.job_id}"))
    assert "Attempt 2 on two@here failed" in words
    assert "it went away look at the machine" in words


def test_a_running_job_is_read_again_and_one_that_ended_is_not(api, submit, ledger):
    build = submit()
    job = job_of(ledger, build, "export")
    assert f'hx-get="/jobs/{job}" hx-trigger="every 2s"' in shown(api, f"/jobs/{job}")
    ledger.run_all()
    assert "hx-trigger" not in shown(api, f"/jobs/{job}")


def test_what_a_job_used_is_in_figures_in_a_table_and_in_the_chart(api, submit, ledger, db):
    submit()
    claim = ledger.claim_next()
    series = {
        "at_s": [1.0, 2.0, 4.0],
        "cpus": [0.5, 2.0, 1.0],
        "memory_bytes": [10**6, 3 * 10**6, 2 * 10**6],
        "gpu_share": [0.5, None, 1.0],
        "gpu_memory_bytes": [10**9, None, None],
        "gpu_power_w": [100.0, 300.4, None],
        "gpu_clock_mhz": [None, None, None],
    }
    with db.write() as session:
        samples.keep(session, claim.job_id, 1, began_at=now(), series=series)
    page = shown(api, f"/jobs/{claim.job_id}")
    words = in_words(page)
    assert "CPUs 1.33 on average, 2.00 at most Memory 3.0 MB at most" in words
    assert "GPU in use 75.0 % of the time GPU power 100 to 300 W" in words
    assert "SM clock" not in words.partition("Samples")[0]
    assert "2.0 s 2.00 3.0 MB – – 300 W –" in words
    [told] = re.findall(r'data-samples="([^"]*)"', page)
    drawn = json.loads(html.unescape(told))
    assert {name: drawn[name] for name in series} == series
    answer = api.get(f"/v1/jobs/{claim.job_id}/samples").json()
    assert [one["cpus"] for one in answer["attempts"]] == [series["cpus"]]


def test_samples_of_no_job_are_not_found(api):
    assert api.get("/v1/jobs/7/samples").status_code == 404
    assert api.get("/v1/jobs/0/samples").status_code == 422
    assert api.get("/jobs/7").status_code == 404
    assert api.get("/jobs/x").status_code == 422


def test_the_noise_of_a_log_is_folded_and_of_a_long_one_the_end_is_shown(
    api, submit, ledger, db, monkeypatch
):
    build = submit()
    claim = ledger.claim_next()
    report(db, claim, text="begin\n" + "".join(f"layer {n}\n" for n in range(40)) + "end\n")
    page = shown(api, f"/jobs/{claim.job_id}")
    assert "<summary>40 lines like: layer 0</summary>" in page
    assert "layer 39\n" in page
    assert f'href="/v1/builds/{build}/logs?job={claim.job_id}"' in page
    assert "The end of it." not in page
    monkeypatch.setattr("farm.api.web.job._MOST_LOG", 20)
    page = shown(api, f"/jobs/{claim.job_id}")
    assert "The end of it." in page
    assert "layer 39\n" in page
    assert "begin" not in page


def test_the_slowest_layers_are_shown_where_a_profiler_ran(
    api, submit, ledger, db, store, tmp_path
):
    build = submit()
    ledger.run_all()
    job = job_of(ledger, build, "build")
    layers = [
        {
            "name": f"layer{n}",
            "type": "conv",
            "inputs": [],
            "outputs": [],
            "kernel": f"tactic{n}",
            "microseconds": t,
        }
        for n, t in enumerate([10.0, 30.0, None])
    ]
    compute = {"macs": None, "types": {}}
    file = tmp_path / "report"
    file.write_text(
        json.dumps({"source": "inspector", "compute": compute, "products": [], "layers": layers})
    )
    digest = store.take(file).digest
    with db.write() as session:
        row = session.get_one(Job, job)
        row.outputs = dict(row.outputs) | {"layers": digest}
    words = in_words(shown(api, f"/jobs/{job}"))
    assert re.search(r"layer1 conv 30.0 µs 75 % 75.0 % tactic1 layer0 conv 10.0 µs", words)
    assert "layer2" not in words
    file.write_text("{not a report")
    with db.write() as session:
        session.get_one(Job, job).outputs = {"layers": store.take(file).digest}
    assert "Time by layer" not in shown(api, f"/jobs/{job}")


def test_hostile_texts_are_escaped_wherever_they_are_shown(api, submit, ledger, db):
    build = submit()
    claim = ledger.claim_next(owner=HOSTILE)
    report(db, claim, phase=HOSTILE[:100], text=f"{HOSTILE}\nline\n")
    with db.write() as session:
        for job in session.scalars(select(Job)):
            job.title = HOSTILE
            job.facts = {HOSTILE: HOSTILE, "list": [HOSTILE], "record": {HOSTILE: {"x": HOSTILE}}}
    for _ in range(2):
        for path in (f"/builds/{build}?explain=1", f"/jobs/{claim.job_id}"):
            page = shown(api, path)
            assert "<script>alert" not in page
            assert "&lt;script&gt;alert" in page
            assert "\x1b" not in page
            assert "\u202e" not in page
        if ledger.view(build).state == "running":
            ledger.fail(claim, CalibrationFailed(HOSTILE, hint=HOSTILE))


@pytest.mark.parametrize("path", ["/builds/last", "/jobs/1"])
def test_headings_go_down_by_one_and_what_is_named_is_there(api, submit, ledger, path):
    submit()
    ledger.fail(ledger.claim_next(), CalibrationFailed("no", hint="more"))
    page = shown(api, path)
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(ids)
