"""``farm watch``: progress as lines, as JSON and in place, and the exit codes."""

from __future__ import annotations

import io
import json
import re
import threading
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from farm.cli import exits, show, watch
from farm.cli.patience import Patience
from farm.client import Build, Farm
from farm.errors import InvalidRequest
from farm.schemas.builds import BuildView
from farm.testing import documents
from farm.testing.documents import BUILD
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def test_watch_prints_a_line_a_change(run: Run) -> None:
    result = run("watch", BUILD)
    assert result.exit_code == exits.OK
    lines = [line.partition("  ")[2] for line in result.stdout.splitlines()[1:7]]
    assert lines[:5] == [
        f"build {BUILD}  queued",
        "build digits:int8@sm_89  running (on w1)",
        "build digits:int8@sm_89  compile",
        "build digits:int8@sm_89  succeeded",
        f"build {BUILD}  succeeded",
    ]
    assert f"build {BUILD} succeeded after 1 min 05 s: 1 of 1 engine" in result.stdout


def test_watch_prints_events_as_lines_of_json(run: Run) -> None:
    result = run("watch", BUILD, "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 2, 3, 4, 5, 6, 7]


def test_watching_a_build_that_fails_tells_the_cause_and_exits_1(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.failed_build()
    result = run("watch", BUILD)
    assert result.exit_code == exits.FAILED
    assert result.stderr == "error: calibrate digits: no samples [for image]\nhint: add samples\n"
    assert "farm retry" not in result.stdout  # it would fail again


def test_watch_tells_each_failure_once(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = failed = documents.failed_build()
    job = {"job": 1, "title": "calibrate digits"}
    worker = {"code": "child-died", "detail": "killed"}
    stub.events = [
        documents.event(1, "job", state="queued", data={"error": worker, "attempt": 2}, **job),
        documents.event(
            2, "job", state="failed", data={"error": failed["jobs"][0]["error"]}, **job
        ),
        documents.event(3, "build", state="failed"),
    ]
    result = run("watch", BUILD)
    assert "calibrate digits  queued (attempt 2; killed)\n" in result.stdout
    assert "calibrate digits  failed (calibration-failed)\n" in result.stdout
    assert (result.stdout + result.stderr).count("no samples [for image]") == 1


def test_watching_a_build_whose_worker_failed_says_how_to_run_it_again(
    run: Run, stub: StubFarm
) -> None:
    stub.builds[BUILD] = failed = documents.failed_build()
    failed["jobs"][0]["error"] |= {"code": "child-timed-out"}
    result = run("watch", BUILD)
    assert result.exit_code == exits.FAILED
    assert f"farm retry {BUILD}" in result.stdout


def test_watching_a_build_that_fails_as_json_ends_with_a_problem(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.failed_build()
    result = run("watch", BUILD, "--json")
    assert result.exit_code == exits.FAILED
    assert json.loads(result.stderr)["code"] == "build-failed"


DOUBT = "the class is the source's in 19.0% (98% is the gate) over 64 random samples"


def test_watching_a_build_with_a_doubtful_engine_says_why_and_exits_5(
    run: Run, stub: StubFarm
) -> None:
    doubtful = stub.builds[BUILD]["engines"][0] | {"doubts": [DOUBT]}
    stub.builds[BUILD] |= {"engines_doubtful": 1, "engines": [doubtful]}
    result = run("watch", BUILD)
    assert result.exit_code == exits.DOUBTFUL
    assert "1 of 1 engine, 1 of them doubtful" in result.stdout
    assert f"doubtful: int8@tensorrt-rtx:sm_89: {DOUBT}" in result.stderr
    assert run("watch", BUILD, "--json").exit_code == exits.DOUBTFUL


def test_watching_a_cancelled_build_exits_1(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.build("cancelled")
    assert run("watch", BUILD).exit_code == exits.FAILED


def _interrupt(self: Build, *, after: int = 0) -> Any:
    raise KeyboardInterrupt


def test_ctrl_c_stops_watching_and_says_how_to_resume(
    run: Run, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Build, "events", _interrupt)
    result = run("watch", BUILD)
    assert result.exit_code == exits.INTERRUPTED
    assert f"build {BUILD} continues. To resume: farm watch {BUILD}\n" in result.stderr
    assert not stub.asked("POST", f"/v1/builds/{BUILD}/cancel")


def test_what_to_type_next_names_the_farm_that_was_given(
    run: Run, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARM_URL")
    monkeypatch.setattr(Build, "events", _interrupt)
    result = run("watch", BUILD, "--url", stub.url)
    assert f"To resume: farm watch {BUILD} --url {stub.url}\n" in result.stderr


def test_on_a_terminal_watch_shows_the_jobs_in_place(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=120, height=40, markup=False)
    monkeypatch.setattr(show, "console", lambda: screen)
    with Farm(stub.url) as farm:
        build = farm.build(BUILD)
        watch._live(build, Patience(build, None))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"2 +build digits:int8@sm_89 +succeeded +host-cpu +1 min 05 s", text)
    assert "engines 1/1" in text


def test_on_a_terminal_watch_tells_when_the_farm_is_lost(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(self: Build, *, after: int = 0) -> Any:
        raise InvalidRequest("lost")

    monkeypatch.setattr(Build, "events", lose)
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(show, "console", lambda: screen)
    with Farm(stub.url) as farm:
        build = farm.build(BUILD)
        with pytest.raises(InvalidRequest, match="lost"):
            watch._live(build, Patience(build, None))
    assert not [t for t in threading.enumerate() if t.name == "watch"]


def test_a_build_of_many_jobs_shows_those_that_matter_on_a_small_terminal() -> None:
    view = documents.build()
    view["jobs"] = [documents.job(n, f"build {n}") for n in range(50)]
    view["jobs"][40]["state"] = "running"
    from farm.schemas.builds import BuildView

    table = watch._jobs_grid(BuildView.model_validate(view).jobs, room=3)
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    assert len(out.getvalue().splitlines()) == 4
    assert "build 40" in out.getvalue()


def test_each_job_is_a_line_of_a_narrow_terminal_however_long_its_title_is() -> None:
    title = "build 漢字の名前がとても長い-encoder:int8@tensorrt-rtx:sm_89"
    jobs = [
        documents.job(number, f"{title}-{number}", "running", worker="a-host-with-a-long-name-gpu0")
        for number in range(60)
    ]
    view = BuildView.model_validate(documents.build("running", jobs=jobs, finished_at=None))
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=80, height=30, markup=False)
    screen.print(watch._Screen(view))
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).splitlines()
    assert len(lines) <= 30
    assert max(map(cell_len, lines)) <= 80
    assert sum("running" in line for line in lines) == 22 + 1  # the jobs, and the build
    assert lines[2].startswith("0    build")
