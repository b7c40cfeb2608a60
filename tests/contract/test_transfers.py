"""Transfers that networks cut, slow and corrupt end right, and what is half done has no final name."""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from farm.client import upload
from farm.client.api_store import ApiStore
from farm.client.http import Http
from farm.client.retries import Backoff
from farm.errors import StorageUnavailable
from farm.store.base import Blobs
from farm.store.bucket import BucketStore
from farm.store.cache import Cache
from tests import faults, s3
from tests.contract.live_api import LiveApi, live_api
from tests.contract.rigs import digest_of
from tests.faults import Faults, Proxy

MIB = 1 << 20
#: What most tests transfer, and what the heavy one does.
SMALL, LARGE = 6 * MIB, 200 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with live_api(tmp_path_factory.mktemp("live")) as live:
        yield live


@dataclass(frozen=True, kw_only=True)
class Way:
    """A store behind a proxy, and the same one without."""

    store: Blobs
    proxy: Proxy
    direct: Blobs
    folder: Path  #: of the copies

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("sha256/*/*"))


def _http(url: str, key: str) -> Http:
    return Http(url, timeout_s=30, backoff=Backoff(first_s=0.01, longest_s=0.05), key=key)


@pytest.fixture(params=["bucket", "api"])
def way(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Way]:
    monkeypatch.setattr("farm.store.streams._FIRST_S", 0.01)
    folder, other = tmp_path / "copies", Cache(tmp_path / "others")
    if request.param == "api":
        live = request.getfixturevalue("live")
        with faults.before(live.url) as proxy:
            store = ApiStore(_http(proxy.address, live.key), Cache(folder))
            direct = ApiStore(_http(live.url, live.key), other)
            yield Way(store=store, proxy=proxy, direct=direct, folder=folder)
        return
    server = request.getfixturevalue("server")
    url = f"s3://{s3.BUCKET}/{secrets.token_hex(8)}"
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    direct = BucketStore(url, other)
    with faults.before(server.address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        is_heavy = request.node.get_closest_marker("heavy") is not None
        store = BucketStore(url, Cache(folder), retries=10 if is_heavy else 5)
        yield Way(store=store, proxy=proxy, direct=direct, folder=folder)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def put(way: Way, data: bytes, tmp_path: Path) -> str:
    file = tmp_path / "given"
    file.write_bytes(data)
    return way.direct.take(file).digest


def reads_right(way: Way, digest: str) -> None:
    with way.store.local(digest) as file:
        assert f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" == digest
    assert way.names() == [digest.removeprefix("sha256:")]


def a_mib(_connection: int) -> int:
    return MIB


def test_a_download_that_is_cut_at_every_mib_ends_right(way: Way, tmp_path: Path) -> None:
    digest = put(way, content(SMALL), tmp_path)
    way.proxy.faults = Faults(cut_answers=a_mib)
    reads_right(way, digest)
    assert way.proxy.cuts >= SMALL // MIB


def test_a_download_that_is_slow_ends_right(way: Way, tmp_path: Path) -> None:
    digest = put(way, content(MIB), tmp_path)
    way.proxy.faults = Faults(slow_s=0.01)
    reads_right(way, digest)


def test_a_download_whose_bytes_are_changed_is_begun_again(way: Way, tmp_path: Path) -> None:
    digest = put(way, content(SMALL), tmp_path)
    way.proxy.faults = Faults(corrupt_answers={2 * MIB})
    reads_right(way, digest)


def test_a_whole_answer_to_a_range_is_told_from_its_rest(way: Way, tmp_path: Path) -> None:
    digest = put(way, content(SMALL), tmp_path)
    # S3 signs requests with their ranges: there the answer is changed.
    how = {"ignores_ranges" if isinstance(way.store, ApiStore) else "answers_200": True}
    # Each connection comes further, as it begins at the start again.
    way.proxy.faults = Faults(cut_answers=lambda number: (1 + number) * MIB, **how)
    reads_right(way, digest)


def test_a_download_whose_server_is_gone_keeps_what_came_without_a_final_name(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(way, content(SMALL), tmp_path)
    way.proxy.faults = Faults(cut_answers=lambda number: MIB if number < 4 else 0)
    with pytest.raises(StorageUnavailable), way.store.local(digest):
        pass
    assert way.names() in ([], [digest.removeprefix("sha256:") + ".partial"])
    way.proxy.faults = Faults()
    way.proxy.drop()
    reads_right(way, digest)


def test_an_upload_that_is_cut_ends_right(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "made"
    file.write_bytes(data := content(20 * MIB, seed=2))
    # A part of an S3 upload is sent again from its start: no more connections are cut than it is sent again.
    first_parts = lambda number: number * MIB if 0 < number < 5 else None  # noqa: E731
    cut = a_mib if isinstance(way.store, ApiStore) else first_parts
    way.proxy.faults = Faults(cut_requests=cut)
    stored = way.store.take(file)
    assert (stored.digest, stored.bytes) == (digest_of(data), len(data))
    assert way.proxy.cuts >= 2
    assert way.direct.is_right(stored.digest)


def test_an_upload_whose_bytes_are_changed_on_the_way_isnt_stored_wrong(
    way: Way, tmp_path: Path
) -> None:
    file = tmp_path / "made"
    file.write_bytes(data := content(20 * MIB, seed=3))
    way.proxy.faults = Faults(corrupt_requests={3 * MIB})
    try:
        stored = way.store.take(file)
    except StorageUnavailable:
        assert file.read_bytes() == data  # to be sent again
        assert not way.direct.has(digest_of(data))
        stored = way.store.take(file)
    assert stored.digest == digest_of(data)
    assert way.direct.is_right(stored.digest)


def test_an_upload_whose_server_is_gone_leaves_no_blob(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "made"
    file.write_bytes(data := content(12 * MIB, seed=4))
    way.proxy.faults = Faults(cut_requests=lambda number: 5 * MIB if number < 2 else 0)
    with pytest.raises(StorageUnavailable):
        way.store.take(file)
    assert file.read_bytes() == data
    assert not way.direct.has(digest_of(data))


def test_a_large_upload_of_a_client_goes_on_where_it_was_cut(
    live: LiveApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(data := content(10 * MIB, seed=5))
    with faults.before(live.url) as proxy:
        proxy.faults = Faults(cut_requests=a_mib)
        http = _http(proxy.address, live.key)
        upload.upload(http, file, digest_of(data))
    assert proxy.cuts >= 9
    # Some of what was on its way is lost with its connection; nothing is sent from the start again.
    assert proxy.forwarded_bytes < 4 * len(data)
    assert live.http.get(f"/v1/blobs/{digest_of(data)}").content == data


@pytest.mark.heavy
def test_200_mb_that_are_cut_at_every_mib_end_right_both_ways(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "made"
    file.write_bytes(data := content(LARGE, seed=6))
    # A part of an S3 upload is sent again from its start, so that one must get through now and then.
    some = lambda n: (n % 7 + 1) * MIB if random.Random(n).random() < 0.25 else None  # noqa: E731
    cut = a_mib if isinstance(way.store, ApiStore) else some
    way.proxy.faults = Faults(cut_requests=cut)
    digest = way.store.take(file).digest
    assert digest == digest_of(data)
    for copy in way.folder.glob("sha256/*/*"):
        copy.unlink()  # its own
    way.proxy.faults = Faults(cut_answers=a_mib)
    way.proxy.drop()
    reads_right(way, digest)
    assert way.proxy.cuts >= LARGE // MIB
