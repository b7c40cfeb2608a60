"""Public keys that verify the farm's signatures: ECDSA on P-256, P-384 or P-521.

Those are the curves of OpenSSF Model Signing v1.0. A key's id is the sha256 of its DER-encoded
SubjectPublicKeyInfo, so an id names one key, whatever file it came in.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from farm.errors import InvalidRequest

CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_PEM_BYTES = 4096
_FINGERPRINT = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A key that signatures are verified with."""

    id: str  #: sha256 of its SubjectPublicKeyInfo, in hex
    pem: str

    @property
    def fingerprint(self) -> str:
        """Its id as people compare it."""
        return f"sha256:{self.id}"

    @property
    def hint(self) -> str:
        """How a Model Signing bundle names its key: the sha256 of the PEM."""
        return hashlib.sha256(self.pem.encode()).hexdigest()

    def has_signed(self, signature: bytes, content: bytes) -> bool:
        from securesystemslib.exceptions import UnverifiedSignatureError
        from securesystemslib.signer import Signature, SSlibKey

        key = SSlibKey.from_crypto(_loaded(self.pem.encode()), keyid=self.id)
        try:
            key.verify_signature(Signature(self.id, signature.hex()), content)
        except UnverifiedSignatureError:
            return False
        return True


def read(pem: bytes) -> PublicKey:
    """The key in a PEM file.

    Raises:
        InvalidRequest
    """
    return of_crypto(_loaded(pem))


def of_crypto(key: object) -> PublicKey:
    """A key of ``cryptography``.

    Raises:
        InvalidRequest: it isn't one of these curves.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise InvalidRequest(
            "this isn't an ECDSA key on P-256, P-384 or P-521",
            hint="make one: openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt",
        )
    info = PublicFormat.SubjectPublicKeyInfo
    return PublicKey(
        id=hashlib.sha256(key.public_bytes(Encoding.DER, info)).hexdigest(),
        pem=key.public_bytes(Encoding.PEM, info).decode(),
    )


def fingerprint_in(text: str) -> str | None:
    """The id in a fingerprint, ``sha256:…``; None if it isn't one."""
    found = _FINGERPRINT.fullmatch(text.strip())
    return found[1] if found else None


def _loaded(pem: bytes) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in pem:
        raise InvalidRequest(
            "this is a private key; a public one is needed",
            hint="openssl pkey -in KEY.pem -pubout; keep the private one on the farm",
        )
    try:
        if len(pem) > _MAX_PEM_BYTES:
            raise ValueError("too long")
        return load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise InvalidRequest(
            "this isn't a public key in PEM",
            hint="`farm signing show --pem` prints the farm's",
        ) from err
