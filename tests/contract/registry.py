"""An OCI client as the conformance suite has one: plain requests, and blobs and manifests to push."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

from farm.registry.oci.manifests import EMPTY, INDEX, MANIFEST
from tests.contract.conftest import Api

LAYER = "application/vnd.oci.image.layer.v1.tar"
BYTES = {"Content-Type": "application/octet-stream"}


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def descriptor(content: bytes, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    found = {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}
    return found | more


def image(content: bytes = b"{}", *layers: bytes, **more: Any) -> bytes:
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(content, EMPTY),
        "layers": [descriptor(one) for one in layers],
    }
    return encoded(value | more)


def index(*manifests: bytes, **more: Any) -> bytes:
    listed = [descriptor(one, MANIFEST) for one in manifests]
    return encoded({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed} | more)


class Registry:
    """One repository, by requests."""

    def __init__(self, api: Api, name: str = "conformance/tests") -> None:
        self.api = api
        self.name = name

    def call(self, method: str, path: str, **options: Any):
        return self.api.request(method, f"/v2/{self.name}/{path}", **options)

    def begin(self) -> str:
        answer = self.call("POST", "blobs/uploads/")
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    def patch(self, location: str, content: bytes, start: int | None = None):
        headers = dict(BYTES)
        if start is not None:
            headers["Content-Range"] = f"{start}-{start + len(content) - 1}"
        return self.api.request("PATCH", location, content=content, headers=headers)

    def finish(self, location: str, digest: str, content: bytes = b"", start: int | None = None):
        headers = dict(BYTES)
        if start is not None:
            headers["Content-Range"] = f"{start}-{start + len(content) - 1}"
        return self.api.request(
            "PUT", location, params={"digest": digest}, content=content, headers=headers
        )

    def push_blob(self, content: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(content, algorithm)
        answer = self.finish(self.begin(), digest, content)
        assert answer.status_code == 201, answer.text
        return digest

    def put(self, reference: str, body: bytes, media_type: str = MANIFEST):
        return self.call(
            "PUT", f"manifests/{reference}", content=body, headers={"Content-Type": media_type}
        )

    def push_image(self, tag: str, *layers: bytes, **more: Any) -> bytes:
        for one in (b"{}", *layers):
            self.push_blob(one)
        body = image(b"{}", *layers, **more)
        answer = self.put(tag, body)
        assert answer.status_code == 201, answer.text
        return body

    def blob(self, digest: str, method: str = "GET", **headers: str):
        return self.call(method, f"blobs/{digest}", headers=headers)

    def manifest(self, reference: str, method: str = "GET"):
        return self.call(method, f"manifests/{reference}")

    def referrers(self, digest: str, artifact_type: str | None = None):
        params = {"artifactType": artifact_type} if artifact_type else {}
        return self.call("GET", f"referrers/{digest}", params=params)


def path_of(location: str) -> str:
    return urlsplit(location).path


def code(answer: Any) -> str:
    """The one error's code."""
    [error] = answer.json()["errors"]
    assert set(error) == {"code", "message", "detail"}
    return str(error["code"])
