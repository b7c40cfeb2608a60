"""Manifests that clients push, as they come: JSON from anybody. Pure, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from farm.errors import ManifestInvalid
from farm.registry.oci import manifests
from farm.specs import repositories

#: What distribution-spec asks registries to accept at least.
LONGEST_MANIFEST_BYTES = 4 * 2**20
_MOST_DESCRIPTORS = 4096
_DOCKER = "application/vnd.docker.distribution.manifest"
#: Media type → whether it lists manifests.
TYPES = {
    manifests.MANIFEST: False,
    manifests.INDEX: True,
    f"{_DOCKER}.v2+json": False,
    f"{_DOCKER}.list.v2+json": True,
}


def parsed(body: bytes) -> Mapping[str, Any]:
    """
    Raises:
        ManifestInvalid
    """
    if len(body) > LONGEST_MANIFEST_BYTES:
        raise ManifestInvalid(f"manifests are limited to {LONGEST_MANIFEST_BYTES} bytes")
    try:
        value = json.loads(body.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as err:
        raise ManifestInvalid("the manifest isn't JSON, or has a name twice in an object") from err
    if not isinstance(value, dict) or value.get("schemaVersion") != 2:
        raise ManifestInvalid("the manifest isn't an object with schemaVersion 2")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return found


def type_of(value: Mapping[str, Any], said: str | None) -> str:
    """A manifest's media type.

    Parameters:
        said: by the request.

    Raises:
        ManifestInvalid
    """
    own = value.get("mediaType")
    said = said.partition(";")[0].strip().lower() if said else None
    found = own if isinstance(own, str) else said
    if found not in TYPES:
        raise ManifestInvalid(
            f"manifests of the type {str(found)[:100]!r} aren't accepted",
            hint=f"push one of {', '.join(TYPES)}",
        )
    if said is not None and said != found:
        raise ManifestInvalid(f"the request says {said[:100]}, the manifest {found}")
    return found


def check_one_kind(value: Mapping[str, Any], *, lists: bool) -> None:
    """Refuse what one client could read as a manifest, and another as an index (CVE-2021-41190)."""
    others = {"config", "layers", "fsLayers"} if lists else {"manifests", "fsLayers"}
    if found := sorted(others & value.keys()):
        raise ManifestInvalid(f"{'an index' if lists else 'a manifest'} has no {', '.join(found)}")


def check_texts(value: Mapping[str, Any]) -> None:
    """Refuse what couldn't be told of a manifest in the index of another's referrers."""
    annotations = value.get("annotations") or {}
    is_strings = isinstance(annotations, dict) and all(
        isinstance(one, str) for one in annotations.values()
    )
    kind = value.get("artifactType") or ""
    if not is_strings or not isinstance(kind, str):
        raise ManifestInvalid("annotations are strings by name, and artifactType is a string")
    shown = [*annotations, *annotations.values(), kind, manifests.artifact_type(value) or ""]
    try:
        "".join(shown).encode()
    except UnicodeEncodeError as err:
        raise ManifestInvalid("the manifest has half a surrogate pair in its texts") from err


def descriptors(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    given = value.get(name)
    if not isinstance(given, list) or len(given) > _MOST_DESCRIPTORS:
        raise ManifestInvalid(f"{name} isn't a list of at most {_MOST_DESCRIPTORS} descriptors")
    return [descriptor(one) for one in given]


def descriptor(given: object) -> dict[str, Any]:
    if (
        not isinstance(given, dict)
        or not isinstance(given.get("mediaType"), str)
        or type(given.get("size")) is not int
        or not isinstance(given.get("digest"), str)
    ):
        raise ManifestInvalid(
            "what the manifest refers to needs descriptors: mediaType, digest, size"
        )
    repositories.check_digest(given["digest"])
    return given


def is_foreign(one: Mapping[str, Any]) -> bool:
    """Whether a layer is one that registries needn't have."""
    kind = one["mediaType"]
    return ".nondistributable." in kind or ".foreign." in kind


def subject(value: Mapping[str, Any]) -> str | None:
    """The digest of what a manifest is about, which may not be there yet."""
    given = value.get("subject")
    if given is None:
        return None
    digest: str = descriptor(given)["digest"]
    return digest
