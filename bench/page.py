"""The first paint of *Now* with 10,000 builds over that of a page without data, in Chromium.

Both come from the same API and have the same styles and scripts; the peer is the page that asks for a key. A
third of the builds wait, a third has failed, a third has succeeded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import func, update

from bench.claims import Queue
from bench.processes import api_without_worker, fresh_database, kinds
from bench.table import Row, row
from farm.database.base import now
from farm.database.tables import Build
from farm.settings import Settings
from tests import chromium

BUILDS, PAINTS = 10_000, 15
_PAINT = """
() => new Promise((found) =>
  new PerformanceObserver((list) => found(list.getEntriesByName("first-contentful-paint")[0].startTime))
    .observe({ type: "paint", buffered: true }))
"""


def paints() -> Iterator[Row]:
    """Medians; the two pages take turns."""
    program = chromium.found()
    if program is None:
        return
    from playwright.sync_api import sync_playwright

    for kind in kinds():
        with (
            tempfile.TemporaryDirectory() as folder,
            fresh_database(kind, Path(folder)) as url,
        ):
            _fill(url)
            settings = Settings(home=Path(folder), database_url=url)
            with api_without_worker(settings) as client, sync_playwright() as playwright:
                options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
                browser = playwright.chromium.launch(executable_path=program, args=options)
                page = browser.new_context(
                    base_url=str(client.base_url),
                    extra_http_headers={"Authorization": client.headers["Authorization"]},
                ).new_page()
                _paint_ms(page, "/")  # styles and scripts are cached from here on
                times = [(_paint_ms(page, "/"), _paint_ms(page, "/login")) for _ in range(PAINTS)]
                browser.close()
        ours, bare = (median(side) for side in zip(*times, strict=True))
        yield row(
            f"first paint of Now with {BUILDS:,} builds over a bare page's, {kind}",
            ours,
            bare,
            " ms",
            most=3,
        )


def _fill(url: str) -> None:
    queue = Queue(url, BUILDS)
    with queue.db.write() as session:
        number = func.substr(Build.id, 6, 1)
        for state, digits in (("failed", "012"), ("succeeded", "345")):
            session.execute(
                update(Build)
                .where(number.in_(list(digits)))
                .values(state=state, started_at=Build.created_at, finished_at=now())
            )
    queue.db.dispose()


def _paint_ms(page: Any, path: str) -> float:
    page.goto(path)
    return float(page.evaluate(_PAINT))
