"""An API whose artifacts are in a bucket: what holds for a folder's holds for a bucket's."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from farm.api.app import create_app
from farm.database.tables import Artifact
from farm.settings import Settings
from farm.store.bucket import BucketStore
from farm.store.cache import Cache
from tests import s3
from tests.contract.conftest import Api, with_key
from tests.contract.files import run_with_files
from tests.contract.registry import Registry, digest_of
from tests.contract.test_api import problem
from tests.keys import a_key
from workers.runner.store_watch import StoreWatch


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def settings(
    database_url: str, tmp_path: Path, server: s3.S3, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        store=f"s3://{s3.BUCKET}/{secrets.token_hex(8)}",
        max_unused_bytes=100,
    )


@pytest.fixture
def damage(api: Api, server: s3.S3, settings: Settings) -> Any:
    """Flips a bit of a blob, or removes it."""
    store = api.app.state.services.store
    bucket = server.store(settings.store.rpartition("/")[2])

    def of(digest: str, *, remove: bool = False) -> None:
        found = store._puts.newest(digest)
        if remove:
            store._puts.erase([found])
            return
        content = bytearray(bytes(obstore.get(bucket, found.data).bytes()))
        content[0] ^= 1
        obstore.put(bucket, found.data, bytes(content))

    return of


def scrubbed(api: Api) -> dict[str, Any]:
    return api.post("/v1/scrub").json()


def test_uploads_are_found_and_read_by_ranges_and_leave_nothing_on_the_apis_disk(api, settings):
    digest = api.upload(b"0123456789")
    assert api.request("HEAD", f"/v1/blobs/{digest}").headers["content-length"] == "10"
    whole = api.get(f"/v1/blobs/{digest}")
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["etag"] == f'"{digest}"'
    part = api.get(f"/v1/blobs/{digest}", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    assert api.get(f"/v1/blobs/{digest}", headers={"Range": "bytes=10-"}).status_code == 416
    same = api.get(f"/v1/blobs/{digest}", headers={"If-None-Match": f'"{digest}"'})
    assert same.status_code == 304
    assert not list(settings.home.rglob("sha256/*/*"))


def test_an_engine_is_built_pulled_exported_for_oci_and_deleted(api, db, store):
    from tests.contract.conftest import request

    assert api.post("/v1/builds", json=request(api)).status_code == 202
    run_with_files(db, store)
    [engine] = api.get("/v1/models/digits/engines").json()["items"]
    content = api.get(f"/v1/engines/{engine['id']}/content")
    assert digest_of(content.content) == engine["digest"]
    pushed = Registry(api, "digits").blob(engine["digest"])
    assert pushed.content == content.content
    assert api.request("DELETE", f"/v1/engines/{engine['id']}").status_code == 200
    assert not store.has(engine["digest"])


def test_what_nothing_refers_to_is_collected(api, db, store):
    digest = api.upload(b"forgotten")
    with db.write() as session:
        row = session.get(Artifact, digest)
        row.created_at = row.created_at.replace(year=2020)
    # The bucket's own time is that of the put.
    assert api.post("/v1/gc", json={"older_than_s": 86400}).json()["removed_total"] == 0
    report = api.post("/v1/gc", json={"older_than_s": 0}).json()
    assert [one["digest"] for one in report["removed"]] == [digest]
    assert not store.has(digest)
    assert api.upload(b"forgotten") == digest
    assert store.has(digest)


def test_a_key_holds_no_more_than_it_may(api, db):
    mine = with_key(api, a_key(db, "submit"))
    assert mine.post("/v1/blobs", content=b"x" * 60).status_code == 201
    assert problem(mine.post("/v1/blobs", content=b"y" * 41), 413)["code"] == "uploads-unused"
    assert not api.app.state.services.store.has(digest_of(b"y" * 41))
    worker = with_key(api, a_key(db, "work"))
    assert worker.post("/v1/blobs", content=b"z" * 1000).status_code == 201


def test_damage_is_found_and_what_another_copy_has_is_healed(api, store, damage):
    plain, copied, gone = api.upload(b"plain"), api.upload(b"copied"), api.upload(b"gone")
    lost = api.upload(b"lost")
    for digest in (copied, gone):
        with store.local(digest):
            pass  # the API's machine has a copy now
    damage(plain)
    damage(copied)
    damage(gone, remove=True)
    damage(lost, remove=True)
    report = scrubbed(api)
    assert report["damaged"] == [plain]
    assert report["missing"] == [lost]
    assert set(report["healed"]) == {copied, gone}
    assert store.is_right(copied)
    assert store.is_right(gone)
    assert not store.has(plain)
    assert scrubbed(api)["healed"] == []


def test_a_worker_puts_again_what_the_farm_has_lost(api, db, settings, damage, tmp_path):
    digest = api.upload(b"a worker has read it")
    theirs = BucketStore(settings.store, Cache(tmp_path / "a worker's"))
    with theirs.local(digest):
        pass
    damage(digest)
    assert scrubbed(api)["damaged"] == [digest]
    assert api.request("HEAD", f"/v1/blobs/{digest}").status_code == 404
    StoreWatch(db, theirs).heal()
    assert api.request("HEAD", f"/v1/blobs/{digest}").status_code == 200
    assert api.get(f"/v1/blobs/{digest}").content == b"a worker has read it"
    assert theirs.is_right(digest)


def test_a_copy_that_is_wrong_itself_heals_nothing(api, store, damage):
    digest = api.upload(b"once right")
    with store.local(digest) as copy:
        copy.chmod(0o644)
        copy.write_bytes(b"now wrong!")
    damage(digest)
    assert scrubbed(api)["damaged"] == [digest]


def test_the_api_says_which_store_it_has_and_what_is_wrong_with_it(api, settings, monkeypatch):
    shown = api.get("/v1/store").json()
    assert shown["address"].startswith(settings.store)
    assert shown["problem"] is None
    services = api.app.state.services
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    cache = Cache(settings.home / "cache")
    monkeypatch.setattr(services, "store", BucketStore(settings.store, cache, retries=0))
    told = api.get("/v1/store").json()["problem"]
    assert told["code"] == "storage-unavailable"
    assert "AWS_ENDPOINT_URL" in told["hint"]


def test_an_api_refuses_another_api_as_its_store(settings):
    from farm.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match="a store for workers"):
        create_app(settings.model_copy(update={"store": "https://farm.example.com"}))
