"""What a download writes is on the disk when it says so, and a disk that fails is told."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from farm.client import Farm, durable
from farm.client.durable import Durable
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_AHEAD_BYTES", 1000)


@pytest.mark.usefixtures("ahead")
def test_the_disk_stores_what_was_written_before_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = threading.Event()
    sizes: list[int] = []

    def fsync(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        stored.set()

    monkeypatch.setattr(os, "fsync", fsync)
    with (tmp_path / "file").open("ab", buffering=0) as file, Durable(file) as kept:
        kept.write(b"x" * 1000)
        assert stored.wait(120)
        kept.write(b"y")
        kept.store()
    assert sizes == [1000, 1001]
    assert (tmp_path / "file").read_bytes() == b"x" * 1000 + b"y"


@pytest.mark.usefixtures("ahead")
def test_a_disk_that_failed_once_on_the_way_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EIO, "the disk is broken")]

    def fsync(_descriptor: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(os, "fsync", fsync)
    with (tmp_path / "file").open("ab") as file, Durable(file) as kept:
        kept.write(b"x" * 1000)
        with pytest.raises(OSError, match="the disk is broken"):
            kept.store()


@pytest.mark.usefixtures("ahead")
def test_an_engine_that_the_disk_didnt_store_gets_no_name(
    farm: Farm, stub: StubFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = rtx_plan()
    stub.add(plan)

    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="the disk is broken"):
            farm.pull("digits", "sm_89", tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    assert farm.pull("digits", "sm_89", tmp_path).path.read_bytes() == plan
