"""Sigstore bundles: an in-toto statement in a DSSE envelope, with one signature by a known key.

What is read comes from anywhere, so it has one reading alone: JSON without repeated names, base64 in its
only canonical form, one signature. Nothing of a statement is looked at before its signature is verified.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from farm.errors import SignatureRefused
from farm.signing.keys import PublicKey
from farm.signing.signers import Signer

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
#: Recipes with calibration parameters are what is large in a statement: some 100 kB.
MAX_BUNDLE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file that a statement is about."""

    name: str
    digest: str  #: ``sha256:…``


@dataclass(frozen=True, kw_only=True)
class Statement:
    """An in-toto statement: what is said of these files."""

    type: str  #: its predicateType
    subjects: tuple[Subject, ...]
    predicate: Mapping[str, Any]

    def digests(self) -> dict[str, str]:
        """The digest of each subject, by its name."""
        return {one.name: one.digest for one in self.subjects}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A statement whose signature was verified."""

    statement: Statement
    key: PublicKey  #: that signed it


def sealed(statement: Statement, signer: Signer) -> bytes:
    """A bundle of a statement, signed.

    Raises:
        SigningFailed
    """
    payload = _written(statement)
    key, signature = signer.key, signer.sign(pae(payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": key.id}],
    }
    material = {"publicKey": {"hint": key.hint}, "tlogEntries": []}
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": material,
        "dsseEnvelope": envelope,
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def opened(bundle: bytes, known: Iterable[PublicKey]) -> Opened:
    """The statement in a bundle that one of the known keys has signed.

    Raises:
        SignatureRefused: none has, or it isn't such a bundle.
    """
    read = _read(bundle)
    pre = pae(read.payload)
    for key in known:
        if read.is_by(key) and key.has_signed(read.signature, pre):
            return Opened(statement=_statement(read.payload), key=key)
    raise SignatureRefused(
        f"the signature isn't by a known key: it names {read.named or 'none'}",
        hint="don't use this engine unless you know why; `farm signing show` has the farm's keys",
    )


def signer_named(bundle: bytes) -> str:
    """The key id that a bundle names, unverified; empty if it names none.

    Raises:
        SignatureRefused: it isn't a bundle.
    """
    return _read(bundle).key_id


def unverified(bundle: bytes) -> Statement:
    """The statement in a bundle, for whoever stored it: nothing is verified.

    Raises:
        SignatureRefused: it isn't a bundle.
    """
    return _statement(_read(bundle).payload)


def pae(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    from securesystemslib.dsse import Envelope

    encoded: bytes = Envelope(payload, PAYLOAD_TYPE, {}).pae()
    return encoded


@dataclass(frozen=True, kw_only=True)
class _Read:
    payload: bytes
    signature: bytes
    key_id: str
    hint: str

    @property
    def named(self) -> str:
        return f"sha256:{self.key_id}" if self.key_id else self.hint

    def is_by(self, key: PublicKey) -> bool:
        """Whether it may be by this key: nothing in it names another."""
        return self.key_id in ("", key.id) and self.hint in ("", key.hint)


def _read(bundle: bytes) -> _Read:
    if len(bundle) > MAX_BUNDLE_BYTES:
        _refuse(f"it has {len(bundle)} bytes; at most {MAX_BUNDLE_BYTES} are accepted")
    found = _json(bundle)
    if found.get("mediaType") != MEDIA_TYPE:
        _refuse(f"its mediaType isn't {MEDIA_TYPE}")
    envelope = _object(found, "dsseEnvelope")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        _refuse(f"its payloadType isn't {PAYLOAD_TYPE}")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        _refuse("it has to have exactly one signature")
    [signature] = signatures
    if not isinstance(signature, dict):
        _refuse("its signature isn't an object")
    public_key = _object(_object(found, "verificationMaterial"), "publicKey")
    return _Read(
        payload=_base64(envelope, "payload"),
        signature=_base64(signature, "sig"),
        key_id=_text(signature, "keyid"),
        hint=_text(public_key, "hint"),
    )


def _statement(payload: bytes) -> Statement:
    found = _json(payload)
    if found.get("_type") != STATEMENT_TYPE:
        _refuse(f"what it signs isn't an in-toto statement ({STATEMENT_TYPE})")
    subjects = found.get("subject")
    if not isinstance(subjects, list) or not subjects:
        _refuse("its statement has no subject")
    read = tuple(_subject(one) for one in subjects)
    if len({one.name for one in read}) != len(read):
        _refuse("two of its statement's subjects have the same name")
    return Statement(
        type=_text(found, "predicateType"), subjects=read, predicate=_object(found, "predicate")
    )


def _subject(found: Any) -> Subject:
    if not isinstance(found, dict):
        _refuse("a subject of its statement isn't an object")
    digest = _text(_object(found, "digest"), "sha256")
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        _refuse("a subject of its statement has no sha256")
    return Subject(name=_text(found, "name"), digest=f"sha256:{digest}")


def _written(statement: Statement) -> bytes:
    subjects = [
        {"name": one.name, "digest": {"sha256": one.digest.removeprefix("sha256:")}}
        for one in statement.subjects
    ]
    document = {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": statement.type,
        "predicate": statement.predicate,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise _refused(f"it isn't plain JSON: {err}") from err
    if not isinstance(found, dict):
        _refuse("it isn't a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} isn't a number in JSON")


def _object(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    if not isinstance(value, dict):
        _refuse(f"it has no {name}")
    return value


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name) or ""
    if not isinstance(value, str):
        _refuse(f"its {name} isn't a string")
    return value


def _base64(found: Mapping[str, Any], name: str) -> bytes:
    """Base64 in its only canonical form, so that one signature has one spelling."""
    text = _text(found, name)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise _refused(f"its {name} isn't base64") from err
    if not content or base64.b64encode(content).decode() != text:
        _refuse(f"its {name} isn't canonical base64")
    return content


def _refused(why: str) -> SignatureRefused:
    return SignatureRefused(f"the signature can't be accepted: {why}")


def _refuse(why: str) -> NoReturn:
    raise _refused(why)
