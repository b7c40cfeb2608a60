"""Content of the farm by its digest: resumed after a lost connection, hashed and stored as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx2

from farm.client import answers
from farm.client import partial as partials
from farm.client.durable import Durable
from farm.client.hashing import Hashing
from farm.client.http import Http
from farm.client.progress import TransferProgress, silent
from farm.client.upload import digest_of
from farm.errors import DigestMismatch, Unavailable

_SILENCE_S = 60.0
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Content:
    """Bytes that the farm has, and what they must be."""

    path: str  #: of the URL
    what: str  #: ``engine 01m7y8mbznssegkq``
    digest: str
    bytes: int


def fetch(
    http: Http, content: Content, partial: Path, progress: TransferProgress | None = None
) -> None:
    """Download all of it to ``partial``, from where that ends, and verify it.

    Raises:
        DigestMismatch: the bytes aren't the content's; they were deleted.
        Unavailable: the farm stayed unreachable; what has come is kept.
    """
    with Hashing() as hashing:
        received = _Received(partial, hashing)
        resumed = received.bytes > 0
        _complete(http, content, received, progress or silent)
        if received.digest != content.digest and resumed:
            # The partial file was something else's, or damaged: start over.
            received.restart()
            _complete(http, content, received, progress or silent)
        digest = received.digest
    if digest != content.digest:
        partial.unlink()
        raise DigestMismatch(
            f"{content.what} arrived as {digest}, the registry says {content.digest}; "
            "nothing was kept",
            hint="pull it again; if this repeats, the farm's store or a proxy on the way is broken",
        )


def bring(
    http: Http,
    content: Content,
    path: Path,
    progress: TransferProgress | None = None,
    *,
    check: Callable[[Path], None] = lambda _partial: None,
) -> bool:
    """Download it to ``path``, unless the same bytes are there; return whether it was downloaded.

    Parameters:
        check: refuses what has come, before it gets its name.

    Raises:
        DigestMismatch, Unavailable
        Conflict: another process is writing this file.
    """
    if _is_here(path, content):
        return False
    with partials.held(path) as partial:
        fetch(http, content, partial, progress)
        check(partial)
        partial.replace(path)
    return True


def _is_here(path: Path, content: Content) -> bool:
    # A symlink may lead anywhere: it is replaced, never followed.
    whole = not path.is_symlink() and path.is_file() and path.stat().st_size == content.bytes
    return whole and digest_of(path) == content.digest


class _Received:
    """A partial file, with the digest of what it holds."""

    def __init__(self, path: Path, hashing: Hashing) -> None:
        self.path = path
        self.bytes = 0
        self._hashing = hashing
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                self.count(chunk)

    def count(self, chunk: bytes) -> None:
        self._hashing.update(chunk)
        self.bytes += len(chunk)

    @property
    def digest(self) -> str:
        return self._hashing.digest

    def restart(self) -> None:
        partials.truncate(self.path)
        self.bytes = 0
        self._hashing.restart()


def _complete(
    http: Http, content: Content, received: _Received, progress: TransferProgress
) -> None:
    """Append to the file until it has the content's length.

    Raises:
        Unavailable: several connections in a row were lost without a byte of progress.
    """
    for attempt in http.backoff.in_a_row(http.backoff.attempts):
        if (have := received.bytes) == content.bytes:
            return
        if have > content.bytes:
            received.restart()
        with attempt:
            try:
                _receive(http, content, received, progress)
            except httpx2.TransportError as err:
                raise _lost(http, content, received, err) from err
            finally:
                attempt.got_on = received.bytes > have
            if received.bytes != content.bytes:
                raise Unavailable(f"{content.what} ends early, again and again")


def _lost(
    http: Http, content: Content, received: _Received, err: httpx2.TransportError
) -> Unavailable:
    return Unavailable(
        f"{http.unreachable(err).detail}; {received.bytes} of {content.bytes} bytes are here",
        hint="pull again: it resumes where it stopped",
    )


def _receive(http: Http, content: Content, received: _Received, progress: TransferProgress) -> None:
    headers = _range(received.bytes)
    with http.stream(content.path, headers=headers, read_timeout_s=_SILENCE_S) as response:
        if not continues(response, received.bytes):
            received.restart()
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        with partials.appending(received.path) as file, Durable(file) as kept:
            for chunk in answers.chunks(response):
                kept.write(chunk)
                received.count(chunk)
                progress(f"download {received.path.stem}", received.bytes, content.bytes)
                if received.bytes > content.bytes:
                    return  # too long: stop reading; the check that follows starts over
            kept.store()


def _range(have: int) -> Mapping[str, str]:
    # Without If-Range: where the bytes really are, in a bucket say, they have another ETag. The digest tells.
    return {"Range": f"bytes={have}-"} if have else {}


def continues(response: httpx2.Response, have: int) -> bool:
    """Whether the response continues where we stopped; otherwise it is the whole file."""
    starts_at = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status_code == HTTPStatus.PARTIAL_CONTENT and starts_at == str(have)
