"""Another farm's versions: copied by OCI, byte for byte, and registered here on a signature's word."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2

from farm.client import answers
from farm.client.http import Http
from farm.client.noun import Noun, part
from farm.client.progress import TransferProgress, silent
from farm.errors import DigestMismatch, FarmError, NotFound, SignatureRefused
from farm.schemas.mirrors import Mirrored, Registered
from farm.specs import repositories
from farm.specs.names import folded
from farm.specs.references import split

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_SILENCE_S = 60.0
_MOST_DESCRIPTORS = 4096
_NUMBER = re.compile(r"v[1-9]\d{0,8}")
_VERSION = "org.opencontainers.image.version"
_FARM = "farm.engine."  #: prefix of a farm's own annotations


class Mirrors(Noun):
    """Copies from other farms."""

    def mirror(
        self,
        origin: Http,
        model: str,
        *,
        to: str | None = None,
        register: bool = True,
        unsigned: bool = False,
        new_inputs: bool = False,
        progress: TransferProgress | None = None,
    ) -> Mirrored:
        """Copy a version of another farm into a repository of this one, and have it in the registry here.

        The copy has the same digests; what is there already isn't sent again. The other farm's signatures are
        verified before anything is copied, with the keys that this user knows of it.

        Parameters:
            origin: the other farm.
            model: ``digits``, ``digits@prod``, ``digits@7``.
            to: the repository; by default ``mirror/`` and the model's.
            register: have it in the registry, where pulls and submissions find it; needs the scope
                ``admin``. Otherwise OCI clients alone do.
            unsigned: believe a farm that doesn't sign.
            new_inputs: accept other inputs or outputs than those of this farm's version before it.

        Raises:
            NotFound: the other farm has no such version.
            DigestMismatch: it sends other bytes than it says.
            SignatureRefused: an engine isn't signed by it.
            SigningKeyUnknown: nobody has said which signing key is the other farm's.
            Conflict: the version's inputs differ, and ``new_inputs`` is missing.
            FarmError
        """
        name, reference = split(model)
        repository = repositories.of_model(name)
        numbered = None if reference.version is None else f"v{reference.version}"
        tag = numbered or reference.alias or "latest"
        target = repositories.check_repository(to or f"mirror/{repository}")
        copy = _Copy(origin, self.http, repository, target, progress or silent)
        index = copy.index(tag)
        if numbered not in (None, index.version):
            sent = index.version or tag
            raise FarmError(f"{origin.url} sent {sent} for {numbered}; no tag was set")
        if not register:
            return copy.version(index, tag)
        keys = _signers(origin, index, unsigned=unsigned)
        copied = copy.version(index, tag)
        asked = {
            "repository": copied.repository,
            "digest": copied.digest,
            "farm": _address(origin.url),
            "signing_keys": keys,
            "unsigned": not keys,
            "new_inputs": new_inputs,
        }
        path = f"/v1/models/{part(_name(index, name))}/mirror"
        made = self.http.read(Registered, "POST", path, json=asked)
        return copied.model_copy(update={"registered": made})


@dataclass(frozen=True, kw_only=True)
class _Index:
    """A version's index, as the other farm sent it."""

    body: bytes
    digest: str
    manifests: Sequence[Mapping[str, Any]]
    version: str | None  #: its tag, if the index says so

    def said(self, name: str) -> list[str]:
        """What its engines' annotations say."""
        found = [one.get("annotations") or {} for one in self.manifests]
        engines = [one for one in found if isinstance(one, dict) and f"{_FARM}id" in one]
        return [str(one.get(f"{_FARM}{name}", "")) for one in engines]


def _signers(origin: Http, index: _Index, *, unsigned: bool) -> list[str]:
    """The keys that signed the engines, in PEM; none if the other farm doesn't sign and needn't.

    Raises:
        SignatureRefused, SigningKeyUnknown
    """
    found: dict[str, str] = {}
    for engine_id in index.said("id"):
        try:
            answer = origin.request("GET", f"/v1/engines/{part(engine_id)}/signature")
        except NotFound:  # it doesn't sign, or is an earlier farm
            if origin.trust.expects_signatures() or not unsigned:
                raise SignatureRefused(
                    f"engine {engine_id} of {origin.url} isn't signed",
                    hint="if that farm has no signing key and you believe it all the same: --unsigned; "
                    "--copy-only copies for OCI clients alone",
                ) from None
            continue
        key = origin.trust.opened(answer.content).key
        found[key.id] = key.pem
    return list(found.values())


def _name(index: _Index, name: str) -> str:
    """The model's name as the other farm writes it."""
    there = next(iter(index.said("model")), name)
    return there if folded(there) == folded(name) else name


def _address(url: str) -> str:
    """An address without credentials."""
    found = urlsplit(url)
    return urlunsplit((found.scheme, found.netloc.rpartition("@")[2], found.path, "", ""))


class _Copy:
    def __init__(
        self, origin: Http, here: Http, repository: str, target: str, progress: TransferProgress
    ) -> None:
        self._origin, self._here = origin, here
        self._from, self._to = f"/v2/{repository}", f"/v2/{target}"
        self._target = target
        self._progress = progress
        self._manifests = self._blobs = self._bytes = 0

    def index(self, tag: str) -> _Index:
        """The index that a tag names."""
        body, digest = self._fetched(tag)
        value = _parsed(body)
        annotations = value.get("annotations")
        said = annotations.get(_VERSION) if isinstance(annotations, dict) else None
        return _Index(
            body=body,
            digest=digest,
            manifests=_descriptors(value, "manifests"),
            version=said if isinstance(said, str) and _NUMBER.fullmatch(said) else None,
        )

    def version(self, index: _Index, tag: str) -> Mirrored:
        """Copy what an index lists, and give the copy the version's tag and this one."""
        for one in index.manifests:
            self._manifest(one)
            self._referrers(one["digest"])
        version = index.version or tag
        for name in dict.fromkeys((version, tag)):
            self._put(name, index.body, _INDEX)
        return Mirrored(
            repository=self._target,
            tag=version,
            digest=index.digest,
            manifests=self._manifests,
            blobs=self._blobs,
            bytes=self._bytes,
        )

    def _manifest(self, descriptor: Mapping[str, Any]) -> None:
        """Copy a manifest with its blobs."""
        digest = descriptor["digest"]
        body, _ = self._fetched(digest)
        value = _parsed(body)
        for blob in [_checked(value.get("config")), *_descriptors(value, "layers")]:
            self._blob(blob)
        self._put(digest, body, _MANIFEST)

    def _referrers(self, digest: str) -> None:
        """Copy what refers to a manifest; nothing refers to that, whatever the other farm says."""
        answer = self._origin.request("GET", f"{self._from}/referrers/{digest}")
        for one in _descriptors(_parsed(answer.content), "manifests"):
            if one.get("mediaType") == _MANIFEST:  # no index: the farm makes none of an engine
                self._manifest(one)

    def _fetched(self, reference: str) -> tuple[bytes, str]:
        """A manifest's bytes and digest.

        Raises:
            DigestMismatch
        """
        answer = self._origin.request("GET", f"{self._from}/manifests/{reference}")
        found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        said = reference if ":" in reference else answer.headers.get("Docker-Content-Digest")
        if found != said:
            raise DigestMismatch(f"{self._origin.url} sent {found} for the manifest {said}")
        return answer.content, found

    def _put(self, reference: str, body: bytes, media_type: str) -> None:
        self._here.request(
            "PUT",
            f"{self._to}/manifests/{reference}",
            headers={"Content-Type": media_type},
            body=lambda: [body],
        )
        self._manifests += ":" in reference

    def _blob(self, descriptor: Mapping[str, Any]) -> None:
        digest, size = descriptor["digest"], descriptor["size"]
        try:
            self._here.request("HEAD", f"{self._to}/blobs/{digest}")
        except NotFound:
            # This farm verifies the digest, and keeps nothing on a mismatch.
            self._here.request(
                "POST",
                f"{self._to}/blobs/uploads/",
                params={"digest": digest},
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
                body=lambda: self._content(descriptor),
            )
            self._blobs += 1
            self._bytes += size

    def _content(self, descriptor: Mapping[str, Any]) -> Iterator[bytes]:
        """A blob as the other farm sends it.

        Raises:
            DigestMismatch: it sends more or less than it says.
        """
        digest, size, done = descriptor["digest"], descriptor["size"], 0
        headers = {"Accept": "*/*"}
        path = f"{self._from}/blobs/{digest}"
        try:
            with self._origin.stream(path, headers=headers, read_timeout_s=_SILENCE_S) as response:
                for chunk in answers.chunks(response):
                    done += len(chunk)
                    if done > size:
                        break
                    self._progress(f"mirror {digest[7:19]}", done, size)
                    yield chunk
        except httpx2.TransportError as err:
            raise self._origin.unreachable(err) from err
        if done != size:
            raise DigestMismatch(f"{self._origin.url} sent {done} bytes of {digest}, not {size}")


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FarmError("the other farm's manifest isn't a JSON object")
    return value


def _descriptors(value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    listed = value.get(name)
    if not isinstance(listed, list) or len(listed) > _MOST_DESCRIPTORS:
        raise FarmError(f"{name} of the other farm's manifest isn't a list of descriptors")
    return [_checked(one) for one in listed]


def _checked(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, dict) or not _is_size(given.get("size")):
        raise FarmError("the other farm's manifest has something else than descriptors")
    repositories.check_digest(str(given.get("digest")))
    return given


def _is_size(given: object) -> bool:
    return type(given) is int and 0 <= given < 2**63
