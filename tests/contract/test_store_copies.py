"""``farm store copy``: a farm's artifacts move to another store, and none is lost on the way."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from farm.cli import app
from farm.errors import Conflict, InvalidRequest, NotFound, StorageUnavailable
from farm.store import proof
from farm.store.base import Store
from farm.store.bucket import BucketStore
from farm.store.cache import Cache
from farm.store.local import LocalStore
from farm.store.migration import Migration
from tests import faults, s3
from tests.contract.live_api import live_api
from tests.contract.rigs import content_of, digest_of, put

BLOBS = [bytes([n]) * (n + 1) for n in range(30)]
LARGE = os.urandom(9 << 20)  # more than a part


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: s3.S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.Proxy]:
    with faults.before(server.address) as proxy:
        for name, value in (server.environment | {"AWS_ENDPOINT_URL": proxy.address}).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def old(tmp_path: Path) -> LocalStore:
    """A farm's, in a folder."""
    store = LocalStore(tmp_path / "old")
    store.identify()
    for content in BLOBS:
        put(store, content)
    return store


@pytest.fixture
def bucket(proxy: faults.Proxy, tmp_path: Path) -> BucketStore:
    return BucketStore(a_prefix(), Cache(tmp_path / "cache"), retries=0)


def a_prefix() -> str:
    return f"s3://{s3.BUCKET}/{secrets.token_hex(8)}"


def digests(store: Store) -> set[str]:
    return {file.digest for file in store.blobs()}


def test_all_goes_to_a_bucket_and_back_and_is_right_there(
    old: LocalStore, bucket: BucketStore, tmp_path: Path
) -> None:
    large = b"".join([LARGE])
    source = tmp_path / "large"
    source.write_bytes(large)
    digest = old.take(source).digest
    there = Migration(old, bucket).run()
    assert (there.files, there.present, there.damaged) == (len(BLOBS) + 1, 0, [])
    assert there.bytes == sum(map(len, BLOBS)) + len(large)
    assert bucket.identity() == old.identity() == there.identity
    again = LocalStore(tmp_path / "new")
    back = Migration(bucket, again).run()
    assert back.files == len(BLOBS) + 1
    assert digests(again) == digests(bucket) == digests(old)
    assert all(map(again.is_right, digests(again)))
    assert content_of(again, digest) == large
    assert old.has(digest), "the old store stays as it is"


def test_what_is_written_meanwhile_comes_with_the_next_copy_and_nothing_twice(
    old: LocalStore, bucket: BucketStore
) -> None:
    Migration(old, bucket).run()
    put(old, b"written meanwhile")
    done = Migration(old, bucket).run()
    assert (done.files, done.bytes, done.present) == (1, 17, len(BLOBS))
    assert bucket.is_right(digest_of(b"written meanwhile"))
    assert Migration(old, bucket).run().files == 0


def test_an_interrupted_copy_goes_on_where_it_stopped(
    old: LocalStore, bucket: BucketStore, proxy: faults.Proxy
) -> None:
    def refuse(_count: int) -> None:
        if len(told) == 10:
            proxy.faults.refuses = True
            proxy.drop()
        told.append(_count)

    told: list[int] = []
    with pytest.raises(StorageUnavailable):
        Migration(old, bucket).run(arrived=refuse)
    proxy.faults.refuses = False
    assert bucket.identity() is None, "half a store isn't the farm's"
    have = len(digests(bucket))
    assert 0 < have < len(BLOBS)
    done = Migration(old, bucket).run()
    assert (done.files, done.present) == (len(BLOBS) - have, have)
    assert digests(bucket) == digests(old)
    assert bucket.identity() == old.identity()


def test_the_api_refuses_half_a_store_and_leaves_it_to_be_completed(
    old: LocalStore, tmp_path: Path, ledger
) -> None:
    proof.adopt(ledger.db, old)
    half = LocalStore(tmp_path / "half")
    put(half, BLOBS[0])
    with pytest.raises(StorageUnavailable, match="isn't the farm's artifact store"):
        proof.adopt(ledger.db, half)
    Migration(old, half).run()
    proof.adopt(ledger.db, half)
    assert digests(half) == digests(old)


def test_damaged_files_are_left_out_and_told_and_the_copy_isnt_complete(
    old: LocalStore, bucket: BucketStore
) -> None:
    for content, wrong in ((BLOBS[5], b"other!"), (BLOBS[6], b""), (BLOBS[7], bytes(100))):
        place = old.place(digest_of(content))
        place.chmod(0o644)
        place.write_bytes(wrong)
    done = Migration(old, bucket).run()
    assert set(done.damaged) == {digest_of(content) for content in BLOBS[5:8]}
    assert done.files == len(BLOBS) - 3
    assert not done.is_complete
    assert bucket.identity() is None
    put(old, BLOBS[5])
    put(old, BLOBS[6])
    put(old, BLOBS[7])
    assert Migration(old, bucket).run().is_complete
    assert digests(bucket) == digests(old)


def test_a_file_of_another_size_in_the_target_is_copied_again(
    old: LocalStore, tmp_path: Path
) -> None:
    target = LocalStore(tmp_path / "new")
    Migration(old, target).run()
    place = target.place(digest_of(BLOBS[9]))
    place.chmod(0o644)
    place.write_bytes(b"cut")
    assert Migration(old, target).run().files == 1
    assert target.is_right(digest_of(BLOBS[9]))


class Collected(LocalStore):
    """One whose garbage is collected while it is copied."""

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        if digest == digest_of(BLOBS[3]) and self.has(digest):
            self.place(digest).unlink()
        return super().read(digest, start, stop)


def test_what_is_collected_meanwhile_isnt_missed(old: LocalStore, tmp_path: Path) -> None:
    target = LocalStore(tmp_path / "new")
    done = Migration(Collected(old.root), target).run()
    assert done.is_complete
    assert done.files == len(BLOBS) - 1
    with pytest.raises(NotFound):
        target.place(digest_of(BLOBS[3]))


def test_a_dry_run_writes_nothing(old: LocalStore, tmp_path: Path) -> None:
    target = LocalStore(tmp_path / "new")
    done = Migration(old, target).run(dry_run=True)
    assert (done.files, done.bytes) == (len(BLOBS), sum(map(len, BLOBS)))
    assert not target.root.exists()


def test_another_farms_store_and_an_unused_one_are_refused(old: LocalStore, tmp_path: Path) -> None:
    theirs = LocalStore(tmp_path / "theirs")
    with pytest.raises(InvalidRequest, match="no farm has its artifacts") as refused:
        Migration(theirs, old)
    assert "FARM_STORE" in str(refused.value.hint)
    theirs.identify()
    with pytest.raises(Conflict, match="another farm's artifacts"):
        Migration(old, theirs)


def farm(*words: str) -> tuple[int, str, str]:
    ran = CliRunner().invoke(app, ["store", "copy", *words])
    return ran.exit_code, ran.stdout, ran.stderr


def test_the_command_copies_and_says_how_to_switch_over(
    old: LocalStore, proxy: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    to = a_prefix()
    code, out, _ = farm("--from", str(old.root), "--to", to, "--dry-run")
    assert code == 0
    assert out.startswith(f"would copy {len(BLOBS)} files (465 B); 0 there already\n")
    code, out, _ = farm("--from", f"file://{old.root}", "--to", f"{to}/")
    assert code == 0
    assert out.startswith(f"copied {len(BLOBS)} files")
    steps = [line.strip() for line in out.splitlines()]
    assert steps[2:5] == [
        "1. stop the API and the workers",
        f"2. farm store copy --from {old.root} --to {to}",
        f"3. start them with FARM_STORE={to}",
    ]
    code, out, _ = farm("--from", str(old.root), "--to", to, "--json")
    told = json.loads(out)
    assert (code, told["copied"], told["present"], told["complete"]) == (0, 0, len(BLOBS), True)
    assert (told["source"], told["target"], told["id"]) == (str(old.root), to, old.identity())


def test_the_command_fails_for_damaged_files_and_names_them(
    old: LocalStore, tmp_path: Path
) -> None:
    place = old.place(digest_of(BLOBS[8]))
    place.chmod(0o644)
    place.write_bytes(bytes(9))
    code, out, _ = farm("--from", str(old.root), "--to", str(tmp_path / "new"))
    assert code == 1
    assert f"damaged, and left out: {digest_of(BLOBS[8])}" in out
    assert "farm scrub" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--from", "OLD", "--to", "https://farm.example.com"), "need a folder or a bucket"),
        (("--from", "https://farm.example.com", "--to", "OLD"), "need a folder or a bucket"),
        (("--from", "OLD", "--to", "OLD"), "the same store"),
        (("--from", "OLD", "--to", "ftp://secret@there"), "--to: this isn't a store"),
        (("--from", "EMPTY", "--to", "OLD"), "no farm has its artifacts"),
        (("--from", "OLD"), "--to"),
    ],
)
def test_the_command_refuses_what_isnt_a_store_to_copy(
    old: LocalStore, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    places = {"OLD": str(old.root), "EMPTY": str(tmp_path / "empty")}
    code, out, err = farm(*(places.get(word, word) for word in words))
    assert code == 2
    assert told in " ".join((out + err).split())
    assert "secret" not in out + err


def test_a_farm_goes_on_in_its_new_store_with_all_that_was_uploaded_meanwhile(
    proxy: faults.Proxy, tmp_path: Path
) -> None:
    to, home = a_prefix(), tmp_path / "home"

    def shown(url: str, key: str) -> dict[str, object]:
        environment = {"FARM_URL": url, "FARM_KEY": key}
        ran = CliRunner().invoke(app, ["store", "--json"], env=environment)
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)  # type: ignore[no-any-return]

    with live_api(home) as api:
        first = api.upload(b"before the copy")
        before = shown(api.url, api.key)
        assert farm("--from", before["address"], "--to", to)[0] == 0
        second = api.upload(b"while it is used")
    code, out, _ = farm("--from", before["address"], "--to", to)
    assert (code, out.splitlines()[0]) == (0, "copied 1 file (16 B); 1 there already")
    with live_api(home, {"FARM_STORE": to}) as api:
        after = shown(api.url, api.key)
        assert (after["id"], after["problem"]) == (before["id"], None)
        assert str(after["address"]).startswith(to)
        assert api.http.get(f"/v1/blobs/{first}").content == b"before the copy"
        assert api.http.get(f"/v1/blobs/{second}").content == b"while it is used"
        scrubbed = api.http.post("/v1/scrub").json()
    assert (scrubbed["checked"], scrubbed["damaged"], scrubbed["missing"]) == (2, [], [])
