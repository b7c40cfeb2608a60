"""How an engine was quantised, in Chromium: drawn without a script or another host, and read by everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from farm.database.session import Database
from farm.database.tables import Job
from farm.stages import JobKind
from tests import quantised
from tests.browser.test_pages import check_readable
from tests.contract.live_api import LiveApi, live_api
from tests.ledger import Ledger

pytestmark = pytest.mark.heavy

HOSTILE = "<img src=x onerror=alert(1)>" * 4


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
        ledger.run_all(compute=quantised.COMPUTE)
        hostile = quantised.histogram(HOSTILE, 0.4)
        outputs = {"histograms": api.upload(quantised.histograms(hostile))}
        facts = quantised.facts(**{HOSTILE: -2.5})
        with db.write() as session:
            calibrations = update(Job).where(Job.kind == JobKind.CALIBRATE)
            session.execute(calibrations.values(facts=facts, outputs=outputs))
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
