"""Copies of another farm's versions, by OCI: engines, source, reports and signatures, byte for byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from farm.client import answers
from farm.client.http import Http
from farm.client.noun import Noun
from farm.client.progress import TransferProgress, silent
from farm.errors import DigestMismatch, FarmError, NotFound
from farm.schemas.mirrors import Mirrored
from farm.specs import repositories
from farm.specs.references import split

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_SILENCE_S = 60.0
_MOST_DESCRIPTORS = 4096
_NUMBER = re.compile(r"v[1-9]\d{0,8}")
_VERSION = "org.opencontainers.image.version"


class Mirrors(Noun):
    """Copies from other farms."""

    def mirror(
        self,
        origin: Http,
        model: str,
        *,
        to: str | None = None,
        progress: TransferProgress | None = None,
    ) -> Mirrored:
        """Copy a version of another farm into a repository of this one, under the same digests.

        What is there already isn't sent again.

        Parameters:
            origin: the other farm.
            model: ``digits``, ``digits@prod``, ``digits@7``.
            to: the repository; by default ``mirror/`` and the model's.

        Raises:
            NotFound: the other farm has no such version.
            DigestMismatch: it sends other bytes than it says.
            FarmError
        """
        name, reference = split(model)
        repository = repositories.of_model(name)
        numbered = None if reference.version is None else f"v{reference.version}"
        tag = numbered or reference.alias or "latest"
        target = repositories.check_repository(to or f"mirror/{repository}")
        copy = _Copy(origin, self.http, repository, target, progress or silent)
        return copy.version(tag, numbered)


class _Copy:
    def __init__(
        self, origin: Http, here: Http, repository: str, target: str, progress: TransferProgress
    ) -> None:
        self._origin, self._here = origin, here
        self._from, self._to = f"/v2/{repository}", f"/v2/{target}"
        self._target = target
        self._progress = progress
        self._manifests = self._blobs = self._bytes = 0

    def version(self, tag: str, numbered: str | None) -> Mirrored:
        """Copy what a tag names, and give the copy the version's tag and this one.

        Parameters:
            numbered: the version, if one was asked for: no other gets a tag.
        """
        index, digest = self._fetched(tag)
        value = _parsed(index)
        for one in _descriptors(value, "manifests"):
            self._manifest(one)
            self._referrers(one["digest"])
        annotations = value.get("annotations")
        said = annotations.get(_VERSION) if isinstance(annotations, dict) else None
        version = said if isinstance(said, str) and _NUMBER.fullmatch(said) else tag
        if numbered not in (None, version):
            raise FarmError(f"{self._origin.url} sent {version} for {numbered}; no tag was set")
        for name in dict.fromkeys((version, tag)):
            self._put(name, index, _INDEX)
        return Mirrored(
            repository=self._target,
            tag=version,
            digest=digest,
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
