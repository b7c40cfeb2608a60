"""A job's inputs stay as they are while it runs, whatever becomes of the store's files."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from farm.errors import StorageFull, StorageUnavailable
from farm.store.local import LocalStore
from workers.runner import inputs
from workers.runner.child import Child
from workers.runner.child_events import StageProgressed
from workers.sandbox import Limits, Sandbox


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def put(store, tmp_path):
    def put_(content):
        file = tmp_path / "new"
        file.write_bytes(content)
        return store.take(file).digest

    return put_


def reads_when_told(paths, link):
    link.progress("waits", None)
    while not Path("go").exists():
        time.sleep(0.01)
    return [Path(path).read_text() for path in paths]


def test_a_job_reads_its_input_though_the_same_bytes_are_uploaded_again_meanwhile(
    tmp_path, put, store
):
    blob = put(b"the model")
    held = inputs.hold(store, {"source": blob}, tmp_path / "inputs")
    workdir = tmp_path / "work"
    workdir.mkdir()
    limits = Limits.of_machine(workdir, slots=2, timeout_s=60)
    box = Sandbox(workdir=workdir, reads=tuple(held.values()), limits=limits)
    asked = [str(path) for path in held.values()]
    with Child(reads_when_told, asked, timeout_s=60, sandbox=box) as child:
        for happening in child.events():
            if isinstance(happening, StageProgressed):
                before = store.place(blob).stat().st_ino
                put(b"the model")
                assert store.place(blob).stat().st_ino != before
                (workdir / "go").touch()
        assert child.result() == ["the model"]


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_where_a_file_gets_no_second_name_a_job_has_a_copy(
    tmp_path, put, store, monkeypatch, refusal
):
    blob = put(b"the model")

    def refuse(*_):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "link", refuse)
    held = inputs.hold(store, {"source": blob}, tmp_path / "inputs")["source"]
    store.place(blob).unlink()
    assert held.read_bytes() == b"the model"


def test_a_blob_that_goes_meanwhile_is_the_stores_fault(tmp_path, put, store, monkeypatch):
    blob = put(b"the model")

    @contextmanager
    def goes(digest):
        path = store.place(digest)
        path.unlink()
        yield path

    monkeypatch.setattr(store, "local", goes)
    with pytest.raises(StorageUnavailable, match="can't be read"):
        inputs.hold(store, {"source": blob}, tmp_path / "inputs")


def test_no_room_for_a_copy_is_told_as_such(tmp_path, put, store, monkeypatch):
    blob = put(b"the model")

    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    def fill(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(StorageFull):
        inputs.hold(store, {"source": blob}, tmp_path / "inputs")


def test_what_fails_when_its_inputs_have_gone_is_no_failure_of_the_model(tmp_path, put, store):
    held = inputs.hold(store, {"source": put(b"one"), "typed": put(b"two")}, tmp_path / "inputs")
    inputs.require(held.values())
    held["typed"].unlink()
    with pytest.raises(StorageUnavailable, match="typed"):
        inputs.require(held.values())
