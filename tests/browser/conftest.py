"""A real browser: headless Chromium, driven by Playwright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import chromium as chromium_of_tests

_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


#: For what a page is to show. Playwright's own half minute is short on a busy machine.
_PATIENCE_MS = 180_000


def _patient(new_context: Callable[..., Any]) -> Callable[..., Any]:
    def made(*given: Any, **options: Any) -> Any:
        context = new_context(*given, **options)
        context.set_default_timeout(_PATIENCE_MS)
        return context

    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    program = chromium_of_tests.program()
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright, pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.Browser, "new_context", _patient(api.Browser.new_context))
        browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        yield browser
        browser.close()
