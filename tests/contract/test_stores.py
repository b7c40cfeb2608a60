"""What `farm.store.base.Store` promises, held against every store.

A store that comes later gets a `Rig` of its own in `tests/contract/rigs.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from farm.api.app import create_app
from farm.errors import (
    DigestMismatch,
    EmptyBlob,
    FarmError,
    NotFound,
    StorageFull,
    StorageUnavailable,
    TooLarge,
)
from farm.settings import Settings
from farm.store.base import Store, Stored
from tests import s3
from tests.contract.conftest import Api
from tests.contract.rigs import (
    ApiMedium,
    BucketMedium,
    LocalMedium,
    MemoryMedium,
    Rig,
    content_of,
    digest_of,
    put,
    receive,
)

ABSENT = "sha256:" + "0" * 64
NO_DIGESTS = ["../../etc/passwd", "sha256:../x", "sha256:" + "A" * 64, "0" * 64, ""]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


# The API's has a database, which is asked for only there.
@pytest.fixture(
    params=["local", "memory", "bucket", pytest.param("api", marks=pytest.mark.services)]
)
def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    if request.param == "local":
        yield LocalMedium(tmp_path / "store", monkeypatch).rig()
    elif request.param == "memory":
        yield MemoryMedium(tmp_path / "copies").rig()
    elif request.param == "api":
        url = request.getfixturevalue("database_url")
        request.getfixturevalue("patient")
        settings = Settings(home=tmp_path / "home", database_url=url, max_upload_bytes=1000)
        app = create_app(settings)
        yield ApiMedium(Api(app), tmp_path / "copies", monkeypatch).rig()
        monkeypatch.undo()
        app.state.services.db.dispose()
    else:
        server = request.getfixturevalue("server")
        medium = BucketMedium(server, tmp_path / "copies", monkeypatch)
        yield medium.rig()
        medium.proxy.close()


@pytest.fixture
def store(rig: Rig) -> Store:
    return rig.store


# Putting


def test_a_blob_that_arrives_in_pieces_is_found_by_the_digest_of_the_whole(store: Store) -> None:
    stored = receive(store, b"ab", b"", b"c", expected=digest_of(b"abc"))
    assert (stored.digest, stored.bytes) == (digest_of(b"abc"), 3)
    assert store.has(stored.digest)
    assert content_of(store, stored.digest) == b"abc"
    assert store.is_right(stored.digest)


def test_a_file_that_is_taken_is_gone_from_where_it_was(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "made"
    for _ in range(2):  # again: nothing doubled
        file.write_bytes(b"abc")
        assert rig.store.take(file) == Stored(digest=digest_of(b"abc"), bytes=3)
        assert not file.exists()
    assert rig.kept() == 1


def test_a_file_with_other_bytes_than_announced_stays_where_it_was(
    rig: Rig, tmp_path: Path
) -> None:
    file = tmp_path / "made"
    file.write_bytes(b"abc")
    with pytest.raises(DigestMismatch):
        rig.store.take(file, expected=digest_of(b"abd"))
    assert file.read_bytes() == b"abc"
    assert rig.kept() == 0
    assert rig.store.take(file, expected=digest_of(b"abc")).bytes == 3


def test_of_one_blob_put_by_many_at_once_there_is_one_and_each_is_told_the_same(rig: Rig) -> None:
    content, told, start = bytes(range(256)) * 3, [], threading.Barrier(8)

    def upload() -> None:
        start.wait(180)
        told.append(receive(rig.store, content[:300], content[300:]))

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert told == [Stored(digest=digest_of(content), bytes=768)] * 8
    assert content_of(rig.store, digest_of(content)) == content
    assert rig.kept() == 1


@pytest.mark.parametrize(
    ("parts", "expected", "error"),
    [
        ((b"abd",), digest_of(b"abc"), DigestMismatch),
        ((), None, EmptyBlob),
        ((b"",), None, EmptyBlob),
        ((b"x" * 600, b"x" * 600), None, TooLarge),
    ],
)
def test_a_body_that_is_refused_leaves_nothing(
    rig: Rig, parts: tuple[bytes, ...], expected: str | None, error: type[FarmError]
) -> None:
    with pytest.raises(error):
        receive(rig.store, *parts, expected=expected)
    assert rig.kept() == 0


def test_an_upload_that_breaks_off_leaves_nothing_and_its_error_is_told(rig: Rig) -> None:
    class BreaksOff(Exception):
        pass

    async def chunks() -> AsyncIterator[bytes]:
        yield b"ab"
        raise BreaksOff

    async def go() -> None:
        await rig.store.receive(chunks(), expected=None, max_bytes=1000)

    with pytest.raises(BreaksOff):
        anyio.run(go)
    assert rig.kept() == 0


def test_a_full_store_says_so_keeps_nothing_and_leaves_the_file_that_it_was_given(
    rig: Rig, tmp_path: Path
) -> None:
    file = tmp_path / "made"
    file.write_bytes(b"abc")
    rig.fill()
    for attempt in (
        lambda: receive(rig.store, b"abc"),
        lambda: rig.store.take(file),
        rig.store.try_to_write,
    ):
        with pytest.raises(StorageFull):
            attempt()
    assert file.read_bytes() == b"abc"
    assert not rig.store.has(digest_of(b"abc"))
    assert rig.kept() == 0


def test_a_full_store_still_gives_what_it_has_and_can_be_collected(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    rig.fill()
    assert content_of(rig.store, digest) == b"abc"
    rig.store.spend_reserve()
    file = rig.store.set_aside(digest)
    assert file is not None
    assert rig.store.delete(file)
    rig.store.keep_reserve()


def test_a_store_that_does_not_answer_is_unavailable_and_no_blob_of_it_is_lost(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    calls: tuple[Callable[[], object], ...] = (
        lambda: receive(rig.store, b"abc"),
        lambda: rig.store.is_right(digest),
        lambda: rig.store.has(digest),
        lambda: content_of(rig.store, digest),
        lambda: b"".join(rig.store.read(digest)),
        lambda: rig.store.find(digest),
        lambda: list(rig.store.blobs()),
        lambda: list(rig.store.interrupted(datetime.now(UTC))),
        lambda: rig.store.set_aside(digest),
        lambda: rig.store.condemn(digest),
        rig.store.put_all_back,
        rig.store.identity,
        rig.store.identify,
        rig.store.try_to_write,
    )
    rig.take_away()
    for call in calls:
        with pytest.raises(StorageUnavailable):
            call()
    rig.store.keep_reserve()
    rig.store.spend_reserve()
    rig.bring_back()
    assert rig.store.is_right(digest)
    assert [file.digest for file in rig.store.blobs()] == [digest]


# Reading


@pytest.mark.parametrize("digest", [ABSENT, *NO_DIGESTS])
def test_what_is_not_there_or_no_digest_is_not_found(store: Store, digest: str) -> None:
    put(store, b"something else")
    assert not store.has(digest)
    looks: tuple[Callable[[str], object], ...] = (
        lambda digest: content_of(store, digest),
        lambda digest: list(store.read(digest)),
        store.place,
        lambda digest: store.link(digest, lasts_s=60),
        store.is_right,
    )
    for look in looks:
        with pytest.raises(NotFound):
            look(digest)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 6), (2, None), (2, 4), (5, 6), (6, None), (3, 3)]
)
def test_any_part_of_a_blob_can_be_read(store: Store, start: int, stop: int | None) -> None:
    digest = put(store, b"abcdef")
    assert b"".join(store.read(digest, start, stop)) == b"abcdef"[start:stop]


def test_a_store_in_files_says_where_a_blob_is_and_another_says_none(store: Store) -> None:
    digest = put(store, b"abc")
    place = store.place(digest)
    assert place is None or place.read_bytes() == b"abc"


def test_a_file_of_a_blob_cannot_be_written_by_mistake(store: Store) -> None:
    digest = put(store, b"abc")
    with store.local(digest) as file:
        assert not file.stat().st_mode & 0o222
    assert content_of(store, digest) == content_of(store, digest) == b"abc"


def test_who_has_opened_a_blob_reads_it_to_its_end_though_it_is_collected(store: Store) -> None:
    digest = put(store, b"abc")
    with store.local(digest) as copy, copy.open("rb") as file:
        aside = store.set_aside(digest)
        assert aside is not None
        store.delete(aside)
        assert file.read() == b"abc"


def test_damage_is_found_and_what_is_condemned_is_out_of_reach_and_kept(rig: Rig) -> None:
    digest, other = put(rig.store, b"abc"), put(rig.store, b"another")
    rig.damage(digest)
    assert not rig.store.is_right(digest)
    assert rig.store.is_right(other)
    rig.store.condemn(digest)
    rig.store.condemn(digest)  # whoever comes second finds it done
    assert not rig.store.has(digest)
    assert [file.digest for file in rig.store.blobs()] == [other]
    [kept] = rig.condemned()
    assert len(kept) == 3
    assert kept != b"abc"
    assert put(rig.store, b"abc") == digest
    assert rig.store.is_right(digest)


def test_putting_the_right_bytes_heals_a_damaged_blob(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    content_of(rig.store, digest)
    rig.damage(digest)
    put(rig.store, b"abc")
    assert rig.store.is_right(digest)
    assert content_of(rig.store, digest) == b"abc"


# Whose it is, and its room


def test_a_store_has_no_identity_until_it_is_given_one_which_it_keeps(rig: Rig) -> None:
    assert rig.store.identity() is None
    first = rig.store.identify()
    assert (rig.store.identify(), rig.store.identity()) == (first, first)
    assert list(rig.store.blobs()) == []


def test_a_store_takes_the_identity_of_the_one_that_it_is_to_replace_and_keeps_it(store: Store):
    assert store.identify("of the old one") == "of the old one"
    assert store.identify("of another one") == store.identity() == "of the old one"


def test_who_identifies_a_store_at_once_gets_the_same(store: Store) -> None:
    told, start = [], threading.Barrier(4)

    def identify() -> None:
        start.wait(180)
        told.append(store.identify())

    threads = [threading.Thread(target=identify) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert told == [store.identity()] * 4


def test_a_store_says_where_it_is_and_what_room_is_left(store: Store) -> None:
    assert store.address
    store.try_to_write()
    room = store.free_bytes()
    assert room is None or room >= 0
    assert list(store.blobs()) == []


# Collecting garbage


def test_all_blobs_are_listed_with_their_size_and_when_they_were_put(rig: Rig) -> None:
    old, new = put(rig.store, b"old one"), put(rig.store, b"new")
    rig.age(old, timedelta(days=2))
    found = {file.digest: file for file in rig.store.blobs()}
    assert {digest: file.bytes for digest, file in found.items()} == {old: 7, new: 3}
    assert found[new].put_at - found[old].put_at > timedelta(days=1)


def test_one_blob_is_found_as_it_is_listed(rig: Rig) -> None:
    digest = put(rig.store, b"one of two")
    put(rig.store, b"the other")
    [listed] = [file for file in rig.store.blobs() if file.digest == digest]
    assert rig.store.find(digest) == listed
    for other in (ABSENT, *NO_DIGESTS):
        assert rig.store.find(other) is None


def test_putting_a_blob_again_makes_it_young(rig: Rig, tmp_path: Path) -> None:
    digest = put(rig.store, b"abc")
    again = tmp_path / "made"
    for put_again in (lambda: put(rig.store, b"abc"), lambda: rig.store.take(again)):
        again.write_bytes(b"abc")
        os.utime(again, (0, 0))  # it was written long ago, and arrives now
        rig.age(digest, timedelta(days=2))
        put_again()
        [file] = rig.store.blobs()
        assert file.put_at > datetime.now(UTC) - timedelta(days=1)


def test_a_blob_that_is_set_aside_is_out_of_reach_until_it_is_put_back_as_new(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    rig.age(digest, timedelta(days=2))
    [listed] = rig.store.blobs()
    aside = rig.store.set_aside(digest)
    assert aside == listed
    assert not rig.store.has(digest)
    with pytest.raises(NotFound):
        content_of(rig.store, digest)
    assert list(rig.store.blobs()) == []
    assert rig.store.set_aside(digest) is None
    rig.store.put_back(aside)
    rig.store.put_back(aside)  # another collector was quicker
    assert content_of(rig.store, digest) == b"abc"
    [file] = rig.store.blobs()
    assert file.put_at > listed.put_at + timedelta(days=1)


def test_a_blob_that_is_put_before_it_is_set_aside_is_seen_to_be_younger(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    rig.age(digest, timedelta(days=2))
    [listed] = rig.store.blobs()
    put(rig.store, b"abc")
    aside = rig.store.set_aside(digest)
    assert aside is not None
    assert aside.put_at > listed.put_at


def test_deleting_the_one_aside_leaves_one_that_was_put_since(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    aside = rig.store.set_aside(digest)
    assert aside is not None
    put(rig.store, b"abc")
    assert rig.store.delete(aside)
    assert not rig.store.delete(aside)
    assert content_of(rig.store, digest) == b"abc"
    assert rig.kept() == 1


def test_what_a_killed_collection_had_aside_is_put_back_and_the_rest_left(rig: Rig) -> None:
    content = (b"one", b"two", b"three")
    digests = [put(rig.store, one) for one in content]
    for digest in digests[:2]:
        rig.store.set_aside(digest)
    rig.interrupt("an upload", timedelta(minutes=1))
    rig.store.put_all_back()
    assert all(map(rig.store.has, digests))
    assert {file.digest for file in rig.store.blobs()} == set(digests)
    for digest in digests:
        assert rig.store.is_right(digest)


@pytest.mark.parametrize("digest", [ABSENT])
def test_what_is_not_there_cannot_be_set_aside_and_condemning_it_is_no_error(
    store: Store, digest: str
) -> None:
    assert store.set_aside(digest) is None
    store.condemn(digest)


def test_what_broken_off_uploads_left_is_told_by_age_and_can_be_deleted(rig: Rig) -> None:
    digest = put(rig.store, b"abc")
    aside = rig.store.set_aside(digest)
    rig.interrupt("old", timedelta(days=2))
    rig.interrupt("new", timedelta(minutes=1))
    before = datetime.now(UTC) - timedelta(hours=1)
    [upload] = rig.store.interrupted(before)
    assert (upload.name.endswith("old"), upload.bytes) == (True, 10)
    rig.store.delete_upload(upload)
    rig.store.delete_upload(upload)
    assert list(rig.store.interrupted(before)) == []
    assert len(list(rig.store.interrupted(datetime.now(UTC)))) == 1
    assert aside is not None
    rig.store.put_back(aside)
    assert rig.store.is_right(digest)


def test_nothing_is_lost_between_those_who_put_and_those_who_collect(rig: Rig) -> None:
    """Whoever has put a blob after it was set aside has it, whatever became of the one aside."""
    digest, stop = put(rig.store, b"abc"), threading.Event()

    def collect() -> None:
        while not stop.is_set():
            aside = rig.store.set_aside(digest)
            if aside is not None:
                rig.store.put_back(aside)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for _ in range(60):
            put(rig.store, b"abc")
    finally:
        stop.set()
        collector.join(180)
    assert content_of(rig.store, digest) == b"abc"
    assert rig.kept() == 1
