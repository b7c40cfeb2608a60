"""What a farm has signed of an engine: whether it is about this engine, and what its manifest says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from farm.client.http import Http
from farm.client.plain import plain_value
from farm.errors import NotFound, SignatureRefused
from farm.schemas.engines import EngineView, Manifest
from farm.schemas.signing import EnginePredicate, SignatureFormat
from farm.signing import statements
from farm.signing.bundles import Opened
from farm.signing.keys import PublicKey
from farm.specs import faults

#: What an engine is asked for by, and what a wrong one would differ in.
_IDENTITY = (
    "id digest bytes model version runtime runtime_version gpu precision prune source_digest"
).split()


@dataclass(frozen=True, kw_only=True)
class SignedEngine:
    """A verified statement of an engine."""

    engine: EngineView
    predicate: EnginePredicate
    files: Mapping[str, str]  #: the engine's file and its reports: name → digest
    key: PublicKey  #: that signed it


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """An engine's bundles, as they are kept beside it."""

    engine: bytes
    model: bytes
    key: PublicKey


def signed_engine(opened: Opened) -> SignedEngine:
    """The engine that a verified statement is of.

    Raises:
        SignatureRefused: it is of something else.
    """
    statement = opened.statement
    if statement.type != statements.ENGINE:
        raise SignatureRefused(f"the statement isn't of an engine: it is a {statement.type}")
    try:
        predicate = EnginePredicate.model_validate(plain_value(dict(statement.predicate)))
        engine = EngineView.model_validate(predicate.engine)
    except ValidationError as err:
        raise SignatureRefused(
            f"this client doesn't understand the statement: {faults.told(err.errors()[0])}",
            hint="is this client as new as the farm?",
        ) from err
    files = statement.digests()
    if files.get(engine.file_name()) != engine.digest:
        raise SignatureRefused("the statement's subjects and its engine contradict each other")
    return SignedEngine(engine=engine, predicate=predicate, files=files, key=opened.key)


def fetch(http: Http, engine: EngineView, manifest: Manifest) -> Signatures | None:
    """An engine's signatures, verified, and the manifest with them; None if the farm doesn't sign.

    Raises:
        SignatureRefused: they, or the manifest, aren't what this farm signed of this engine.
        SigningKeyUnknown: nobody has said which key is the farm's.
    """
    of_engine = _bundle(http, engine, SignatureFormat.ENGINE)
    if of_engine is None:
        if http.trust.expects_signatures():
            raise SignatureRefused(
                f"engine {engine.id} isn't signed, and the signing key of {http.url} is known here",
                hint="somebody may be pretending to be this farm. If it was set up anew without a key: "
                "farm signing forget",
            )
        return None
    signed = signed_engine(http.trust.opened(of_engine))
    _check_engine(signed, engine)
    check_manifest(signed, manifest)
    of_file = _bundle(http, engine, SignatureFormat.MODEL_SIGNING)
    if of_file is None:
        raise SignatureRefused(f"engine {engine.id} has one of its two signatures alone")
    named = statements.file_in(http.trust.opened(of_file).statement)
    if named != engine.digest:
        raise SignatureRefused(f"the signature of engine {engine.id} is of the file {named}")
    return Signatures(engine=of_engine, model=of_file, key=signed.key)


def _bundle(http: Http, engine: EngineView, format: SignatureFormat) -> bytes | None:
    path = f"/v1/engines/{engine.id}/signature"
    try:
        return http.request("GET", path, params={"format": format.value}).content
    except NotFound:  # unsigned, or an earlier farm: it has this engine
        return None


def _check_engine(signed: SignedEngine, engine: EngineView) -> None:
    differs = [name for name in _IDENTITY if getattr(signed.engine, name) != getattr(engine, name)]
    if differs:
        raise SignatureRefused(
            f"the signature is of another engine than {engine.id}: {_told(differs, signed.engine, engine)}"
        )


def check_manifest(signed: SignedEngine, manifest: Manifest) -> None:
    """Whether the manifest says what was signed, whatever it says beside that."""
    said, engine = manifest.engine, signed.engine
    differs = [
        name
        for name in sorted(engine.model_fields_set)
        if getattr(engine, name) != getattr(said, name)
    ]
    pairs: list[tuple[str, Any, Any]] = [
        ("provenance", signed.predicate.provenance, manifest.provenance),
        ("load", signed.predicate.load, manifest.load),
        ("files", dict(signed.files), manifest.files),
    ]
    differs += [name for name, expected, found in pairs if expected != found]
    if differs:
        raise SignatureRefused(
            f"the manifest of engine {said.id} isn't the signed one: it differs in {', '.join(differs)}"
        )


def _told(names: list[str], signed: EngineView, asked: EngineView) -> str:
    return "; ".join(
        f"its {name} is {getattr(signed, name)}, not {getattr(asked, name)}" for name in names
    )
