"""TensorRT plugin libraries: native code that builds run, so the operators must have signed them.

A library is allow-listed by its digest, with a signature by one of the settings' keys. Removing a key from
the settings disables its libraries: every submission and every worker checks again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.base import now
from farm.database.tables import Artifact, Plugin
from farm.errors import InvalidRequest, NotFound, PluginRefused
from farm.schemas.plugins import PluginRequest, PluginView
from farm.signing import ed25519
from farm.store import held

_ELF = b"\x7fELF"


def signer(content: ed25519.Content, signature: str, keys: Collection[str]) -> str:
    """The key that signed a library.

    Raises:
        PluginRefused: none of them did.
        InvalidRequest: the signature isn't one.
    """
    if not keys:
        raise PluginRefused(
            "this farm accepts no plugins: it has no trusted signing key",
            hint="have an operator set FARM_PLUGIN_KEYS on the API and the workers",
        )
    try:
        key = ed25519.signer(content, signature, keys)
    except ValueError as err:
        raise InvalidRequest(
            f"the signature can't be read: {err}",
            hint="pass an Ed25519 signature, 64 bytes in base64",
        ) from err
    if key is None:
        raise PluginRefused("the library isn't signed by any of the farm's keys")
    return key


def find_uploaded(session: Session, digest: str) -> None:
    """Raise NotFound unless a blob has been uploaded."""
    if session.get(Artifact, digest) is None:
        raise NotFound(f"there is no blob {digest}", hint="upload it: POST /v1/blobs")


def verified(library: Path, signature: str, keys: Collection[str], *, most_bytes: int) -> str:
    """The key that signed a library; reads no more of the file than needed.

    Raises:
        PluginRefused: none of them did, or it isn't a library.
        InvalidRequest: the signature isn't one.
    """
    with library.open("rb") as file:
        if file.read(len(_ELF)) != _ELF:
            raise PluginRefused("this isn't a shared library", hint="pass the plugins' .so file")
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise PluginRefused(
                f"the library has {size} bytes; the limit is {most_bytes}",
                hint="raise FARM_MAX_PLUGIN_BYTES on the API",
            )
        # Mapped rather than read into memory: the signature covers the whole file.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return signer(content, signature, keys)


def add(session: Session, request: PluginRequest, key: str) -> PluginView:
    """Allow-list a library. Repeating it renews its name and signature.

    Parameters:
        key: the key that signed it.

    Raises:
        NotFound: it hasn't been uploaded.
    """
    find_uploaded(session, request.digest)
    held.settle(session, [request.digest])
    row = {
        "digest": request.digest,
        "name": request.name,
        "signature": request.signature,
        "key": key,
        "created_at": now(),
    }
    upserts.put(session, Plugin, row)
    [view] = [one for one in views(session) if one.digest == request.digest]
    return view


def require(session: Session, digests: Collection[str], keys: Collection[str]) -> None:
    """Refuse a build with a library that isn't allow-listed, or whose key is no longer trusted.

    Raises:
        PluginRefused: names it.
    """
    if not digests:
        return
    rows = session.execute(select(Plugin.digest, Plugin.key).where(Plugin.digest.in_(digests)))
    trusted = {digest for digest, key in rows if key in keys}
    for digest in digests:
        if digest not in trusted:
            raise PluginRefused(f"the plugin {digest} isn't allow-listed")


def find(session: Session, digest: str) -> Plugin | None:
    return session.get(Plugin, digest)


def views(session: Session) -> list[PluginView]:
    """All allow-listed libraries, by name."""
    rows = session.execute(
        select(Plugin, Artifact.bytes)
        .join(Artifact, Artifact.digest == Plugin.digest)
        .order_by(Plugin.name, Plugin.digest)
    )
    return [
        PluginView(
            digest=row.digest,
            name=row.name,
            bytes=size,
            key=row.key,
            created_at=row.created_at,
        )
        for row, size in rows
    ]
