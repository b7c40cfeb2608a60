"""``farm top``: workers, queues and running jobs at one moment."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from farm.cli import exits, show, top
from farm.client import Farm
from farm.testing import documents
from farm.testing.documents import BUILD
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def _worker(name: str, *, online: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "host": "host",
        "online": online,
        "gpu": None,
        "gpu_uuid": None,
        "tags": ["cpu"],
        "queues": ["cpu"],
        "runtimes": {},
        "toolchain": {},
        "job": None,
        "job_title": None,
        "started_at": documents.NOW,
        "last_seen_at": documents.NOW,
    } | changes


@pytest.fixture
def busy(stub: StubFarm) -> StubFarm:
    """A farm that runs one job, while three wait in two queues."""
    title = "build digits:int8@sm_89"
    gone = "a worker with a GPU h200 and tensorrt installed (start one there: farm worker)"
    stub.workers = [
        _worker("b-off", online=False),
        _worker("gpu0", gpu="NVIDIA L4", queues=["tensorrt.sm_89"], job=2, job_title=title),
        _worker("cpu0"),
    ]
    stub.queues = [
        {"queue": "tensorrt.h200", "jobs": 1, "oldest_s": 7201.5, "workers": 0, "waits_for": gone},
        {"queue": "tensorrt.sm_89", "jobs": 2, "oldest_s": 30, "workers": 1, "waits_for": None},
        {"queue": "cpu", "jobs": 0, "oldest_s": 0, "workers": 1, "waits_for": None},
    ]
    stub.running = [
        {
            "id": 2,
            "title": title,
            "kind": "build",
            "worker": "gpu0",
            "attempt": 1,
            "phase": "compile",
            "progress": 0.42,
            "started_at": _ago(65),
            "builds": [BUILD],
        }
    ]
    return stub


def _rows(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip()]


def test_top_prints_workers_queues_and_running_jobs_once_where_there_is_no_terminal(
    run: Run, busy: StubFarm
) -> None:
    result = run("top")
    assert result.exit_code == exits.OK, result.output
    rows = _rows(result.stdout)
    assert rows[0] == ["2 of 3 workers online · jobs: 1 running, 3 queued"]
    assert rows[1:5] == [
        ["worker", "state", "gpu", "job"],
        ["cpu0", "online", "CPU", "–"],
        ["gpu0", "online", "NVIDIA L4", "build digits:int8@sm_89"],
        ["b-off", "offline", "CPU", "–"],
    ]
    assert rows[5] == ["queue", "jobs", "oldest", "workers"]
    assert [[row[0], row[1], row[3]] for row in rows[6:8]] == [
        ["tensorrt.h200", "1", "0"],
        ["tensorrt.sm_89", "2", "1"],
    ]
    assert rows[6][2].startswith("2 h")
    assert rows[8] == ["job", "title", "stage", "time"]
    assert rows[9][:5] == ["2", "build digits:int8@sm_89", "compile", "████░░░░░░", "42%"]
    assert rows[9][5].startswith("1 min")
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_top_is_one_document_with_json(run: Run, busy: StubFarm) -> None:
    seen = json.loads(run("top", "--json").stdout)
    assert [one["name"] for one in seen["workers"]] == ["cpu0", "gpu0", "b-off"]
    assert [(one["queue"], one["jobs"], one["workers"]) for one in seen["queues"]] == [
        ("tensorrt.h200", 1, 0),
        ("tensorrt.sm_89", 2, 1),
        ("cpu", 0, 1),
    ]
    assert seen["queues"][0]["oldest_s"] >= 7200
    assert [(job["id"], job["progress"]) for job in seen["running"]] == [(2, 0.42)]


def test_an_idle_farm_says_so(run: Run, stub: StubFarm) -> None:
    said = run("top", "--once").stdout
    assert "0 of 0 workers online · jobs: 0 running, 0 queued" in said
    for line in ("no workers; start some: farm worker", "nothing is queued", "nothing runs"):
        assert f"{line}\n" in re.sub(r" +\n", "\n", said)


def test_on_a_terminal_top_refreshes_until_it_is_interrupted(
    busy: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=80, height=40, markup=False)
    monkeypatch.setattr(show, "console", lambda: screen)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        busy.running[0]["phase"] = "time tactics"

    monkeypatch.setattr(top.time, "sleep", pause)
    with Farm(busy.url) as farm:
        top._live(farm)
    assert pauses == [2.0, 2.0]
    assert "compile" in shown.getvalue()
    assert "time tactics" in shown.getvalue()
