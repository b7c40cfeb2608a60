"""Plugin libraries of TensorRT: native code that builds run, so only what the operators have signed.

A library is allow-listed by its digest with a signature by one of the settings' keys. A key that is
taken out of the settings takes its libraries with it: every submission and every worker looks again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm import signatures
from farm.db import now
from farm.errors import InvalidRequest, NotFound, PluginRefused
from farm.models import Artifact, Plugin
from farm.schemas import PluginRequest, PluginView
from farm.storage import LocalStore


def signer(content: bytes, signature: str, keys: Collection[str]) -> str:
    """The key that has signed a library.

    Raises:
        PluginRefused: none of them has.
        InvalidRequest: the signature isn't one.
    """
    if not keys:
        raise PluginRefused(
            "this farm takes no plugins: no key is trusted to sign them",
            hint="an operator sets FARM_PLUGIN_KEYS on the API and on the workers",
        )
    try:
        key = signatures.signer(content, signature, keys)
    except ValueError as err:
        raise InvalidRequest(
            f"the signature can't be read: {err}",
            hint="give an Ed25519 signature, 64 bytes in base64",
        ) from err
    if key is None:
        raise PluginRefused("the library isn't signed by any of the farm's keys")
    return key


def add(
    session: Session, store: LocalStore, request: PluginRequest, keys: Sequence[str]
) -> PluginView:
    """Allow-list a library that is in the store. Repeating it renews its name and signature.

    Raises:
        NotFound: it hasn't been uploaded.
        PluginRefused, InvalidRequest
    """
    if session.get(Artifact, request.digest) is None:
        raise NotFound(f"there is no blob {request.digest}", hint="upload it: POST /v1/blobs")
    library = store.path(request.digest).read_bytes()
    if not library.startswith(b"\x7fELF"):
        raise PluginRefused("this isn't a shared library", hint="hand in the .so of the plugins")
    row = Plugin(
        digest=request.digest,
        name=request.name,
        signature=request.signature,
        key=signer(library, request.signature, keys),
        created_at=now(),
    )
    session.merge(row)
    session.flush()
    [view] = [one for one in views(session) if one.digest == request.digest]
    return view


def require(session: Session, digests: Collection[str], keys: Collection[str]) -> None:
    """Refuse a build with a library that isn't allow-listed, or whose key isn't trusted any more.

    Raises:
        PluginRefused: naming it.
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
    """All that are allow-listed, by name."""
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
