"""The documentation's site: made from the same Markdown, whole, without anything from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {one.relative_to(ROOT / "docs").as_posix() for one in (ROOT / "docs").rglob("*.md")}


def listed(navigation: Any) -> Iterator[str]:
    for one in navigation:
        if isinstance(one, str):
            yield one
        else:
            for inner in one.values():
                yield from listed(inner)


def test_every_document_is_in_the_navigation_once() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = list(listed(project["nav"]))
    assert sorted(pages) == sorted(PAGES)


@pytest.mark.heavy
def test_the_site_is_made_without_a_warning_and_asks_nobody_else_for_fonts(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    made = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    page = (tmp_path / "site" / "how-to" / "pull" / "index.html").read_text()
    assert "<h1" in page
    assert not re.search(r"(src|href)=\"https?://fonts", page)
