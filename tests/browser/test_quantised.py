"""How an engine was quantised, in Chromium: drawn without a script or another host, and read by everybody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from farm.database.session import Database
from farm.database.tables import Job
from farm.reports.histograms import BINS, Histograms, TensorHistogram
from farm.stages import JobKind
from tests.browser.test_pages import check_readable
from tests.contract.live_api import LiveApi, live_api
from tests.ledger import Ledger

pytestmark = pytest.mark.heavy

NAMES = [f"/features/features.{n}/conv/conv.{n % 3}/Clip_output_0" for n in range(40)]
HOSTILE = "<img src=x onerror=alert(1)>" * 4
RATIOS = {name: 18 + 20 * abs(math.sin(at)) for at, name in enumerate(NAMES)} | {HOSTILE: -2.5}


def _histogram(name: str, sigma: float) -> TensorHistogram:
    counts = [int(2e6 * math.exp(-((at / BINS * 8 / sigma) ** 2) / 2)) for at in range(BINS)]
    counts[-1] = 3
    ranges = {"max": 8.0, "mse": 3.4 * sigma, "entropy": 3.9 * sigma, "percentile": 3.7 * sigma}
    return TensorHistogram(
        tensor=name[:200],
        largest=8.0,
        counts=counts,
        range=3.4 * sigma,
        method="mse",
        ranges=ranges,
    )


HISTOGRAMS = Histograms(
    tensors=[_histogram(HOSTILE, 0.4), *(_histogram(n, 0.5 + at / 9) for at, n in enumerate(NAMES))]
)
TRIED = [
    {"what": "plain", "drop": 0.041, "predicted_time": 0.42, "int8_share": 1.0},
    {"what": "biases corrected", "drop": 0.027, "predicted_time": 0.42, "int8_share": 1.0},
    {"what": "equalised", "predicted_time": 0.44, "int8_share": 1.0},
    {"what": "6 of 41 layers in floats", "drop": 0.004, "predicted_time": 0.61, "int8_share": 0.8},
    {
        "what": "3 of 41 layers in floats",
        "drop": 0.008,
        "held_out_drop": 0.009,
        "predicted_time": 0.52,
        "int8_share": 0.91,
        "kept": True,
    },
]
FACTS = {
    "samples": 512,
    "method": "auto",
    "qdq_pairs": 41,
    "snr_db": RATIOS,
    "left_in_float": {"head of a detector": ["/head/conv"]},
    "search": {
        "metric": "top1",
        "max_drop": 0.01,
        "budget_s": 600,
        "spent_s": 184.0,
        "samples": 384,
        "held_out": 128,
        "drop": 0.008,
        "int8_share": 0.91,
        "tried": TRIED,
    },
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with live_api(tmp_path_factory.mktemp("farm")) as api:
        db = Database(api.settings.database)
        ledger = Ledger(db)
        ledger.worker()
        data = {"digest": api.upload(b"samples")}
        ledger.submit(
            source=ledger.upload(1),
            targets=["onnxruntime:cpu"],
            precisions=["int8"],
            calibration=data,
        )
        compute = {
            "source": "optimised-graph",
            "macs": 10,
            "types": {"int8": {"layers": 41, "share": 0.97}},
        }
        ledger.run_all(compute=compute)
        outputs = {"histograms": api.upload(HISTOGRAMS.model_dump_json().encode())}
        with db.write() as session:
            calibrations = update(Job).where(Job.kind == JobKind.CALIBRATE)
            session.execute(calibrations.values(facts=FACTS, outputs=outputs))
        db.dispose()
        yield api


@pytest.fixture
def engine(farm: LiveApi) -> str:
    [found] = farm.http.get("/v1/models/digits/engines").json()["items"]
    return str(found["id"])


def test_its_pictures_are_drawn_and_what_a_model_is_called_stays_a_name(
    chromium: Any, farm: LiveApi, engine: str
) -> None:
    context = chromium.new_context(
        base_url=farm.url, extra_http_headers={"Authorization": f"Bearer {farm.key}"}
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("request", lambda one: asked.append(one.url))
    page.goto(f"/engines/{engine}")
    pictures = page.get_by_role("img")
    assert pictures.count() == 8
    assert page.get_by_role("img", name="Signal to noise by layer").is_visible()
    bars = page.locator("#quantization ~ .wide svg").first.locator("rect")
    assert bars.count() == 41
    blue = bars.first.evaluate("(one) => getComputedStyle(one).fill")
    page.emulate_media(color_scheme="dark")
    assert bars.first.evaluate("(one) => getComputedStyle(one).fill") != blue
    assert page.locator("img").count() == 0
    page.get_by_text("Each tensor’s signal to noise and ranges").click()
    page.get_by_role("link", name=HOSTILE).click()
    assert page.locator("svg path").count() == 1
    assert page.locator("svg > rect").first.evaluate("(one) => getComputedStyle(one).fill") == (
        "rgb(14, 17, 22)"
    )
    context.close()
    assert [one for one in asked if not one.startswith(farm.url)] == []
    assert said == []


def test_an_engines_quantisation_can_be_read_by_everybody(
    chromium: Any, farm: LiveApi, engine: str
) -> None:
    check_readable(chromium, farm, f"/engines/{engine}")
