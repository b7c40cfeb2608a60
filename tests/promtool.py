"""Prometheus's own tools, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """The program; the test is skipped without it, unless CI should have it."""
    found = shutil.which(name)
    if found is None:
        assert "CI" not in os.environ, f"scripts/services install brings {name}"
        pytest.skip(f"{name} isn't installed: scripts/services install brings it")
    return found


def promtool(*words: str | Path, given: str | None = None) -> str:
    """What ``promtool`` says; it must find nothing wrong."""
    done = subprocess.run(
        [tool("promtool"), *map(str, words)],
        input=given,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
