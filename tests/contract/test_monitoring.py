"""The alert rules and the dashboard in deploy/ work on what a farm tells."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from farm.database.session import Database
from farm.errors import ChildTimedOut
from farm.fleet import workers
from farm.local.up import free_port
from farm.machine.load import GpuLoad
from farm.specs.monitoring import METRICS
from farm.store.local import LocalStore
from tests.contract.files import run_with_files
from tests.contract.live_api import LiveApi, live_api
from tests.ledger import Ledger
from tests.promtool import promtool, tool
from tests.sandboxed import wait_for

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/alerts.yml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
TESTED = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text())["tests"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/engine-farm.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
#: What Prometheus and its client library tell of every process.
THEIRS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def named(expression: str) -> set[str]:
    """The series that a query names."""
    found = set(re.findall(r"\b(?:farm_|process_)\w+", expression))
    return found | ({"up"} if re.search(r"\bup\b", expression) else set())


EXPRESSIONS = [*QUERIES, *(alert["expr"] for alert in ALERTS)]
NAMED = set().union(*map(named, EXPRESSIONS))


def test_the_configuration_is_valid():
    assert "SUCCESS" in promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_the_alerts_fire_when_they_should():
    assert "SUCCESS" in promtool("test", "rules", DEPLOY / "prometheus/alerts_test.yml")


def test_each_alert_is_shown_to_fire_and_to_stay_quiet():
    cases = [case for test in TESTED for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in ALERTS}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_each_alert_has_its_place_in_the_guide():
    guide = (ROOT / "docs/how-to/monitoring.md").read_text()
    rows = re.findall(r"^\| `(Farm\w+)` \|", guide, re.MULTILINE)
    assert rows == [alert["alert"] for alert in ALERTS]


def test_rules_and_dashboard_name_metrics_that_the_farm_declares():
    declared = {name for metric in METRICS for name in metric.series}
    assert NAMED - THEIRS - declared == set()


def test_every_metric_is_on_the_dashboard_but_those_that_explain_others():
    shown = set().union(*map(named, QUERIES))
    left_out = {one.name for one in METRICS if shown.isdisjoint(one.series)}
    assert left_out == {"farm_info", "farm_store_counted_timestamp_seconds"}


def test_what_all_api_processes_tell_is_counted_once():
    of_farm = {name for one in METRICS if one.source == "farm" for name in one.series}
    for expression in EXPRESSIONS:
        if named(expression) & of_farm:
            once = r"(max|min) without \(instance\)|^(max|min)\("
            assert re.search(once, expression.strip()), expression


def test_panels_have_places_of_their_own():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


# A running farm


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A served API with a worker that has a GPU, and builds that succeeded, failed and wait."""
    stays = {"FARM_WORKER_TTL_S": "3600"}  # without a heartbeat
    with live_api(tmp_path_factory.mktemp("api"), stays) as live:
        db = Database(live.settings.database)
        ledger = Ledger(db)
        ledger.worker()
        ledger.worker("gpu0@here", ("tensorrt.sm_89",), gpu="NVIDIA L4", tags=("sm_89", "l4"))
        load = GpuLoad(
            utilization=0.5, memory_used_bytes=1, memory_bytes=2, power_w=60, temperature_c=50
        )
        with db.write() as session:
            workers.seen(session, "gpu0@here", load=load)
        submit(live, b"good", "tensorrt-rtx:sm_89")
        run_with_files(db, LocalStore(live.settings.store_dir))
        submit(live, b"bad", "tensorrt-rtx:sm_89")
        ledger.fail(ledger.claim_next(), ChildTimedOut())
        submit(live, b"waits", "tensorrt:sm_90")
        while job := ledger.first_in_line("cpu"):
            ledger.succeed(ledger.claim(job))
        yield live
        db.dispose()


def submit(api: LiveApi, content: bytes, target: str) -> None:
    source = {"digest": api.upload(content), "format": "onnx"}
    asked = {"model": content.decode(), "source": source, "precisions": ["fp16"]}
    answer = api.http.post("/v1/builds", json=asked | {"targets": [target]})
    assert answer.status_code == 202, answer.text


def scraped(api: LiveApi) -> str:
    return httpx2.get(f"{api.url}/metrics").raise_for_status().text


def test_a_running_farm_tells_every_metric_that_rules_and_dashboard_name(api):
    wanted = NAMED - {"up"}

    def missing() -> set[str]:
        told = set(re.findall(r"^(\w+)", scraped(api), re.MULTILINE))
        return wanted - told

    wait_for(lambda: not missing(), 60)
    assert promtool("check", "metrics", given=scraped(api)) == ""


@contextlib.contextmanager
def prometheus(api: LiveApi, home: Path) -> Iterator[httpx2.Client]:
    """Prometheus as deploy/ configures it, on this API, in a hurry."""
    program = tool("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    [farm] = config["scrape_configs"]
    farm["static_configs"] = [{"targets": [f"127.0.0.1:{api.port}"]}]
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program,
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:

            def is_ready() -> bool:
                assert process.poll() is None, (home / "prometheus.log").read_text()
                with contextlib.suppress(httpx2.TransportError):
                    return http.get("/-/ready").status_code == 200
                return False

            wait_for(is_ready, 60)
            yield http
    finally:
        process.terminate()
        process.wait(120)


@pytest.mark.heavy
def test_prometheus_scrapes_a_farm_evaluates_the_rules_and_answers_every_panel(api, tmp_path):
    with prometheus(api, tmp_path) as http:

        def ask(path: str, **query: str) -> dict:
            return http.get(path, params=query).raise_for_status().json()["data"]

        def empty() -> list[str]:
            return [
                query for query in QUERIES if not ask("/api/v1/query", query=asked(query))["result"]
            ]

        wait_for(lambda: not empty(), 120)
        [target] = ask("/api/v1/targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")

        def rules() -> list[dict]:
            return [rule for group in ask("/api/v1/rules")["groups"] for rule in group["rules"]]

        wait_for(lambda: all(rule["health"] == "ok" for rule in rules()), 60)
        assert len(rules()) == len(ALERTS)
        pending = {
            (alert["labels"]["alertname"], alert["labels"].get("queue"))
            for rule in rules()
            for alert in rule["alerts"]
            if not rule["name"].startswith("FarmStore")  # as this machine's disk is
        }
        assert pending == {("FarmQueueWithoutWorker", "tensorrt.sm_90")}


def asked(query: str) -> str:
    """A panel's query as Grafana asks it, without what hides zeros."""
    return query.removesuffix(" > 0").replace("$__rate_interval", "1m")
