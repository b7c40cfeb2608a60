"""The browser of the tests: Debian's Chromium, which a bare machine lacks. ``CI`` makes that a failure."""

from __future__ import annotations

import os
import shutil

import pytest


def found() -> str | None:
    """Its path, where there is one."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def program() -> str:
    """Its path; skips the test where there is none."""
    path = found()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium isn't installed: scripts/services install")
        pytest.skip("chromium isn't installed")
    return path
