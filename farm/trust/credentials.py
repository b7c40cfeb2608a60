"""Keys on their holders' side: their format, and where one is stored on the holder's machine.

A key is ``farm_ID_SECRET``: an id that lists may show, and 256 random bits. The prefix is for people and
for secret scanners. What a browser gets for a key is ``login_ID_SECRET``; what a machine joins by is
``join_ID_SECRET``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "FARM_KEY"
TOKEN_VARIABLE = "FARM_TOKEN"  #: of an OpenID Connect issuer  # noqa: S105 its name
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_CHARS = 10
_SECRET_BYTES = 32
_KEY = re.compile(r"farm_([0-9a-hjkmnp-tv-z]{10})_[0-9a-f]{64}")
_LOGIN = re.compile(r"login_([0-9a-hjkmnp-tv-z]{10})_[0-9a-f]{64}")
_JOIN = re.compile(r"join_([0-9a-hjkmnp-tv-z]{10})_[0-9a-f]{64}")


def new() -> tuple[str, str]:
    """A new key and its id."""
    return _new("farm")


def new_login() -> tuple[str, str]:
    """A new login and its id."""
    return _new("login")


def new_join_token() -> tuple[str, str]:
    """A new join token and its id."""
    return _new("join")


def _new(prefix: str) -> tuple[str, str]:
    made = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARS))
    return f"{prefix}_{made}_{secrets.token_hex(_SECRET_BYTES)}", made


def id_of(key: str) -> str | None:
    """The id in a key; None if it can't be one."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def login_id_of(login: str) -> str | None:
    """The id in a login; None if it can't be one."""
    found = _LOGIN.fullmatch(login)
    return found[1] if found else None


def join_id_of(token: str) -> str | None:
    """The id in a join token; None if it can't be one."""
    found = _JOIN.fullmatch(token)
    return found[1] if found else None


def digest_of(key: str) -> str:
    """The stored digest of a key. No salt or stretching: 256 random bits can't be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


def password(basic: str) -> str:
    """The password that ``Basic`` authentication sends, whatever the user: a key, if the client has one."""
    try:
        return base64.b64decode(basic, validate=True).decode().partition(":")[2].strip()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def home_file(home: Path) -> Path:
    """The file in which an embedded farm keeps the key of whoever runs it."""
    return home / "key"


def read(file: Path) -> str | None:
    """The key in a file, or None if there is none that this user may read."""
    with suppress(OSError, UnicodeDecodeError):
        key = file.read_text().strip()
        return key if id_of(key) else None
    return None


def is_private(file: Path) -> bool:
    """Whether nobody else can have read the file."""
    found = file.stat()
    return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def write(file: Path, key: str) -> None:
    """Store a key, readable only by this user."""
    # Created with mode 0600.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "w") as fresh:
            fresh.write(f"{key}\n")
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
