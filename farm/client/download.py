"""Downloads of engines: resumed after a lost connection, verified before they get their name.

While an engine arrives it is ``NAME.partial``. It becomes ``NAME`` only when its sha256 is the one
in the registry, so what has the final name is whole; the manifest lies beside it as ``NAME.json``.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx
from pydantic import TypeAdapter

from farm.client import answers
from farm.client.http import Http
from farm.client.progress import Progress, silent
from farm.client.upload import digest_of
from farm.errors import Conflict, DigestMismatch, FarmError, Unavailable
from farm.formats.rtx_header import HEADER_BYTES, parse_header
from farm.schemas.engines import EngineView, Manifest
from farm.specs.gpus import compute_capability
from farm.specs.runtime import Runtime

_SILENCE_S = 60.0
#: Of files: what a model may be called, and no folder, no hidden file, nothing that a shell expands.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")
_SUFFIXES = {Runtime.ONNXRUNTIME: "onnx", Runtime.TORCHSCRIPT: "pt"}
_CONTRADICTION_HINT = (
    "don't use this engine, and tell whoever runs the farm: its records contradict each other"
)


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """An engine on this machine."""

    path: Path
    engine: EngineView
    why: str  #: why it was the match
    fresh: bool  #: False when the very bytes were here already


def file_name(engine: EngineView, *, with_runtime: bool = False) -> str:
    """``digits-v1-int8-sm_89.engine``, or ``.onnx`` for ONNX Runtime; ``…-pruned-2-4.engine``."""
    suffix = _SUFFIXES.get(engine.runtime, "engine")
    runtime = f"-{engine.runtime}" if with_runtime else ""
    # Never the name of the unpruned one, which may lie in the same folder.
    pruned = f"-pruned-{engine.prune.replace(':', '-')}" if engine.prune else ""
    name = f"{engine.model}-v{engine.version}-{engine.precision}-{engine.gpu}"
    return _checked(f"{name}{runtime}{pruned}.{suffix}")


def _checked(name: str) -> str:
    """A name that stays in its folder, whoever runs the farm.

    Raises:
        DigestMismatch
    """
    if not _NAME.fullmatch(name):
        raise DigestMismatch(
            f"the farm gives an engine's file the name {name!r}, which may lead elsewhere; nothing was kept",
            hint="don't use this farm, and tell whoever runs it: its records may have been tampered with",
        )
    return name


def file_names(engines: Sequence[EngineView]) -> dict[str, str]:
    """Engine id → a name for its file, with the runtime where two would share one."""
    names = [file_name(engine) for engine in engines]
    return {
        engine.id: file_name(engine, with_runtime=names.count(name) > 1)
        for engine, name in zip(engines, names, strict=True)
    }


def download(
    http: Http,
    engine: EngineView,
    path: Path,
    *,
    progress: Progress | None = None,
) -> bool:
    """Bring an engine and its manifest to ``path``; return False when the bytes were there already.

    Raises:
        DigestMismatch: what arrived isn't what the registry names; it was deleted.
        Conflict: another pull is writing this file.
        Unavailable: the farm stayed out of reach; what arrived is kept as ``.partial`` to resume.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(http, engine)
    fresh = not _is_there(path, engine)
    if fresh:
        with _partial(path) as partial:
            _fetch(http, engine, partial, progress or silent)
            _verify_header(partial, engine)
            partial.replace(path)
    _write_manifest(path, manifest)
    return fresh


def _manifest(http: Http, engine: EngineView) -> bytes:
    """The manifest as the farm wrote it, byte for byte: a signature covers its bytes."""
    response = http.request("GET", f"/v1/engines/{engine.id}/manifest")
    stated = http.understand(TypeAdapter(Manifest), response.content, "the manifest").engine
    if (stated.id, stated.digest) != (engine.id, engine.digest):
        raise DigestMismatch(
            f"the registry gives engine {engine.id} as {engine.digest}, "
            f"its manifest as {stated.digest}",
            hint=_CONTRADICTION_HINT,
        )
    return response.content


def _is_there(path: Path, engine: EngineView) -> bool:
    # A link may lead anywhere: it is replaced, never followed.
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
            new.replace(path.with_name(f"{path.name}.json"))
        finally:
            new.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """The unfinished file's path, ours alone until the block ends.

    Raises:
        Conflict: another process is writing it.
    """
    import fcntl

    partial = path.with_name(f"{path.name}.partial")
    while True:
        if partial.is_symlink():
            partial.unlink()
        with _appending(partial) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f"another pull is writing {partial}", hint="wait for it, then pull again"
                ) from None
            # Another pull may have finished, and renamed the file that we opened, in between.
            if _is_same(file, partial):
                yield partial
                return


def _appending(partial: Path) -> BinaryIO:
    """The file, made if it isn't there. A link isn't followed: it is an OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(partial, flags, 0o666), "ab")


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _fetch(http: Http, engine: EngineView, partial: Path, progress: Progress) -> None:
    """Bring the whole engine into ``partial``, verified."""
    resumed = partial.stat().st_size > 0
    _complete(http, engine, partial, progress)
    found = digest_of(partial)
    if found != engine.digest and resumed:
        # The beginning was of another engine, or damaged: the whole, from the start.
        _truncate(partial)
        _complete(http, engine, partial, progress)
        found = digest_of(partial)
    if found != engine.digest:
        partial.unlink()
        raise DigestMismatch(
            f"engine {engine.id} arrived as {found}, the registry says {engine.digest}; "
            "nothing was kept",
            hint="pull it again; if this repeats, the farm's store or a proxy on the way is broken",
        )


def _complete(http: Http, engine: EngineView, partial: Path, progress: Progress) -> None:
    """Append to ``partial`` until it is as long as the engine.

    Raises:
        Unavailable: several connections in a row were lost without a byte of progress.
    """
    failures = 0
    while (have := partial.stat().st_size) != engine.bytes:
        if have > engine.bytes:
            _truncate(partial)
        error = _attempt(http, engine, partial, progress)
        grown = partial.stat().st_size > have
        failures = 0 if grown else failures + 1
        if failures >= http.backoff.attempts:
            raise error or Unavailable(f"engine {engine.id} ends early, again and again")
        if error is not None:
            http.pause(max(failures, 1))


def _attempt(http: Http, engine: EngineView, partial: Path, progress: Progress) -> FarmError | None:
    """Receive until the answer or the connection ends; return why when that was too early."""
    try:
        _receive(http, engine, partial, progress)
    except httpx.TransportError as err:
        lost = http.unreachable(err)
        return Unavailable(
            f"{lost.detail}; {partial.stat().st_size} of {engine.bytes} bytes are here",
            hint="pull again: it resumes where it stopped",
        )
    except Unavailable as err:
        return err
    return None


def _receive(http: Http, engine: EngineView, partial: Path, progress: Progress) -> None:
    have = partial.stat().st_size
    path = f"/v1/engines/{engine.id}/content"
    with http.stream(path, headers=_range(engine, have), read_timeout_s=_SILENCE_S) as response:
        if not _continues(response, have):
            _truncate(partial)
            have = 0
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        with _appending(partial) as file:
            for chunk in answers.chunks(response):
                file.write(chunk)
                have += len(chunk)
                progress(f"download {partial.stem}", have, engine.bytes)
                if have > engine.bytes:
                    return  # too long: no use in reading on; the next look begins anew
            file.flush()
            os.fsync(file.fileno())


def _range(engine: EngineView, have: int) -> Mapping[str, str]:
    return {"Range": f"bytes={have}-", "If-Range": f'"{engine.digest}"'} if have else {}


def _continues(response: httpx.Response, have: int) -> bool:
    """Whether the answer goes on where we stopped; otherwise it is the whole, from the start."""
    starts_at = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status_code == HTTPStatus.PARTIAL_CONTENT and starts_at == str(have)


def _truncate(partial: Path) -> None:
    with _appending(partial) as file:
        file.truncate(0)


def _verify_header(partial: Path, engine: EngineView) -> None:
    """Delete an RTX engine that says another thing of itself than the registry does.

    Raises:
        DigestMismatch
    """
    if engine.runtime is not Runtime.TENSORRT_RTX:
        return
    with partial.open("rb") as file:
        start = file.read(HEADER_BYTES)
    differs = _disagreement(start, engine)
    if differs:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise DigestMismatch(
            f"engine {engine.id}: {differs}; nothing was kept", hint=_CONTRADICTION_HINT
        )


def _disagreement(start: bytes, engine: EngineView) -> str | None:
    try:
        header = parse_header(start)
    except ValueError as err:
        return f"the registry calls it a TensorRT-RTX engine, but {err}"
    capability = compute_capability(engine.gpu)
    if capability not in header.compute_capabilities:
        made_for = ", ".join(header.compute_capabilities) or "no GPU"
        return f"the registry says it is for {capability}, its header for {made_for}"
    if header.bytes != engine.bytes:
        return f"the registry says it has {engine.bytes} bytes, its header {header.bytes}"
    if not _same_version(header.version, engine.runtime_version):
        return (
            f"the registry says TensorRT-RTX {engine.runtime_version}, its header {header.version}"
        )
    return None


def _same_version(header: str, registry: str) -> bool:
    """Compared as far as both are told: ``1.7.1.116`` and ``1.7.1`` are the same."""
    pairs = zip(header.split("."), registry.split("."), strict=False)
    return all(left == right for left, right in pairs)
