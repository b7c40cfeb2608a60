"""Copies of blobs on a machine: right, bounded, shared by its processes, never taken from who reads them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from farm.errors import BlobDamaged, StorageUnavailable
from farm.store.cache import Cache


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Source:
    """Where blobs come from; it counts what is read."""

    def __init__(self, content: bytes, *, breaks_at: int | None = None) -> None:
        self.content = content
        self.digest = digest_of(content)
        self.starts: list[int] = []
        self._breaks_at = breaks_at

    def read(self, start: int):
        self.starts.append(start)
        for at in range(start, len(self.content), 10):
            if self._breaks_at is not None and at >= self._breaks_at:
                self._breaks_at = None
                raise StorageUnavailable("the connection was lost")
            yield self.content[at : at + 10]

    def copy(self, cache: Cache):
        return cache.copy(self.digest, lambda: len(self.content), self.read)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", most_bytes=100)


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("sha256/*/*")}


def use(cache: Cache, *sources: Source) -> None:
    for source in sources:
        with source.copy(cache) as path:
            assert path.read_bytes() == source.content
            # What was used before is older, however coarse the disk's clock is.
            for other in path.parents[1].glob("*/*"):
                found = other.stat()
                if other != path:
                    os.utime(other, (found.st_atime - 10, found.st_mtime - 10))


def test_a_blob_is_downloaded_once(cache):
    source = Source(b"x" * 35)
    use(cache, source, source)
    assert source.starts == [0]


def test_a_download_goes_on_where_it_was_lost_and_has_no_final_name_before(cache, tmp_path):
    source = Source(b"0123456789" * 4, breaks_at=20)
    with pytest.raises(StorageUnavailable), source.copy(cache):
        pass
    assert names(tmp_path) == {source.digest[7:] + ".partial"}
    use(cache, source)
    assert source.starts == [0, 20]
    assert names(tmp_path) == {source.digest[7:]}


def test_what_began_as_something_else_is_downloaded_again_from_its_start(cache, tmp_path):
    source = Source(b"0123456789" * 4, breaks_at=20)
    with pytest.raises(StorageUnavailable), source.copy(cache):
        pass
    [partial] = (tmp_path / "cache").glob("sha256/*/*.partial")
    partial.write_bytes(b"other bytes, of 20!!")
    use(cache, source)
    assert source.starts == [0, 20, 0]


def test_other_bytes_than_the_digests_get_no_final_name(cache, tmp_path):
    source = Source(b"x" * 35)
    source.content = b"y" * 35
    with pytest.raises(BlobDamaged), source.copy(cache):
        pass
    assert source.starts == [0, 0]
    assert names(tmp_path) == set()


def test_the_least_recently_used_goes_first(cache, tmp_path):
    one, two, three = (Source(letter * 40) for letter in (b"1", b"2", b"3"))
    use(cache, one, two, one, three)
    assert names(tmp_path) == {one.digest[7:], three.digest[7:]}


def test_what_is_read_stays_even_if_it_takes_more(cache, tmp_path):
    one, two, three = (Source(letter * 60) for letter in (b"1", b"2", b"3"))
    with one.copy(cache) as path:
        use(cache, two, three)
        assert path.read_bytes() == one.content
    assert names(tmp_path) == {one.digest[7:], three.digest[7:]}


def test_a_running_jobs_input_stays(cache, tmp_path):
    one, two, three = (Source(letter * 60) for letter in (b"1", b"2", b"3"))
    with one.copy(cache) as path:
        os.link(path, tmp_path / "input")
    use(cache, two, three)
    assert one.digest[7:] in names(tmp_path)
    (tmp_path / "input").unlink()
    use(cache, two)
    assert one.digest[7:] not in names(tmp_path)


def test_a_damaged_copy_is_dropped_and_downloaded_again(cache):
    source = Source(b"x" * 35)
    use(cache, source)
    assert not cache.drop_wrong(source.digest)
    with source.copy(cache) as path:
        path.chmod(0o644)
        path.write_bytes(b"y" * 35)
    assert cache.drop_wrong(source.digest)
    use(cache, source)
    assert source.starts == [0, 0]


def test_what_was_made_here_is_a_copy_without_a_download(cache, tmp_path):
    source, made = Source(b"x" * 35), tmp_path / "made"
    made.write_bytes(source.content)
    cache.adopt(made, source.digest)
    assert not made.exists()
    use(cache, source)
    assert source.starts == []


def test_many_who_want_one_blob_at_once_download_it_once(cache):
    source, start = Source(bytes(range(90))), threading.Barrier(6)

    def read() -> None:
        start.wait(180)
        with source.copy(cache) as path:
            assert path.read_bytes() == source.content

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert source.starts == [0]


def _holds(folder: Path, content: bytes, ready, go) -> None:
    with Source(content).copy(Cache(folder, most_bytes=100)) as path:
        ready.set()
        go.wait(60)
        assert path.read_bytes() == content


def test_another_process_takes_nothing_from_who_reads(cache, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    one = Source(b"1" * 60)
    process = spawn.Process(target=_holds, args=(tmp_path / "cache", one.content, ready, go))
    process.start()
    assert ready.wait(60)
    use(cache, Source(b"2" * 60), Source(b"3" * 60))
    assert one.digest[7:] in names(tmp_path)
    go.set()
    process.join(180)
    assert process.exitcode == 0


def test_a_download_that_nobody_went_on_with_is_removed(cache, tmp_path):
    source = Source(b"0123456789" * 4, breaks_at=20)
    with pytest.raises(StorageUnavailable), source.copy(cache):
        pass
    [partial] = (tmp_path / "cache").glob("sha256/*/*.partial")
    old = time.time() - 2 * 86400
    os.utime(partial, (old, old))
    use(cache, Source(b"another"))
    assert not partial.exists()
