"""The store in a folder: what is its own beside what every store promises."""

import errno
import hashlib
from pathlib import Path

import anyio
import pytest

from farm.errors import StorageFull, StorageUnavailable
from farm.store.local import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


async def pieces(*parts):
    for part in parts:
        yield part


def receive(store, *parts, expected=None, max_bytes=1000):
    async def go():
        return await store.receive(pieces(*parts), expected=expected, max_bytes=max_bytes)

    return anyio.run(go)


def leftovers(store):
    return [p for p in store.root.rglob("*") if p.is_file()]


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_file_is_taken_from_another_file_system_too(store, tmp_path, monkeypatch):
    file = tmp_path / "model"
    file.write_bytes(b"abc")

    rename = Path.replace

    def replace(self, target):
        if self == file:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert store.take(file).digest == digest_of(b"abc")
    assert not file.exists()
    assert len(leftovers(store)) == 1


def test_a_full_disk_is_told_and_leaves_nothing(store, monkeypatch):
    def full(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFull):
        receive(store, b"abc")
    assert leftovers(store) == []


def test_a_store_that_is_not_mounted_is_unavailable_and_its_blobs_are_not_lost(store):
    with pytest.raises(StorageUnavailable, match="isn't at"):
        store.place("sha256:" + "0" * 64)
