"""Builds on the command line: status, logs, cancel, retry, explain."""

from __future__ import annotations

import json
import re

from farm.cli import exits
from farm.testing import documents
from farm.testing.documents import BUILD
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def test_status_shows_jobs_and_engines(run: Run) -> None:
    result = run("status", BUILD)
    assert result.exit_code == exits.OK
    assert re.search(r"1 +export digits +succeeded +cached", result.stdout)
    assert "01m7y8mbznssegkq" in result.stdout
    assert "labels: team=vision" in result.stdout


def test_status_of_a_failed_build_shows_brackets_as_they_are(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.failed_build()
    result = run("status", BUILD)
    assert "calibrate digits failed: no samples [for image]" in result.stdout
    assert f"farm logs {BUILD} --job 1" in result.stdout


def test_logs_are_printed_as_they_are(run: Run) -> None:
    assert run("logs", BUILD).stdout == "=== build digits\ntactic 7\n"
    assert json.loads(run("logs", BUILD, "--json").stdout)["text"].endswith("tactic 7\n")


def test_logs_are_followed(run: Run) -> None:
    assert run("logs", BUILD, "--follow").stdout == "=== build digits:int8@sm_89\ntactic 7\n"
    assert run("logs", BUILD, "-f", "--job", "2").stdout == "tactic 7\n"


def test_cancel_and_retry_say_what_became_of_the_build(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = documents.build("running")
    link = f"  on the page: {stub.url}/builds/{BUILD}\n"
    assert run("cancel", BUILD).stdout == f"build {BUILD} cancelled\n{link}"
    assert run("cancel", BUILD).stdout == f"build {BUILD} had already ended: cancelled\n{link}"
    assert f"farm watch {BUILD}" in run("retry", BUILD).stdout
    assert run("retry", BUILD, "--force").exit_code == exits.OK
    assert stub.asked("POST", f"/v1/builds/{BUILD}/retry?force=true")


def test_explain_says_what_differs(run: Run) -> None:
    assert "differs from job 1: method entropy → max" in run("explain", BUILD).stdout
    assert json.loads(run("explain", BUILD, "--json").stdout)["jobs"][0]["nearest"] == 1


def test_builds_are_listed(run: Run) -> None:
    result = run("builds", "--model", "digits", "--state", "succeeded")
    assert re.search(rf"{BUILD} +digits v1 +succeeded +1/1 +.* ago +1 min 05 s\n", result.stdout)
    wide = run("builds", "--model", "digits", "--wide").stdout
    assert re.search(r"1 min 05 s +rtx-4090 +int8", wide)
    assert [one["id"] for one in json.loads(run("builds", "--json").stdout)] == [BUILD]


def test_status_tells_how_much_longer_a_build_is_expected_to_take(run: Run, stub: StubFarm) -> None:
    running = documents.build("running", remaining_s=65.0)
    running["jobs"][-1] |= {"state": "running", "expected_s": 8.0, "finished_at": None}
    stub.builds[BUILD] = running
    said = run("status", BUILD).stdout
    assert re.search(r": running, .*, about 1 min 05 s left\n", said)
    assert " of ~8.0 s" in said
    stub.builds[BUILD] = documents.build("running")
    assert " left" not in run("status", BUILD).stdout
