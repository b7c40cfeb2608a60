"""The farm's store by its API: for workers that share nothing with it but the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path

import httpx2

from farm.client import answers, upload
from farm.client.content import continues
from farm.client.http import Http
from farm.errors import (
    BlobDamaged,
    DigestMismatch,
    FarmError,
    NotFound,
    StorageFull,
    StorageUnavailable,
    from_code,
)
from farm.schemas.storage import BlobCheck, BlobUpload, StoreProblem, StoreView
from farm.store import digests, streams
from farm.store.base import Stored
from farm.store.cache import Cache

_SILENCE_S = 60.0
_NOBODYS = "sha256:" + "0" * 64
#: What a store itself raises.
_THE_STORES = (NotFound, DigestMismatch, BlobDamaged, StorageFull, StorageUnavailable)


class ApiStore:
    """`farm.store.base.Blobs`, with copies of some on this machine.

    Parameters:
        http: with a key that has the scope ``work``.
        cache: of this machine.
    """

    def __init__(self, http: Http, cache: Cache) -> None:
        self._http = http
        self._cache = cache

    @property
    def address(self) -> str:
        return f"{self._http.url}, with copies at {self._cache.address}"

    def identity(self) -> str | None:
        with self._reached():
            shown = self._http.read(StoreView, "GET", "/v1/store")
            if shown.id is None:
                _require_no(shown.problem)
            return shown.id

    def try_to_write(self) -> None:
        with self._reached():
            _require_no(self._http.read(StoreView, "GET", "/v1/store").problem)
            begun = self._http.read(BlobUpload, "POST", "/v1/uploads")
            self._http.request("DELETE", f"/v1/uploads/{begun.id}")
            with suppress(NotFound):  # the key may read, and there is no such blob
                self._http.request("GET", f"/v1/blobs/{_NOBODYS}")

    def take(self, source: Path, *, expected: str | None = None) -> Stored:
        with self._reached():
            digest, size = digests.of_path(source), source.stat().st_size
            digests.check(digest, expected)
            upload.send(self._http, source, digest)
        self._cache.adopt(source, digest)
        return Stored(digest=digest, bytes=size)

    def has(self, digest: str) -> bool:
        with self._reached(), suppress(NotFound):
            self._size_of(digest)
            return True
        return False

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        digests.name_of(digest)
        size_of = partial(self._size_of, digest)
        with self._cache.copy(digest, size_of, partial(self._read, digest)) as path:
            yield path

    def is_right(self, digest: str) -> bool:
        """As everywhere; the API has condemned one that isn't."""
        digests.name_of(digest)
        with self._reached():
            return self._http.read(BlobCheck, "POST", f"/v1/blobs/{digest}/check").right

    def drop_wrong_copy(self, digest: str) -> bool:
        return self._cache.drop_wrong(digest)

    def condemn(self, digest: str) -> None:
        with suppress(NotFound):
            self.is_right(digest)

    def heal(self, digest: str) -> bool:
        with self._cache.held(digest) as copy, self._reached():
            if copy is None or digests.of_path(copy) != digest:
                return False
            upload.send(self._http, copy, digest)
            return True

    def _size_of(self, digest: str) -> int:
        digests.name_of(digest)
        with self._reached():
            answered = self._http.request("HEAD", f"/v1/blobs/{digest}")
            return int(answered.headers["Content-Length"])

    def _read(self, digest: str, start: int) -> Iterator[bytes]:
        return streams.resumed(partial(self._open_at, digest), start, self._size_of(digest))

    def _open_at(self, digest: str, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v1/blobs/{digest}"
        with (
            self._reached(),
            self._http.stream(path, headers=headers, read_timeout_s=_SILENCE_S) as response,
        ):
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise StorageUnavailable(f"{self._http.url} has less of {digest} than it said")
            chunks = answers.chunks(response)
            yield from chunks if continues(response, start) else streams.skipping(chunks, start)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Convert errors of the API and of the way to it.

        Raises:
            StorageUnavailable: for whatever reason it can't be used; what was asked for may be there.
            NotFound, DigestMismatch, BlobDamaged
        """
        try:
            yield
        except httpx2.TransportError as err:
            raise StorageUnavailable(self._http.unreachable(err).detail) from err
        except OSError as err:
            raise StorageUnavailable(f"{self._http.url} can't be used: {err}") from err
        except FarmError as err:
            if isinstance(err, _THE_STORES):
                raise
            raise StorageUnavailable(
                f"{self._http.url} can't be used as the store: {err.detail}", hint=err.hint
            ) from err


def _require_no(problem: StoreProblem | None) -> None:
    if problem is not None:
        raise from_code(problem.code, problem.detail, problem.hint)
