"""What signs: a private key in a file, or a command that asks a key service."""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from farm.errors import InvalidRequest, SigningFailed
from farm.signing import keys
from farm.signing.keys import PublicKey

_COMMAND_S = 60.0
_MAX_SIGNATURE_BYTES = 1024
_MAX_KEY_BYTES = 16 * 1024


class Signer(Protocol):
    """A private key, wherever it is."""

    @property
    def key(self) -> PublicKey: ...

    def sign(self, content: bytes) -> bytes:
        """A DER-encoded ECDSA signature.

        Raises:
            SigningFailed
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FileSigner:
    """A private key in a PKCS#8 PEM file."""

    key: PublicKey
    _private: Any

    @classmethod
    def read(cls, path: Path, password: bytes | None = None) -> FileSigner:
        """
        Raises:
            SigningFailed: it can't be read or decrypted, or everybody on this machine may read it.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            with path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
                    raise SigningFailed(
                        f"other users of this machine may read the signing key {path}",
                        hint=f"chmod 600 {path}; if they may have, make a new one: "
                        "farm signing rotate --compromised",
                    )
                private = load_pem_private_key(file.read(_MAX_KEY_BYTES), password)
            return cls(key=keys.of_crypto(private.public_key()), _private=private)
        except OSError as err:
            raise SigningFailed(
                f"can't read the signing key {path}: {err.strerror}",
                hint="correct FARM_SIGNING_KEY, or make it as the API's user: farm signing rotate",
            ) from err
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidRequest) as err:
            raise SigningFailed(f"can't use the signing key {path}: {err}", hint=_HINT) from err

    def sign(self, content: bytes) -> bytes:
        from securesystemslib.signer import CryptoSigner

        return bytes.fromhex(CryptoSigner(self._private).sign(content).signature)


@dataclass(frozen=True, kw_only=True)
class CommandSigner:
    """A command that gets the content on stdin and prints its signature, in DER or in base64 of that."""

    key: PublicKey
    command: str

    def sign(self, content: bytes) -> bytes:
        try:
            done = subprocess.run(
                shlex.split(self.command), input=content, capture_output=True, timeout=_COMMAND_S
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as err:
            raise SigningFailed(f"FARM_SIGNING_COMMAND didn't run: {err}") from err
        if done.returncode != 0:
            end = done.stderr.decode(errors="replace").strip()[-400:]
            raise SigningFailed(f"FARM_SIGNING_COMMAND exited with {done.returncode}: {end}")
        for signature in _signatures_in(done.stdout):
            if self.key.has_signed(signature, content):
                return signature
        raise SigningFailed(
            "FARM_SIGNING_COMMAND printed no signature by FARM_SIGNING_PUBLIC_KEY",
            hint="it gets the bytes to sign on stdin, hashes them, and prints an ECDSA signature in DER, "
            "or in base64 of that",
        )


_HINT = (
    "it has to be PKCS#8 in PEM, on P-256, P-384 or P-521; if it is encrypted, FARM_SIGNING_PASSWORD_FILE "
    "names the file with its password"
)


def _signatures_in(printed: bytes) -> list[bytes]:
    if len(printed) > 2 * _MAX_SIGNATURE_BYTES:
        return []
    try:
        return [printed, base64.b64decode(b"".join(printed.split()), validate=True)]
    except binascii.Error:
        return [printed]


def make(path: Path, password: bytes | None = None) -> FileSigner:
    """Make a P-256 key, in a file that only this user can read; replaces what is there at once.

    Raises:
        SigningFailed: it can't be written.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    locked = BestAvailableEncryption(password) if password else NoEncryption()
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Created with mode 0600.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as fresh:
                fresh.write(pem)
                fresh.flush()
                os.fsync(fresh.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as err:
        raise SigningFailed(f"can't write the signing key {path}: {err.strerror}") from err
    return FileSigner(key=keys.of_crypto(private.public_key()), _private=private)
