"""Stores, and how a test does to each what its medium may do."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import obstore
import pytest
from anyio import to_thread

from farm.client.api_store import ApiStore
from farm.client.http import Http
from farm.client.retries import Backoff
from farm.schemas.storage import Blob
from farm.store import local, puts
from farm.store.base import Blobs, Store, Stored
from farm.store.bucket import BucketStore
from farm.store.cache import Cache
from farm.store.local import LocalStore
from farm.testing.store import MemoryStore
from tests import faults, s3
from tests.contract.conftest import OverTheApi


@dataclass(frozen=True, kw_only=True)
class Rig:
    store: Store
    damage: Callable[[str], None]  #: flips a bit of a blob
    age: Callable[[str, timedelta], None]  #: makes a blob so old
    interrupt: Callable[[str, timedelta], None]  #: leaves an upload so old that broke off
    fill: Callable[[], None]  #: from now on there is no room
    take_away: Callable[[], None]  #: from now on it doesn't answer
    bring_back: Callable[[], None]  #: as it was
    condemned: Callable[[], list[bytes]]  #: what was kept for somebody to look at
    kept: Callable[[], int]  #: how many blobs and parts of blobs there are, in reach or not


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def receive(
    store: Store, *parts: bytes, expected: str | None = None, max_bytes: int = 1000
) -> Stored:
    async def pieces() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def go() -> Stored:
        return await store.receive(pieces(), expected=expected, max_bytes=max_bytes)

    return anyio.run(go)


def content_of(store: Blobs, digest: str) -> bytes:
    with store.local(digest) as file:
        return file.read_bytes()


def put(store: Store, content: bytes) -> str:
    return receive(store, content).digest


class LocalMedium:
    """A folder, with what disks do."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = LocalStore(root)
        self._root = root
        self._patch = monkeypatch
        self._spared = root / "none"

    def rig(self) -> Rig:
        return Rig(
            store=self.store,
            damage=self.damage,
            age=self.age,
            interrupt=self.interrupt,
            fill=lambda: self.refuse(errno.ENOSPC),
            take_away=lambda: self.refuse(errno.EIO),
            bring_back=self._patch.undo,
            condemned=lambda: [p.read_bytes() for p in self._root.glob("damaged/*")],
            kept=lambda: len([p for p in self._root.rglob("*") if p.is_file() and p.name != "id"]),
        )

    def damage(self, digest: str) -> None:
        place = self.store.place(digest)
        content = bytearray(place.read_bytes())
        content[0] ^= 1
        place.chmod(0o644)
        place.write_bytes(content)

    def age(self, digest: str, age: timedelta) -> None:
        then = (datetime.now(UTC) - age).timestamp()
        os.utime(self.store.place(digest), (then, then))

    def interrupt(self, name: str, age: timedelta) -> None:
        file = self._root / "incoming" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half of it")
        then = (datetime.now(UTC) - age).timestamp()
        os.utime(file, (then, then))

    def refuse(self, code: int) -> None:
        def refused(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        self._patch.setattr("os.fsync", self._refusing_files(os.fsync, refused))
        self._patch.setattr(local.tempfile, "NamedTemporaryFile", refused)
        if code == errno.EIO:
            for name in ("read_text", "stat", "is_file", "open", "iterdir", "replace", "unlink"):
                self._patch.setattr(Path, name, self._refusing(getattr(Path, name), refused))

    def _refusing_files(
        self, real: Callable[[int], None], refused: Callable[[], None]
    ) -> Callable[[int], None]:
        def but_spared(fd: int) -> None:
            if not Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(self._spared):
                refused()
            real(fd)

        return but_spared

    def _refusing(
        self, real: Callable[..., Any], refused: Callable[[], None]
    ) -> Callable[..., Any]:
        def below_root(path: Path, *words: Any, **options: Any) -> Any:
            if path.is_relative_to(self._root):
                refused()
            return real(path, *words, **options)

        return below_root


class MemoryMedium:
    def __init__(self, folder: Path) -> None:
        self.age_of_new = timedelta()
        self.store = MemoryStore(folder, clock=lambda: datetime.now(UTC) - self.age_of_new)

    def rig(self) -> Rig:
        store = self.store
        return Rig(
            store=store,
            damage=store.damage,
            age=self.age,
            interrupt=self.interrupt,
            fill=lambda: setattr(store, "room_bytes", 0),
            take_away=lambda: setattr(store, "is_away", True),
            bring_back=lambda: setattr(store, "is_away", False),
            condemned=lambda: list(store.condemned.values()),
            kept=lambda: len(store._blobs) + len(store._aside) + len(store._uploads),
        )

    def age(self, digest: str, age: timedelta) -> None:
        with self.in_the_past(age):
            receive(self.store, content_of(self.store, digest))

    def interrupt(self, name: str, age: timedelta) -> None:
        with self.in_the_past(age):
            self.store.interrupt(name, b"half of it")

    @contextmanager
    def in_the_past(self, age: timedelta) -> Iterator[None]:
        self.age_of_new = age
        yield
        self.age_of_new = timedelta()


class ThroughApi:
    """A worker's store by the API, and for the rest the API's own."""

    def __init__(self, http: Http, store: Store, folder: Path) -> None:
        self._http = http
        self._there = store
        self._here = ApiStore(http, Cache(folder))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._here if hasattr(Blobs, name) else self._there, name)

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        parts = [chunk async for chunk in chunks]
        headers = {"Content-Type": "application/octet-stream"}
        if expected is not None:
            raw = base64.b64encode(bytes.fromhex(expected.removeprefix("sha256:"))).decode()
            headers["Repr-Digest"] = f"sha-256=:{raw}:"
        ask = partial(self._http.read, Blob, "POST", "/v1/blobs", headers=headers)
        blob = await to_thread.run_sync(partial(ask, body=lambda: iter(parts)))
        return Stored(digest=blob.digest, bytes=blob.bytes)


class ApiMedium(LocalMedium):
    """The real API with a folder, in this process, so that its disk can be made to fail."""

    def __init__(self, api: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        services = api.app.state.services
        super().__init__(services.settings.store_dir, monkeypatch)
        self._spared = folder  # a worker's own disk
        http = Http(
            *("http://localhost",),
            timeout_s=60,
            backoff=Backoff(attempts=1, first_s=0),
            transport=OverTheApi(api),
            key=api.key,
        )
        self.through = ThroughApi(http, services.store, folder)

    def rig(self) -> Rig:
        return replace(super().rig(), store=self.through)


class BucketMedium:
    """A prefix of a bucket, with a proxy before its server."""

    def __init__(self, server: s3.S3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bucket = server.store(prefix := secrets.token_hex(8))
        self._url = f"s3://{s3.BUCKET}/{prefix}"
        self._patch = monkeypatch
        self._age = timedelta()
        self.proxy = faults.Proxy(server.address)
        for name, value in (server.environment | {"AWS_ENDPOINT_URL": self.proxy.address}).items():
            monkeypatch.setenv(name, value)
        self.store = BucketStore(self._url, Cache(folder), retries=0)
        # Nothing sets an object's time: what a test has made old is told as such.
        self._ages: dict[str, timedelta] = {}
        objects = self.store._puts.objects

        def aged(folder: str) -> Iterator[Any]:
            for one in objects(folder):
                age = self._ages.get(one["path"].removeprefix("data/").split("/")[-1].split(".")[0])
                is_moved = one["path"] in self._moved
                yield (
                    one | {"last_modified": one["last_modified"] - age}
                    if age and not is_moved
                    else one
                )

        self._moved: set[str] = set()
        write = self.store._puts.write

        def written(path: str, *words: Any, **options: Any) -> None:
            self._moved.add(path)
            if path.startswith("aside/"):
                self._moved.discard(path)
            write(path, *words, **options)

        monkeypatch.setattr(self.store._puts, "objects", aged)
        monkeypatch.setattr(self.store._puts, "write", written)

    def rig(self) -> Rig:
        return Rig(
            store=self.store,
            damage=self.damage,
            age=self.age,
            interrupt=self.interrupt,
            fill=lambda: setattr(self.proxy.faults, "is_full", True),
            take_away=self.take_away,
            bring_back=lambda: setattr(self.proxy.faults, "refuses", False),
            condemned=self.condemned,
            kept=self.kept,
        )

    def damage(self, digest: str) -> None:
        place = self.store._puts.newest(digest).data
        content = bytearray(bytes(obstore.get(self._bucket, place).bytes()))
        content[0] ^= 1
        obstore.put(self._bucket, place, bytes(content))

    def age(self, digest: str, age: timedelta) -> None:
        for one in self.store._puts.of(digest):
            self._ages[one.id] = age
            self._moved.discard(one.path)

    def interrupt(self, name: str, age: timedelta) -> None:
        obstore.put(self._bucket, f"data/{name}", b"half of it")
        self._ages[name] = age

    def take_away(self) -> None:
        self.proxy.faults.refuses = True
        self.proxy.drop()

    def condemned(self) -> list[bytes]:
        kept = self.store._puts.listed(puts.DAMAGED)
        return [bytes(obstore.get(self._bucket, one.data).bytes()) for one in kept]

    def kept(self) -> int:
        found = [one["path"] for some in obstore.list(self._bucket) for one in some]
        pointers = [parsed for path in found if (parsed := puts.POINTER.fullmatch(path))]
        known = {parsed[2] for parsed in pointers}
        rest = [path for path in found if path[:5] == "data/" and path[5:] not in known]
        return len({parsed[1] for parsed in pointers}) + len(rest)
