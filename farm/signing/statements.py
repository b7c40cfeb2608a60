"""The statements that the farm signs: of an engine, of its file alone, and of its own next key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from farm.errors import SignatureRefused
from farm.signing import keys
from farm.signing.bundles import Opened, Statement, Subject
from farm.signing.keys import PublicKey

#: What an engine is, from what it was made, and how: ``farm.schemas.signing.EnginePredicate``.
ENGINE = "https://engine-farm/engine/v1"
#: A key of the same farm, which the one that signs answers for.
KEY = "https://engine-farm/signing-key/v1"
#: OpenSSF Model Signing v1.0. Its URI is a name; no site answers there.
MODEL = "https://model_signing/signature/v1.0"
#: How Model Signing names a model that is a single file, whatever the file is called.
_THE_FILE = "."


def of_engine(name: str, digest: str, reports: Mapping[str, str], predicate: Any) -> Statement:
    """A statement of an engine's file and of its reports.

    Parameters:
        reports: their digests, by name.
    """
    subjects = [Subject(name=name, digest=digest)]
    subjects += [Subject(name=one, digest=reports[one]) for one in sorted(reports)]
    return Statement(type=ENGINE, subjects=tuple(subjects), predicate=predicate)


def of_file(name: str, digest: str) -> Statement:
    """What Model Signing states of a model that is a single file."""
    sha256 = digest.removeprefix("sha256:")
    predicate = {
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [],
        },
        "resources": [{"name": _THE_FILE, "algorithm": "sha256", "digest": sha256}],
    }
    return Statement(
        type=MODEL, subjects=(Subject(name=name, digest=_root(sha256)),), predicate=predicate
    )


def file_in(statement: Statement) -> str:
    """The digest of the file that a Model Signing statement is of.

    Raises:
        SignatureRefused: it isn't of a single file, by its sha256.
    """
    resources: Any = statement.predicate.get("resources")
    try:
        [resource] = resources
        named = (resource["name"], resource["algorithm"])
        sha256 = str(resource["digest"])
        [root] = statement.subjects
        is_whole = root.digest == _root(sha256)
    except (KeyError, TypeError, ValueError):
        named, is_whole, sha256 = ("", ""), False, ""
    if statement.type != MODEL or named != (_THE_FILE, "sha256") or not is_whole:
        raise SignatureRefused("this Model Signing statement isn't of a single file, by its sha256")
    return f"sha256:{sha256}"


def of_key(key: PublicKey) -> Statement:
    """That a key is the same farm's."""
    subject = Subject(name="signing-key", digest=key.fingerprint)
    return Statement(type=KEY, subjects=(subject,), predicate={"public_key": key.pem})


def key_in(opened: Opened) -> PublicKey:
    """The key that a statement answers for.

    Raises:
        SignatureRefused: it isn't about a key.
    """
    statement = opened.statement
    pem = statement.predicate.get("public_key")
    if statement.type != KEY or not isinstance(pem, str):
        raise SignatureRefused("this statement isn't about a signing key")
    key = keys.read(pem.encode())
    if statement.digests() != {"signing-key": key.fingerprint}:
        raise SignatureRefused("this statement names another key than it has")
    return key


def _root(sha256: str) -> str:
    return f"sha256:{hashlib.sha256(bytes.fromhex(sha256)).hexdigest()}"
