"""Ed25519 signatures of files, by the keys that the settings name."""

from __future__ import annotations

import base64
import binascii
import mmap
from collections.abc import Iterable

KEY_BYTES = 32
SIGNATURE_BYTES = 64
Content = bytes | mmap.mmap


def decoded(text: str, size: int) -> bytes:
    """Base64 of so many bytes.

    Raises:
        ValueError
    """
    try:
        found = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as err:
        raise ValueError(f"{text!r} isn't base64") from err
    if len(found) != size:
        raise ValueError(f"{text!r} has {len(found)} bytes instead of {size}")
    return found


def signer(content: Content, signature: str, keys: Iterable[str]) -> str | None:
    """The first of the keys that has signed this content, or None.

    Parameters:
        signature: and each key, in base64.

    Raises:
        ValueError: the signature isn't one.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = decoded(signature, SIGNATURE_BYTES)
    for key in keys:
        try:
            Ed25519PublicKey.from_public_bytes(decoded(key, KEY_BYTES)).verify(raw, content)
        except InvalidSignature:
            continue
        return key
    return None
