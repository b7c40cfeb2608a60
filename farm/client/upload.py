"""Uploads: hashed first, and sent only if the farm doesn't have them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path

from pydantic import TypeAdapter

from farm.client.http import Http
from farm.client.progress import TransferProgress
from farm.errors import (
    ChunkOutOfOrder,
    DigestMismatch,
    FarmError,
    InvalidRequest,
    NotFound,
    TooSlow,
    Unavailable,
    UploadUnknown,
)
from farm.formats.packs import Pack
from farm.formats.shards import Shards
from farm.schemas.storage import Blob, BlobUpload
from farm.store.streams import skipping

_CHUNK_BYTES = 1 << 20
_UPLOADS = "/v1/uploads"
#: Smaller ones are sent again as quickly.
_LARGE_BYTES = 8 << 20
_TRIES = 3

Content = Path | Pack | Shards


def require_file(path: Path) -> None:
    """Raise InvalidRequest unless the file exists and isn't empty."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise InvalidRequest(f"{path} {what}", hint="check the path")
    if path.stat().st_size == 0:
        raise InvalidRequest(f"{path} is empty", hint="check the path, or write the file again")


def digest_of(content: Content, *, what: str = "", progress: TransferProgress | None = None) -> str:
    """``sha256:…`` of a file or a pack, read once in small chunks."""
    found = hashlib.sha256()
    for chunk in _chunks(content, f"{what or 'hash'} {content.name}", progress):
        found.update(chunk)
    return f"sha256:{found.hexdigest()}"


def upload(
    http: Http, content: Content, digest: str, *, progress: TransferProgress | None = None
) -> None:
    """Upload a file or a pack unless the farm has it; a large one goes on where a connection was lost.

    Raises:
        DigestMismatch: the file changed after it was hashed.
        FarmError
    """
    if not has(http, digest):
        send(http, content, digest, progress=progress)


def send(
    http: Http, content: Content, digest: str, *, progress: TransferProgress | None = None
) -> None:
    """Upload a file or a pack even if the farm has it: a damaged one is repaired.

    Raises:
        DigestMismatch: the file changed after it was hashed.
        FarmError
    """
    if size_of(content) >= _LARGE_BYTES and _in_parts(http, content, digest, progress):
        return
    raw = bytes.fromhex(digest.removeprefix("sha256:"))
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size_of(content)),
        "Repr-Digest": f"sha-256=:{base64.b64encode(raw).decode()}:",
    }
    # Repeatable: blobs are named by their content.
    stored = http.read(
        Blob,
        "POST",
        "/v1/blobs",
        headers=headers,
        body=lambda: _chunks(content, f"upload {content.name}", progress),
    )
    if stored.digest != digest:
        raise DigestMismatch(
            f"the farm received {content.name} as {stored.digest}, not as {digest}"
        )


def _in_parts(http: Http, content: Content, digest: str, progress: TransferProgress | None) -> bool:
    """Upload in as many requests as it takes; False if this farm, an earlier one, knows no such uploads."""
    for attempt in range(_TRIES):
        try:
            begun = http.read(BlobUpload, "POST", _UPLOADS)
        except FarmError as err:
            if err.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
                return False
            raise
        path = f"{_UPLOADS}/{begun.id}"
        _send(http, content, path, progress)
        try:
            http.request("PUT", path, params={"digest": digest})
        except UploadUnknown:
            if not has(http, digest):  # the answer to a first PUT may have been lost
                raise
        except DigestMismatch as err:
            # The file has changed, or bytes on their way did.
            if attempt + 1 == _TRIES or digest_of(content) != digest:
                raise DigestMismatch(
                    f"the farm received {content.name} otherwise than as {digest}"
                ) from err
            continue
        return True
    raise AssertionError("the last try returns or raises")


def _send(http: Http, content: Content, path: str, progress: TransferProgress | None) -> None:
    """Add all of it to an upload, from where that ends.

    Raises:
        Unavailable: several connections in a row were lost without progress.
    """
    total, have = size_of(content), 0
    for attempt in http.backoff.in_a_row(http.backoff.attempts):
        if have == total:
            return
        with attempt:
            before = have
            try:
                chunks = partial(_chunks, content, f"upload {content.name}", progress, start=before)
                headers = {
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(total - before),
                    "Content-Range": f"bytes {before}-{total - 1}/{total}",
                }
                sent = http.request("PATCH", path, repeatable=False, body=chunks, headers=headers)
                have = http.understand(TypeAdapter(BlobUpload), sent.content, "an upload").bytes
            except (Unavailable, ChunkOutOfOrder, TooSlow):
                have = http.read(BlobUpload, "GET", path).bytes
                attempt.got_on = have > before
                raise Unavailable(
                    f"the upload of {content.name} was cut; {have} of {total} bytes are there"
                ) from None
            if have != total:
                raise Unavailable(f"{have} of {total} bytes of {content.name} arrived")


def has(http: Http, digest: str) -> bool:
    """Whether the farm holds these bytes."""
    try:
        http.request("HEAD", f"/v1/blobs/{digest}")
    except NotFound:
        return False
    return True


def size_of(content: Content) -> int:
    """The bytes of a file or a pack."""
    return content.stat().st_size if isinstance(content, Path) else content.total_bytes


def _chunks(
    content: Content, what: str, progress: TransferProgress | None, *, start: int = 0
) -> Iterator[bytes]:
    done, total = start, size_of(content)
    for chunk in _read_from(content, start):
        yield chunk
        done += len(chunk)
        if progress is not None:
            progress(what, done, total)


def _read_from(content: Content, start: int) -> Iterator[bytes]:
    if not isinstance(content, Path):
        yield from skipping(content.chunks(), start)
        return
    with content.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
