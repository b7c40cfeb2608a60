"""Uploads in several requests: they grow, wait, are resumed, and end."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import anyio
import pytest
from starlette.requests import ClientDisconnect

from farm.errors import (
    Busy,
    ChunkOutOfOrder,
    DigestMismatch,
    StorageFull,
    TooLarge,
    TooMany,
    UploadUnknown,
)
from farm.store import sessions as module
from farm.store.local import LocalStore
from farm.store.sessions import LASTS_S, Sessions


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def sessions(store: LocalStore) -> Sessions:
    return Sessions(store.root / "uploads", store, max_bytes=100)


async def chunks(*given: bytes | BaseException) -> AsyncIterator[bytes]:
    for one in given:
        if isinstance(one, BaseException):
            raise one
        yield one


def append(sessions: Sessions, upload: str, *given: bytes | BaseException, start=None) -> int:
    async def go() -> int:
        return await sessions.append("repo", upload, chunks(*given), start=start)

    return anyio.run(go)


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def left(store: LocalStore) -> list[Path]:
    return list((store.root / "uploads").iterdir())


def test_an_upload_becomes_a_blob_and_leaves_nothing(sessions: Sessions, store: LocalStore) -> None:
    upload = sessions.begin("repo", "me")
    assert append(sessions, upload, b"ab", b"c") == 3
    assert append(sessions, upload, b"def", start=3) == 6
    stored = sessions.finish("repo", upload, digest_of(b"abcdef"))
    assert (stored.digest, stored.bytes) == (digest_of(b"abcdef"), 6)
    assert store.place(stored.digest).read_bytes() == b"abcdef"
    assert left(store) == []


def test_an_upload_that_is_announced_by_its_sha512_is_stored_by_its_sha256(
    sessions: Sessions, store: LocalStore
) -> None:
    upload = sessions.begin("repo", "me")
    append(sessions, upload, b"abc", b"def")
    stored = sessions.finish("repo", upload, digest_of(b"abcdef", "sha512"))
    assert (stored.digest, stored.bytes) == (digest_of(b"abcdef"), 6)
    assert left(store) == []


def test_an_upload_with_another_sha512_ends_and_stores_nothing(
    sessions: Sessions, store: LocalStore
) -> None:
    upload = sessions.begin("repo", "me")
    append(sessions, upload, b"abcdef")
    with pytest.raises(DigestMismatch):
        sessions.finish("repo", upload, digest_of(b"other", "sha512"))
    assert (left(store), list(store.blobs())) == ([], [])


def test_what_came_before_a_connection_broke_stays(sessions: Sessions) -> None:
    upload = sessions.begin("repo", "me")
    with pytest.raises(ClientDisconnect):
        append(sessions, upload, b"abc", ClientDisconnect())
    assert sessions.bytes_of("repo", upload) == 3
    with pytest.raises(ChunkOutOfOrder, match="has 3 bytes"):
        append(sessions, upload, b"abc", start=0)
    assert append(sessions, upload, b"def", start=3) == 6


def test_other_bytes_than_announced_end_the_upload(sessions: Sessions, store: LocalStore) -> None:
    upload = sessions.begin("repo", "me")
    append(sessions, upload, b"abc")
    with pytest.raises(DigestMismatch):
        sessions.finish("repo", upload, digest_of(b"abd"))
    assert left(store) == []
    assert not store.has(digest_of(b"abc"))
    with pytest.raises(UploadUnknown):
        sessions.bytes_of("repo", upload)


def test_an_upload_is_no_longer_than_a_blob_may_be(sessions: Sessions) -> None:
    upload = sessions.begin("repo", "me")
    append(sessions, upload, b"x" * 60)
    with pytest.raises(TooLarge):
        append(sessions, upload, b"x" * 60)
    assert sessions.bytes_of("repo", upload) <= 100


def test_two_requests_dont_add_to_an_upload_at_once(sessions: Sessions) -> None:
    upload = sessions.begin("repo", "me")

    async def nested() -> AsyncIterator[bytes]:
        yield b"ab"
        with pytest.raises(Busy):
            await sessions.append("repo", upload, chunks(b"x"), start=None)
        with pytest.raises(Busy):
            sessions.finish("repo", upload, digest_of(b"ab"))
        yield b"c"

    async def go() -> int:
        return await sessions.append("repo", upload, nested(), start=None)

    assert anyio.run(go) == 3
    assert sessions.finish("repo", upload, digest_of(b"abc")).bytes == 3


def test_one_client_doesnt_open_all_uploads(sessions: Sessions, monkeypatch) -> None:
    monkeypatch.setattr(module, "_MOST_OF_ONE", 2)
    monkeypatch.setattr(module, "_MOST_OF_ALL", 3)
    mine = [sessions.begin("repo", "me") for _ in range(2)]
    with pytest.raises(TooMany):
        sessions.begin("repo", "me")
    sessions.begin("repo", "you")
    with pytest.raises(Busy):
        sessions.begin("repo", "they")
    sessions.end("repo", mine[0])
    sessions.begin("repo", "me")


def test_an_upload_that_rested_for_long_is_removed(sessions: Sessions, store: LocalStore) -> None:
    upload = sessions.begin("repo", "me")
    [file] = left(store)
    old = time.time() - LASTS_S - 60
    os.utime(file, (old, old))
    other = sessions.begin("repo", "me")
    assert sessions.bytes_of("repo", other) == 0
    with pytest.raises(UploadUnknown):
        append(sessions, upload, b"abc")


@pytest.mark.parametrize("upload", ["", "..", "*", "a" * 32, "../../id"])
def test_what_isnt_an_upload_is_unknown(sessions: Sessions, upload: str) -> None:
    sessions.begin("repo", "me")
    for call in (sessions.bytes_of, sessions.end):
        with pytest.raises(UploadUnknown):
            call("repo", upload)


def test_an_upload_is_known_in_its_repository_alone(sessions: Sessions) -> None:
    upload = sessions.begin("repo", "me")
    with pytest.raises(UploadUnknown):
        sessions.bytes_of("another", upload)
    assert sessions.bytes_of("repo", upload) == 0


def test_a_full_disk_is_said_to_be_full(sessions: Sessions) -> None:
    upload = sessions.begin("repo", "me")
    with pytest.raises(StorageFull):
        append(sessions, upload, b"abc", OSError(errno.ENOSPC, "full"))


def test_a_request_that_comes_too_late_doesnt_add_to_the_blob(
    sessions: Sessions, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = sessions.begin("repo", "me")
    append(sessions, upload, b"abc")
    lock, began = fcntl.flock, list[bool]()

    def finished_meanwhile(file: BinaryIO, how: int) -> None:
        if not began:  # the upload was opened, and isn't locked yet
            began.append(True)
            sessions.finish("repo", upload, digest_of(b"abc"))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", finished_meanwhile)
    with pytest.raises(UploadUnknown):
        append(sessions, upload, b"def")
    assert store.place(digest_of(b"abc")).read_bytes() == b"abc"
