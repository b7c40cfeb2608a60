"""The documentation's pictures: the page and Flower, of a farm that was made up for them.

``make docs-pictures`` writes them into ``docs/pictures``;
otherwise they are made, and their words are checked.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Artifact, Build, EngineRow, Job
from farm.errors import InvalidModel
from farm.queue import jobs as reporting
from farm.queue import samples, shown
from farm.registry import aliases
from farm.schemas.aliases import PromoteRequest
from tests import chromium as browser_of_tests
from tests import quantised
from tests.contract import test_flower as flower
from tests.contract.live_api import LiveApi, live_api
from tests.e2e.live import wait_until
from tests.keys import bearer
from tests.ledger import DATA, LABELLED, SOURCE, Ledger

pytestmark = pytest.mark.heavy

KEPT = Path(__file__).parents[2] / "docs" / "pictures"
MOST_BYTES = 100_000
#: An address of an example, which the browser is told to find on this machine.
NAME = "farm.example"
#: p50 in ms at batch 8, and bytes, by target and precision.
_SPEEDS = {
    ("onnxruntime:cpu", "fp32"): (2.31, 4_840_000),
    ("onnxruntime:cpu", "fp16"): (2.48, 2_450_000),
    ("onnxruntime:cpu", "int8"): (0.94, 1_260_000),
    ("tensorrt:t4", "fp32"): (0.412, 5_910_000),
    ("tensorrt:t4", "fp16"): (0.187, 2_980_000),
    ("tensorrt:t4", "int8"): (0.121, 1_620_000),
}
_INTERFACE = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}],
    "outputs": [{"name": "scores", "dtype": "float32", "shape": ["batch", 1000]}],
}
_GPU = ("tensorrt.t4", "onnxruntime.t4")
_PATIENCE_S = 180.0
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
#: Ids and times differ each time, and would make every picture a new one.
_STILL = """() => {
  document.querySelectorAll("time").forEach((one) => { one.textContent = "3 minutes ago" })
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let one; (one = walk.nextNode()); ) {
    one.textContent = one.textContent
      .replace(/\\b01[0-9a-z]{14}\\b/g, "01m7y8mb9kssegkq")
      .replace(/\\b20\\d\\d-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d\\.\\d+/g, "2026-11-26 09:14:00.000000")
  }
}"""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    home = tmp_path_factory.mktemp("farm")
    with live_api(home, {"FARM_HOSTS": NAME}) as api:
        db = Database(api.settings.database)
        _fill(Ledger(db))
        outputs = {"histograms": api.upload(quantised.histograms())}
        with db.write() as session:
            session.execute(
                update(Job)
                .where(Job.kind == "calibrate", Job.state == "succeeded")
                .values(outputs=outputs)
            )
        yield api
        db.dispose()


def _fill(ledger: Ledger) -> None:
    """Two versions of a classifier, one being built; a model that failed; one that waits for an H100."""
    with ledger.db.write() as session:
        session.add_all(Artifact(digest=one, bytes=10) for one in (SOURCE, DATA, LABELLED))
    ledger.worker("cpu@build-1")
    ledger.worker("gpu0@t4-1", queues=_GPU, gpu="Tesla T4", gpu_uuid="GPU-1", tags=("t4", "sm_75"))
    asked = {
        "targets": ["cpu", "t4"],
        "precisions": ["fp32", "fp16", "int8"],
        "skip_unsupported": True,
        "calibration": {"digest": DATA},
        "evaluation": {"digest": LABELLED, "metric": "top1"},
        "labels": {"team": "vision"},
    }
    ledger.submit(model="classifier", **asked | {"precisions": ["fp32", "int8"], "targets": ["t4"]})
    _run(ledger)
    with ledger.db.write() as session:
        by = aliases.By(who="ops")
        aliases.promote(session, "classifier", "prod", PromoteRequest(version=1), by, dry_run=False)
    ledger.submit(model="classifier", source=ledger.upload(2), **asked)
    _run(ledger)
    ledger.submit(model="detector", source=ledger.upload(3))
    unknown = InvalidModel(
        "ONNX Runtime 1.31.1 can't load the model: acme:MagicBlend is not a registered operator",
        hint="rewrite acme:MagicBlend with standard ONNX operators, and export it again",
    )
    ledger.fail(ledger.claim_next(owner="cpu@build-1"), unknown)
    ledger.submit(model="ranker", source=ledger.upload(4), targets=["tensorrt:h100"])
    _run(ledger)
    ledger.submit(model="classifier", source=ledger.upload(5), **asked)
    _run(ledger, until="calibrate")
    with ledger.db.write() as session:
        running = session.scalars(select(Job).where(Job.state == "running")).one()
        reporting.report(session, running.id, running.attempt, phase="collect", progress=0.6)
    _spread(ledger.db)


def _run(ledger: Ledger, until: str | None = None) -> None:
    """Run what workers can; leave the first job of a kind running."""
    while queue := [job for job in ledger.queued() if job.queue != "tensorrt.h100"]:
        job = queue[0]
        claim = ledger.claim(job, owner="gpu0@t4-1" if job.queue in _GPU else "cpu@build-1")
        assert claim is not None
        if claim.kind == until:
            return
        ledger.succeed(claim, **_facts(job))


def _facts(job: Job) -> dict[str, Any]:
    speed = _SPEEDS.get((job.target or "", job.precision or ""))
    if job.kind == "export":
        return _INTERFACE
    if job.kind == "calibrate":
        return quantised.facts()
    if job.kind == "build" and job.precision == "int8":
        return {"compute": quantised.COMPUTE}
    if job.kind != "measure" or speed is None:
        return {}
    p50, _ = speed
    is_int8 = job.precision == "int8"
    drop = 0.005 if is_int8 else 0.0
    return {
        "metrics": {
            "latency_ms": {"p50": p50, "p90": p50 * 1.04, "p99": p50 * 1.1},
            "samples_per_s": 8000 / p50,
            "batch": 8,
            "settings": {"device": "Tesla T4" if "t4" in (job.target or "") else "CPU"},
        },
        "metrics_reason": None,
        "accuracy": {
            "data": "evaluation",
            "samples": 2000,
            "top1_agreement": 0.985 if is_int8 else 0.9995,
            "task": {"metric": "top1", "source": 0.914, "engine": 0.914 - drop, "drop": drop},
        },
    }


def _spread(db: Database) -> None:
    """Have each job take its time, and the measurement on the T4 have used it."""
    began = now() - timedelta(minutes=4)
    with db.write() as session:
        for job in session.scalars(select(Job).where(Job.started_at.is_not(None))):
            job.started_at = began
            if job.finished_at is not None:
                job.finished_at = began + timedelta(seconds=2 + job.id % 7)
        for build in session.scalars(select(Build).where(Build.finished_at.is_not(None))):
            build.started_at = began
            build.finished_at = began + timedelta(seconds=41)
        for engine in session.scalars(select(EngineRow)):
            _, size = _SPEEDS[f"{engine.runtime}:{engine.gpu}", engine.precision]
            session.get_one(Artifact, engine.digest).bytes = size
        job = _measured(session)
        busy = [min(1.0, at / 3) for at in range(20)]
        series = {
            "at_s": [at / 2 for at in range(1, 21)],
            "cpus": [1.0 + 0.2 * (at % 3) for at in range(20)],
            "memory_bytes": [int(8e8 + 2e8 * one) for one in busy],
            "gpu_share": [0.95 * one for one in busy],
            "gpu_memory_bytes": [int(3e8 + 9e8 * one) for one in busy],
            "gpu_power_w": [30 + 38 * one for one in busy],
            "gpu_clock_mhz": [int(585 + 1005 * one) for one in busy],
        }
        samples.keep(session, job.id, 1, began_at=began, series=series)
        reporting.report(session, job.id, 1, text="batch 8: 500 runs, 3 rounds\n")


def _measured(session: Any) -> Job:
    wanted = select(Job).where(Job.kind == "measure", Job.target == "tensorrt:t4")
    return session.scalars(wanted.where(Job.precision == "int8").order_by(Job.id)).first()


@pytest.fixture(scope="module")
def page(chromium: Any, farm: LiveApi) -> Iterator[Any]:
    rules = f"--host-resolver-rules=MAP {NAME}:80 127.0.0.1:{farm.port}"
    browser = chromium.browser_type.launch(
        executable_path=browser_of_tests.program(),
        args=[*_OPTIONS, rules, f"--unsafely-treat-insecure-origin-as-secure=http://{NAME}"],
    )
    context = browser.new_context(
        base_url=f"http://{NAME}",
        viewport={"width": 1100, "height": 760},
        extra_http_headers={"Authorization": f"Bearer {farm.key}"},
    )
    made = context.new_page()
    said: list[str] = []
    made.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    yield made
    browser.close()
    assert said == []


def _kept(page: Any, name: str, folder: Path) -> None:
    """Write a picture of what the page shows, where it is kept if that is wanted."""
    page.evaluate(_STILL)
    to = KEPT if os.environ.get("FARM_DOCS_PICTURES") else folder
    to.mkdir(exist_ok=True)
    path = to / f"{name}.webp"
    session = page.context.new_cdp_session(page)
    shot = session.send("Page.captureScreenshot", {"format": "webp", "quality": 85})
    path.write_bytes(base64.b64decode(shot["data"]))
    assert 5_000 < path.stat().st_size <= MOST_BYTES, name
    assert (KEPT / path.name).is_file(), "make docs-pictures, and commit it"


def _from(page: Any, heading: str) -> None:
    """Scroll to a heading."""
    page.locator(heading).evaluate("(one) => window.scrollTo(0, one.offsetTop - 12)")


def test_now(page: Any, tmp_path: Path) -> None:
    page.goto("/")
    words = page.inner_text("main")
    assert "calibrate classifier:int8" in words
    assert "Waits for a worker with a GPU h100" in words
    assert "rewrite acme:MagicBlend" in words
    _kept(page, "now", tmp_path)


def test_a_model(page: Any, tmp_path: Path) -> None:
    page.goto("/models/classifier?version=2")
    words = page.inner_text("main")
    assert "p50 0.121 ms at batch 8" in words
    assert "top1 90.9 % (source 91.4 %)" in words
    assert words.count("best") >= 2
    _from(page, "#engines")
    _kept(page, "model", tmp_path)


def test_a_quantised_engine(page: Any, farm: LiveApi, tmp_path: Path) -> None:
    shown = farm.http.get("/v1/models/classifier/engines", params={"precision": "int8"}).json()
    engine = next(one for one in shown["items"] if one["gpu"] == "cpu")
    page.goto(f"/engines/{engine['id']}")
    words = page.inner_text("main")
    assert "91 % int8 by auto, 512 samples; worst layer 18.0 dB" in words
    assert page.get_by_role("img", name="Range of /features").count() == 6
    _from(page, "#noise")
    _kept(page, "quantised", tmp_path)


def test_a_job(page: Any, farm: LiveApi, tmp_path: Path) -> None:
    db = Database(farm.settings.database)
    with db.read() as session:
        job = _measured(session)
    db.dispose()
    page.goto(f"/jobs/{job.id}")
    page.locator(".use canvas").first.wait_for()
    words = page.inner_text("main")
    assert "measure classifier:int8@t4" in words
    assert "GPU power\n30 to 68 W" in words
    _from(page, "#used")
    _kept(page, "job", tmp_path)


def test_a_task_in_flower(page: Any, farm: LiveApi, tmp_path: Path) -> None:
    db = Database(farm.settings.database)
    with db.read() as session:
        failed = select(Job).where(Job.state == "failed", Job.started_at.is_not(None))
        job = session.scalars(failed.order_by(Job.id)).first()
        task = shown.task_id(job.id, job.attempt)
    db.dispose()
    with flower.running(farm.settings, FARM_PUBLIC_URL=f"http://{NAME}") as url:
        # Not by the page, whose console would keep each 404 until then.
        def is_there() -> bool:
            answer = httpx2.get(f"{url}/task/{task}", headers=bearer(farm.key), timeout=_PATIENCE_S)
            return answer.is_success

        wait_until("Flower has the attempt", is_there)
        page.goto(f"{url}/task/{task}")
        page.get_by_text("FAILURE").first.wait_for()
        words = page.inner_text("body")
        assert f"http://{NAME}/jobs/{job.id}" in words
        assert "acme:MagicBlend" in words
        _kept(page, "flower", tmp_path)
