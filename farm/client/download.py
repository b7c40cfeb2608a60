"""Engine downloads: resumed after a lost connection, verified before they get their final name.

During the download the file is ``NAME.partial``. It becomes ``NAME`` only once its sha256 matches the
registry's, so a file with the final name is complete; the manifest lies beside it as ``NAME.json``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx2
from pydantic import TypeAdapter

from farm.client import answers, header
from farm.client import partial as partials
from farm.client.header import CONTRADICTION_HINT
from farm.client.http import Http
from farm.client.progress import TransferProgress, silent
from farm.client.upload import digest_of
from farm.errors import DigestMismatch, Unavailable
from farm.schemas.engines import EngineView, Manifest
from farm.specs.quoting import quoted

_SILENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """An engine on this machine."""

    path: Path
    engine: EngineView
    why: str  #: why it was chosen
    fresh: bool  #: False if the same bytes were already here
    load: str = (
        ""  #: Python source that loads it from ``path`` and runs it; empty from an earlier farm
    )

    @property
    def manifest(self) -> Path:
        """The file beside it."""
        return manifest_path(self.path)


def download(
    http: Http,
    engine: EngineView,
    path: Path,
    *,
    why: str,
    progress: TransferProgress | None = None,
) -> Pulled:
    """Download an engine and its manifest to ``path``, unless the same bytes are there.

    Raises:
        DigestMismatch: the received bytes don't match the registry; they were deleted.
        Conflict: another pull is writing this file.
        Unavailable: the farm stayed unreachable; the partial file is kept, to resume from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest, load = _manifest(http, engine)
    fresh = not _is_there(path, engine)
    if fresh:
        with partials.held(path) as partial:
            _fetch(http, engine, partial, progress or silent)
            header.verify(partial, engine)
            partial.replace(path)
    _write_manifest(path, manifest)
    return Pulled(path=path, engine=engine, why=why, fresh=fresh, load=_at(load, engine, path))


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _manifest(http: Http, engine: EngineView) -> tuple[bytes, str]:
    """The manifest as the farm wrote it, byte for byte: a signature covers its bytes. And what it says
    about loading the engine."""
    response = http.request("GET", f"/v1/engines/{engine.id}/manifest")
    manifest = http.understand(TypeAdapter(Manifest), response.content, "the manifest")
    stated = manifest.engine
    if (stated.id, stated.digest) != (engine.id, engine.digest):
        raise DigestMismatch(
            f"engine {engine.id} is {engine.digest} in the registry, "
            f"but {stated.digest} in its manifest",
            hint=CONTRADICTION_HINT,
        )
    return response.content, manifest.load


def _at(load: str, engine: EngineView, path: Path) -> str:
    """The manifest's text about loading, with this path for the file's usual name."""
    return load.replace(quoted(engine.file_name()), quoted(str(path)), 1)


def _is_there(path: Path, engine: EngineView) -> bool:
    # A symlink may lead anywhere: it is replaced, never followed.
    whole = not path.is_symlink() and path.is_file() and path.stat().st_size == engine.bytes
    return whole and digest_of(path) == engine.digest


def _write_manifest(path: Path, manifest: bytes) -> None:
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        new = Path(file.name)
        try:
            file.write(manifest)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            new.replace(manifest_path(path))
        finally:
            new.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _fetch(http: Http, engine: EngineView, partial: Path, progress: TransferProgress) -> None:
    """Download the whole engine to ``partial`` and verify it."""
    resumed = partial.stat().st_size > 0
    _complete(http, engine, partial, progress)
    found = digest_of(partial)
    if found != engine.digest and resumed:
        # The partial file was another engine's, or damaged: start over.
        partials.truncate(partial)
        _complete(http, engine, partial, progress)
        found = digest_of(partial)
    if found != engine.digest:
        partial.unlink()
        raise DigestMismatch(
            f"engine {engine.id} arrived as {found}, the registry says {engine.digest}; "
            "nothing was kept",
            hint="pull it again; if this repeats, the farm's store or a proxy on the way is broken",
        )


def _complete(http: Http, engine: EngineView, partial: Path, progress: TransferProgress) -> None:
    """Append to ``partial`` until it has the engine's length.

    Raises:
        Unavailable: several connections in a row were lost without a byte of progress.
    """
    for attempt in http.backoff.in_a_row(http.backoff.attempts):
        if (have := partial.stat().st_size) == engine.bytes:
            return
        if have > engine.bytes:
            partials.truncate(partial)
        with attempt:
            try:
                _receive(http, engine, partial, progress)
            except httpx2.TransportError as err:
                raise _lost(http, engine, partial, err) from err
            finally:
                attempt.got_on = partial.stat().st_size > have
            if partial.stat().st_size != engine.bytes:
                raise Unavailable(f"engine {engine.id} ends early, again and again")


def _lost(http: Http, engine: EngineView, partial: Path, err: httpx2.TransportError) -> Unavailable:
    return Unavailable(
        f"{http.unreachable(err).detail}; {partial.stat().st_size} of {engine.bytes} bytes are here",
        hint="pull again: it resumes where it stopped",
    )


def _receive(http: Http, engine: EngineView, partial: Path, progress: TransferProgress) -> None:
    have = partial.stat().st_size
    path = f"/v1/engines/{engine.id}/content"
    with http.stream(path, headers=_range(engine, have), read_timeout_s=_SILENCE_S) as response:
        if not _continues(response, have):
            partials.truncate(partial)
            have = 0
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        with partials.appending(partial) as file:
            for chunk in answers.chunks(response):
                file.write(chunk)
                have += len(chunk)
                progress(f"download {partial.stem}", have, engine.bytes)
                if have > engine.bytes:
                    return  # too long: stop reading; the check that follows starts over
            file.flush()
            os.fsync(file.fileno())


def _range(engine: EngineView, have: int) -> Mapping[str, str]:
    return {"Range": f"bytes={have}-", "If-Range": f'"{engine.digest}"'} if have else {}


def _continues(response: httpx2.Response, have: int) -> bool:
    """Whether the response continues where we stopped; otherwise it is the whole file."""
    starts_at = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status_code == HTTPStatus.PARTIAL_CONTENT and starts_at == str(have)
