"""The page in Chromium: it logs in, follows what happens, acts, and can be read by everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Build, Job
from farm.queue import jobs as reporting
from farm.queue import samples
from tests.chaos.crowd import tiny_model
from tests.contract.live_api import LiveApi, live_api

pytestmark = pytest.mark.heavy

#: A hostile text, which a browser would run if it weren't escaped.
ATTACK = "<img src=x onerror=\"document.title='owned'\">"
THEMES = ("light", "dark")
WIDTHS = {"desk": 1280, "phone": 390}
PAGES = (
    *("/", "/builds", "/builds/last?explain=1", "/jobs/1"),
    *("/fleet", "/search?q=tiny", "/audit", "/keys", "/login"),
)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A farm with a build that waits and one that failed; no worker."""
    with live_api(tmp_path_factory.mktemp("farm")) as api:
        digest = api.upload(tiny_model(1))
        for model in ("tiny", "other"):
            answer = api.http.post("/v1/builds", json=_request(digest, model))
            assert answer.status_code == 202, answer.text
        db = Database(api.settings.database)
        error = {"code": "export-failed", "detail": f"torch said {ATTACK}", "hint": "read it"}
        build = answer.json()["id"]
        with db.write() as session:
            jobs = [one["id"] for one in answer.json()["jobs"] if one["reuse"] == "ran"]
            session.execute(update(Job).where(Job.id.in_(jobs)).values(state="failed", error=error))
            session.execute(update(Build).where(Build.id == build).values(state="failed"))
            samples.keep(session, 1, 1, began_at=now(), series=_SERIES)
            for job in (1, *jobs):
                reporting.report(session, job, 1, text=f"{ATTACK}\n" + "layer 1\n" * 9)
        db.dispose()
        yield api


_SERIES = {
    "at_s": [0.5, 1.0, 1.5],
    "cpus": [0.5, 1.5, 1.0],
    "memory_bytes": [10**8, 2 * 10**8, 2 * 10**8],
    "gpu_share": [0.1, None, 0.9],
    "gpu_memory_bytes": [10**9, 2 * 10**9, 10**9],
    "gpu_power_w": [90.0, 300.0, 280.0],
    "gpu_clock_mhz": [1500, 1980, 1980],
}


def _request(digest: str, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "source": {"digest": digest, "format": "onnx"},
        "precisions": ["fp16"] if model == "tiny" else ["int8-dynamic"],
        "targets": ["cpu", "h200"] if model == "tiny" else ["cpu"],
        "labels": {"team": ATTACK},
    }


@pytest.fixture
def page(chromium: Any, farm: LiveApi) -> Iterator[Any]:
    """A page that is logged in, whose console must stay silent."""
    context = chromium.new_context(base_url=farm.url, viewport={"width": 1280, "height": 900})
    made = context.new_page()
    said: list[str] = []
    made.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    made.on("pageerror", lambda err: said.append(str(err)))
    _log_in(made, farm)
    yield made
    context.close()
    assert said == []


def _log_in(page: Any, farm: LiveApi) -> None:
    page.goto("/")
    page.get_by_label("Key").fill(farm.key)
    page.keyboard.press("Enter")
    page.wait_for_url(farm.url + "/")


def test_a_key_logs_in_by_keyboard_and_logging_out_ends_it(page: Any, farm: LiveApi) -> None:
    assert page.locator("h1").inner_text() == "Now"
    page.get_by_role("button", name="Log out").press("Enter")
    page.wait_for_url(farm.url + "/login")
    page.goto("/builds")
    assert "/login?next=/builds" in page.url
    page.get_by_label("Key").fill(farm.key)
    page.keyboard.press("Enter")
    page.wait_for_url(farm.url + "/builds")


def test_now_follows_what_happens_and_runs_nothing_that_was_typed(page: Any, farm: LiveApi) -> None:
    page.goto("/")
    assert page.get_by_text("torch said <img src=x").count() == 1
    db = Database(farm.settings.database)
    with db.write() as session:
        session.execute(
            update(Job)
            .where(Job.kind == "export", Job.state == "queued")
            .values(state="running", phase="a new phase", progress=0.5)
        )
    db.dispose()
    page.get_by_text("a new phase").wait_for()
    assert page.title() == "Now · Engine farm"


def test_a_wrong_key_is_told_beside_the_form(chromium: Any, farm: LiveApi) -> None:
    context = chromium.new_context(base_url=farm.url)
    page = context.new_page()
    page.goto("/login")
    page.get_by_label("Key").fill("farm_wrong")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("unknown key").wait_for()
    context.close()


def test_the_first_key_pressed_skips_to_the_content(page: Any) -> None:
    page.goto("/builds")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


@pytest.mark.parametrize("path", PAGES)
def test_every_page_can_be_read_by_everybody(chromium: Any, farm: LiveApi, path: str) -> None:
    check_readable(chromium, farm, path)


def test_the_page_of_a_key_can_be_read_and_sets_its_limits(chromium: Any, farm: LiveApi) -> None:
    key_id = farm.key.split("_")[1]
    check_readable(chromium, farm, f"/keys/{key_id}")
    context = chromium.new_context(base_url=farm.url)
    page = context.new_page()
    _log_in(page, farm)
    page.goto(f"/keys/{key_id}")
    page.get_by_label("stored-bytes").fill("50 GB")
    page.get_by_role("button", name="Keep these limits").click()
    page.get_by_role("cell", name="50.0 GB").wait_for()
    page.get_by_label("stored-bytes").fill("many")
    page.get_by_role("button", name="Keep these limits").click()
    page.get_by_text("stored_bytes: takes a number from 0").wait_for()
    page.get_by_label("stored-bytes").fill("")
    page.get_by_role("button", name="Keep these limits").click()
    page.get_by_role("cell", name="50.0 GB").wait_for(state="detached")
    context.close()


def check_readable(chromium: Any, farm: LiveApi, path: str) -> None:
    """WCAG 2.2 AA by axe, in both themes; on a phone nothing but tables scrolls sideways."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for theme in THEMES:
        for name, width in WIDTHS.items():
            context = chromium.new_context(
                base_url=farm.url,
                color_scheme=theme,
                viewport={"width": width, "height": 900},
                extra_http_headers={"Authorization": f"Bearer {farm.key}"},
            )
            page = context.new_page()
            page.goto(path)
            page.wait_for_load_state("networkidle") if "/fleet" in path else None
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, name, wide)
            tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
            found = axe.run(page, options={"runOnly": {"type": "tag", "values": tags}})
            assert found.violations_count == 0, (path, theme, name, found.generate_report())
            context.close()


def test_a_build_follows_its_events_and_keeps_what_was_asked_for(page: Any, farm: LiveApi) -> None:
    build = _build(farm, "tiny")
    page.goto(f"/builds/{build}")
    page.get_by_role("link", name="Compare them with earlier jobs").click()
    page.get_by_text("no earlier job of this kind").first.wait_for()
    page.on("dialog", lambda asked: asked.accept())
    canceller = page.context.new_page()
    canceller.goto(f"/builds/{build}")
    canceller.on("dialog", lambda asked: asked.accept())
    canceller.get_by_role("button", name="Cancel the build").click()
    # The first page hears of it.
    page.locator(".head .state.cancelled").wait_for()
    assert page.get_by_text("no earlier job of this kind").count() > 0
    page.get_by_role("button", name="Retry the build").click()
    page.get_by_role("button", name="Cancel the build").wait_for()


def test_an_answer_that_is_an_error_replaces_nothing(chromium: Any, farm: LiveApi) -> None:
    context = chromium.new_context(base_url=farm.url)
    page = context.new_page()
    _log_in(page, farm)
    body = '<main id="live">away</main>'
    page.route(farm.url + "/", lambda route: route.fulfill(status=503, body=body))
    for _ in range(2):  # it goes on asking
        with page.expect_response(lambda answer: answer.status == 503):
            pass
    assert page.locator("h1").inner_text() == "Now"
    context.close()


def test_what_a_job_used_is_drawn(page: Any, farm: LiveApi) -> None:
    page.goto("/jobs/1")
    page.locator("canvas").first.wait_for()
    assert page.locator(".u-title").all_inner_texts() == [
        "CPUs in use",
        "Memory, GiB",
        "GPU in use, %",
        "Power, W",
        "SM clock, MHz",
    ]


def _build(farm: LiveApi, model: str) -> str:
    found = farm.http.get("/v1/builds", params={"model": model}).json()
    return str(found["items"][0]["id"])
