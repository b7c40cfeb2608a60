"""Engine downloads: resumed after a lost connection, verified before they get their final name.

During the download the file is ``NAME.partial``. It becomes ``NAME`` only once its sha256 matches the
registry's and its signature was verified, so a file with the final name is complete. Beside it lie its
manifest, ``NAME.json``, and its signatures, ``NAME.sigstore`` and ``NAME.sig`` (Model Signing).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from farm.client import header, signatures
from farm.client import partial as partials
from farm.client.content import Content, bring
from farm.client.header import CONTRADICTION_HINT
from farm.client.http import Http
from farm.client.progress import TransferProgress
from farm.client.signatures import Signatures
from farm.errors import DigestMismatch
from farm.schemas.engines import EngineView, Manifest
from farm.specs.quoting import quoted


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """An engine on this machine."""

    path: Path
    engine: EngineView
    why: str  #: why it was chosen
    fresh: bool  #: False if the same bytes were already here
    load: str = (
        ""  #: Python source that loads it from ``path`` and runs it; empty from an earlier farm
    )

    signed_by: str | None = None  #: the id of the key that signed it; None if the farm doesn't sign

    @property
    def manifest(self) -> Path:
        """The file beside it."""
        return manifest_path(self.path)


def download(
    http: Http,
    engine: EngineView,
    path: Path,
    *,
    why: str,
    progress: TransferProgress | None = None,
) -> Pulled:
    """Download an engine, its manifest and its signatures to ``path``, unless the same bytes are there.

    Raises:
        SignatureRefused: what the farm has signed isn't this engine, or the farm isn't the one it was.
        SigningKeyUnknown: nobody has said which signing key is the farm's.
        DigestMismatch: the received bytes don't match the registry; they were deleted.
        Conflict: another pull is writing this file.
        Unavailable: the farm stayed unreachable; the partial file is kept, to resume from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written, manifest = _manifest(http, engine)
    signed = signatures.fetch(http, engine, manifest)
    content = Content(
        path=f"/v1/engines/{engine.id}/content",
        what=f"engine {engine.id}",
        digest=engine.digest,
        bytes=engine.bytes,
    )
    fresh = bring(
        http, content, path, progress, check=lambda partial: header.verify(partial, engine)
    )
    partials.write_whole(manifest_path(path), written)
    _keep(signed, path)
    return Pulled(
        path=path,
        engine=engine,
        why=why,
        fresh=fresh,
        load=_at(manifest.load, engine, path),
        signed_by=signed.key.id if signed else None,
    )


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def bundle_path(path: Path) -> Path:
    """The file beside an engine with its signed statement."""
    return path.with_name(f"{path.name}.sigstore")


def model_signature_path(path: Path) -> Path:
    """The file beside an engine with its signature by OpenSSF Model Signing."""
    return path.with_name(f"{path.name}.sig")


def _manifest(http: Http, engine: EngineView) -> tuple[bytes, Manifest]:
    """The manifest, and its bytes as the farm wrote them."""
    response = http.request("GET", f"/v1/engines/{engine.id}/manifest")
    manifest = http.understand(TypeAdapter(Manifest), response.content, "the manifest")
    stated = manifest.engine
    if (stated.id, stated.digest) != (engine.id, engine.digest):
        raise DigestMismatch(
            f"engine {engine.id} is {engine.digest} in the registry, "
            f"but {stated.digest} in its manifest",
            hint=CONTRADICTION_HINT,
        )
    return response.content, manifest


def _at(load: str, engine: EngineView, path: Path) -> str:
    """The manifest's text about loading, with this path for the file's usual name."""
    return load.replace(quoted(engine.file_name()), quoted(str(path)), 1)


def _keep(signed: Signatures | None, path: Path) -> None:
    """Write an engine's signatures beside it, or remove those of one that was there before."""
    if signed is None:
        bundle_path(path).unlink(missing_ok=True)
        model_signature_path(path).unlink(missing_ok=True)
        return
    partials.write_whole(bundle_path(path), signed.engine)
    partials.write_whole(model_signature_path(path), signed.model)
