"""Models and engines in Chromium: aliases are moved as they were seen, and charts are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from farm.database.session import Database
from tests.browser.test_pages import check_readable
from tests.contract.live_api import LiveApi, live_api
from tests.ledger import Ledger

pytestmark = pytest.mark.heavy

TIMED = {
    "batch": 8,
    "latency_ms": {"p50": 2.5, "p90": 3.0, "p99": 4.0},
    "throughput": [{"batch": 1, "samples_per_s": 500.0, "latency_p50_ms": 2.0}],
    "eager": {"latency_ms": {"p50": 5.0}},
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A farm with two versions; the second lacks a GPU of the first."""
    with live_api(tmp_path_factory.mktemp("farm")) as api:
        db = Database(api.settings.database)
        ledger = Ledger(db)
        ledger.worker()
        for number, targets in ((1, ["onnxruntime:cpu", "sm_89"]), (2, ["onnxruntime:cpu"])):
            ledger.submit(source=ledger.upload(number), targets=targets)
            ledger.run_all(metrics=TIMED, metrics_reason=None)
        db.dispose()
        yield api


@pytest.fixture
def page(chromium: Any, farm: LiveApi) -> Iterator[Any]:
    """A page whose console must stay silent."""
    context = chromium.new_context(
        base_url=farm.url, extra_http_headers={"Authorization": f"Bearer {farm.key}"}
    )
    made = context.new_page()
    said: list[str] = []
    made.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    made.on("pageerror", lambda err: said.append(str(err)))
    yield made
    context.close()
    assert [one for one in said if "409 (Conflict)" not in one] == []


def test_an_alias_is_moved_and_rolled_back_from_the_page(page: Any, farm: LiveApi) -> None:
    farm.http.put("/v1/models/digits/aliases/prod", json={"version": 1}).raise_for_status()
    page.on("dialog", lambda one: one.accept())
    page.goto("/models/digits")
    page.get_by_role("button", name="See what promoting v2 would do").press("Enter")
    page.get_by_text("sm_89: it has no engine").wait_for()
    page.get_by_label("Why", exact=True).fill("it is <b>better</b>")
    page.get_by_label("promote it for the other GPUs all the same").check()
    page.get_by_role("button", name="Promote v2 to prod").press("Enter")
    page.get_by_role("button", name="Roll prod back to v1").wait_for()
    assert page.get_by_text("it is <b>better</b>").count() == 1
    page.get_by_role("button", name="Roll prod back to v1").press("Enter")
    page.get_by_role("button", name="Roll prod back to v1").wait_for(state="detached")
    assert farm.http.get("/v1/models/digits/aliases/prod").json()["version"] == 1


def test_a_note_is_kept_and_an_empty_one_removed(page: Any, farm: LiveApi) -> None:
    for note in ("it guesses <i>well</i>", ""):
        page.goto("/models/digits?version=1")
        page.get_by_text("Change the notes").click()
        page.get_by_label("Note of v1").fill(note)
        with page.expect_navigation():
            page.get_by_role("button", name="Keep the version’s note").press("Enter")
        kept = farm.http.get("/v1/models/digits").json()["versions"][0]["note"]
        assert kept == (note or None)


def test_a_move_that_somebody_else_made_meanwhile_is_told(page: Any, farm: LiveApi) -> None:
    page.goto("/models/digits?version=1&promote=canary")
    farm.http.put("/v1/models/digits/aliases/canary", json={"version": 2}).raise_for_status()
    with page.expect_response("**/aliases/canary") as answer:
        page.get_by_role("button", name="Promote v1 to canary").press("Enter")
    assert answer.value.status == 409
    page.get_by_role("status").get_by_text("it was moved meanwhile").wait_for()


def test_an_engines_charts_are_drawn_in_its_figures(page: Any, farm: LiveApi) -> None:
    [engine] = farm.http.get("/v1/models/digits/engines?version=2").json()["items"]
    page.goto(f"/engines/{engine['id']}")
    charts = page.locator(".chart")
    assert charts.count() == 2
    assert charts.locator("canvas").count() == 2
    assert charts.first.locator(".u-label").all_inner_texts() == [
        *("batch", "engine", "PyTorch, eager", "engine, p90", "engine, p99"),
    ]  # fmt: skip
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.querySelector('.chart .uplot').offsetWidth < 390")
    assert charts.locator("canvas").count() == 2


@pytest.mark.parametrize("what", ["models", "model", "engine"])
def test_models_and_engines_can_be_read_by_everybody(
    chromium: Any, farm: LiveApi, what: str
) -> None:
    [engine] = farm.http.get("/v1/models/digits/engines?version=2").json()["items"]
    paths = {
        "models": "/models",
        "model": "/models/digits?version=2&beside=1&promote=next",
        "engine": f"/engines/{engine['id']}?delete=true",
    }
    check_readable(chromium, farm, paths[what])
