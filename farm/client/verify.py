"""Whether a file on this machine is an engine of a farm, offline and without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from farm.client import signatures
from farm.client.download import bundle_path, manifest_path, model_signature_path
from farm.client.key import home_of_user
from farm.client.pins import Pins
from farm.client.plain import plain_json
from farm.client.progress import TransferProgress
from farm.client.signatures import SignedEngine
from farm.client.trust import given_key
from farm.client.upload import digest_of
from farm.errors import FarmError, InvalidRequest, SignatureRefused, SigningKeyUnknown
from farm.formats import kinds
from farm.schemas.engines import EngineView, Manifest
from farm.signing import bundles, keys, statements
from farm.signing.bundles import MAX_BUNDLE_BYTES, Opened
from farm.signing.keys import PublicKey


class Verdict(StrEnum):
    """What was found out about a file."""

    VERIFIED = "verified"  #: a known key has signed exactly this file
    REFUSED = "refused"  #: it, its manifest or its signature isn't what was signed
    UNSIGNED = "unsigned"  #: there is no signature of it here
    UNKNOWN_KEY = "unknown-key"  #: there is a signature, by a key that nobody has named


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A file, and what its signature says of it."""

    file: Path
    digest: str
    bytes: int
    kind: str  #: what it is by its own bytes, in words
    verdict: Verdict
    why: str
    bundle: Path | None = None
    key: str | None = None  #: id of the key that signed it
    farm: str | None = None  #: the address of the known farm that the key is of
    engine: EngineView | None = None  #: as it was signed
    materials: Mapping[str, str] | None = None  #: what it was made from: name → digest


def verify_file(
    file: str | Path,
    *,
    bundle: str | Path | None = None,
    key: str | Path | None = None,
    home: Path | None = None,
    progress: TransferProgress | None = None,
) -> Verified:
    """Whether a file is what a farm has signed.

    Parameters:
        bundle: its signature; by default the file ``NAME.sigstore`` beside it, else ``NAME.sig``.
        key: the public key's file, or its fingerprint; by default those of all farms known here.
        home: the folder with the farms known; by default ``FARM_HOME``.

    Raises:
        InvalidRequest: there is no such file.
    """
    path = Path(file)
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder", hint="name one of the files in it")
    if not path.is_file():
        raise InvalidRequest(f"there is no file {path}", hint="check the path")
    beside = _beside(path, bundle)
    told = Verified(
        file=path,
        digest=digest_of(path, progress=progress),
        bytes=path.stat().st_size,
        kind=kinds.in_words(path),
        bundle=beside,
        verdict=Verdict.UNSIGNED,
        why=f"there is neither {bundle_path(path).name} nor {model_signature_path(path).name} beside it",
    )
    if beside is None:
        return told
    try:
        return _with_signature(told, beside, key, Pins.of_user(home or home_of_user()))
    except SigningKeyUnknown as err:
        return replace(told, verdict=Verdict.UNKNOWN_KEY, why=err.detail)
    except SignatureRefused as err:
        return replace(told, verdict=Verdict.REFUSED, why=err.detail)


def _with_signature(told: Verified, bundle: Path, given: str | Path | None, pins: Pins) -> Verified:
    known = _known(bundle, given, pins)
    opened = bundles.opened(_read(bundle), known)
    signed = _checked(opened, told.digest, told.file)
    return replace(
        told,
        verdict=Verdict.VERIFIED,
        why=f"signed by {opened.key.fingerprint}",
        key=opened.key.id,
        farm=known[opened.key],
        engine=signed.engine if signed else None,
        materials=signed.predicate.materials if signed else None,
    )


def _beside(path: Path, bundle: str | Path | None) -> Path | None:
    if bundle is not None:
        if not Path(bundle).is_file():
            raise InvalidRequest(f"there is no file {bundle}", hint="check the path after --bundle")
        return Path(bundle)
    beside = (bundle_path(path), model_signature_path(path))
    return next((one for one in beside if one.is_file()), None)


def _read(path: Path, most_bytes: int = MAX_BUNDLE_BYTES) -> bytes:
    with path.open("rb") as file:
        return file.read(most_bytes + 1)  # one more, so that a larger one is noticed


def _known(bundle: Path, given: str | Path | None, pins: Pins) -> Mapping[PublicKey, str | None]:
    """The keys to verify with, each with the farm that it is known of.

    Raises:
        SigningKeyUnknown: the bundle names another, or there are none.
        SignatureRefused: the given one isn't there.
    """
    farms = {key: url for url, theirs in pins.all().items() for key in theirs}
    if given is not None:
        key = given_key(str(given), lambda: [*farms, *_own(bundle)])
        return {key: farms.get(key)}
    named = bundles.signer_named(_read(bundle))
    if not farms or (named and named not in {key.id for key in farms}):
        raise SigningKeyUnknown(f"it names the key sha256:{named}, which no farm known here has")
    return dict(farms)


def _own(bundle: Path) -> list[PublicKey]:
    """The key that a bundle itself has: only for whoever knows its fingerprint."""
    try:
        own = bundles.unverified(_read(bundle)).predicate["signing_key"]["public_key"]
        return [keys.read(str(own).encode())]
    except (KeyError, TypeError, FarmError):
        return []


def _checked(opened: Opened, digest: str, path: Path) -> SignedEngine | None:
    """What was signed of exactly this file; None if that is its digest alone.

    Raises:
        SignatureRefused
    """
    if opened.statement.type == statements.MODEL:
        signed_digest = statements.file_in(opened.statement)
        signed = None
    else:
        signed = signatures.signed_engine(opened)
        signed_digest = signed.engine.digest
    if signed_digest != digest:
        raise SignatureRefused(f"the file is {digest}, and {signed_digest} was signed")
    if signed is not None and manifest_path(path).is_file():
        signatures.check_manifest(signed, _manifest(manifest_path(path)))
    return signed


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(plain_json(_read(path)))
    except (ValidationError, ValueError) as err:
        raise SignatureRefused(f"the manifest {path.name} beside it can't be read") from err
