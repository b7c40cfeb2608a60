"""A stub farm, its client, and the command line against it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from farm.cli import app
from farm.client import Backoff, Farm
from farm.testing import stub_farm
from farm.testing.stub_farm import StubFarm

Run = Callable[..., Result]


@pytest.fixture
def stub() -> Iterator[StubFarm]:
    with stub_farm.running() as farm:
        yield farm


@pytest.fixture
def farm(stub: StubFarm) -> Iterator[Farm]:
    """A client that doesn't wait between its attempts."""
    with Farm(stub.url, backoff=Backoff(first_s=0)) as client:
        yield client


@pytest.fixture
def run(stub: StubFarm, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FARM_URL", stub.url)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "digits.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("digits/archive_format", "pt2")
    return path
