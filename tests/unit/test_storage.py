import errno
import hashlib

import anyio
import pytest

from farm.errors import DigestMismatch, NotFound, StorageFull
from farm.storage import LocalStore, TooLarge


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


def test_a_blob_is_found_by_its_digest(store):
    stored = receive(store, b"ab", b"c")
    assert (stored.digest, stored.bytes) == (digest_of(b"abc"), 3)
    assert store.path(stored.digest).read_bytes() == b"abc"


def test_a_file_is_copied_and_stays(store, tmp_path):
    file = tmp_path / "model"
    file.write_bytes(b"abc")
    assert store.put(file).digest == digest_of(b"abc")
    assert file.exists()
    assert store.put(file).digest == digest_of(b"abc")  # again: no error, nothing doubled
    assert len(leftovers(store)) == 1


def test_a_body_that_is_not_what_was_announced_leaves_nothing(store):
    with pytest.raises(DigestMismatch):
        receive(store, b"abd", expected=digest_of(b"abc"))
    assert leftovers(store) == []


def test_a_body_that_breaks_off_leaves_nothing(store):
    async def broken():
        yield b"ab"
        raise ConnectionResetError

    async def go():
        await store.receive(broken(), expected=None, max_bytes=1000)

    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever breaks it
        anyio.run(go)
    assert leftovers(store) == []


def test_a_body_over_the_limit_leaves_nothing(store):
    with pytest.raises(TooLarge):
        receive(store, b"x" * 600, b"x" * 600)
    assert leftovers(store) == []


def test_a_full_disk_is_told_and_leaves_nothing(store, monkeypatch):
    def full(_fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFull):
        receive(store, b"abc")
    assert leftovers(store) == []


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "../../etc/passwd", "sha256:../x", ""])
def test_a_digest_that_is_not_there_is_not_found(store, digest):
    with pytest.raises(NotFound):
        store.path(digest)
