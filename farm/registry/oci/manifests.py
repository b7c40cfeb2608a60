"""OCI manifests of engines, sources and reports, as bytes. Pure: the same values give the same digest.

Media types: OCI's image-spec 1.1; for sources CNCF's ModelPack (model-spec, its v1 types).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.source import SourceFormat

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
ENGINE = "application/vnd.engine-farm.engine.v1+json"
ENGINE_CONFIG = "application/vnd.engine-farm.engine.config.v1+json"
ENGINE_CONTENT = "application/vnd.engine-farm.engine.content.v1"
ACCURACY = "application/vnd.engine-farm.accuracy.v1+json"
METRICS = "application/vnd.engine-farm.metrics.v1+json"
LAYERS = "application/vnd.engine-farm.layers.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"

TITLE = "org.opencontainers.image.title"
_CREATED = "org.opencontainers.image.created"
_VERSION = "org.opencontainers.image.version"
#: Prefix of the farm's own annotations.
FARM = "farm.engine."
ARTIFACT_TYPE = f"{FARM}artifact-type"

_SUFFIXES = {
    SourceFormat.ONNX: "onnx",
    SourceFormat.PT2: "pt2",
    SourceFormat.TORCHSCRIPT: "pt",
    SourceFormat.SAFETENSORS: "safetensors",
}
#: GPUs of machines whose processors are ARM's.
_ON_ARM = {"gh200", "gb200", "gb300", "sm_87", "sm_110", "sm_121"}
#: What a view holds beside the engine's own row: later yanks, twins and judgements change it.
_OF_OTHERS = {"yanked", "against", "judgements"}


@dataclass(frozen=True, kw_only=True)
class Document:
    """A JSON document under its digest."""

    media_type: str
    body: bytes
    algorithm: str = "sha256"  #: or sha512
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        found = hashlib.new(self.algorithm, self.body).hexdigest()
        object.__setattr__(self, "digest", f"{self.algorithm}:{found}")

    @classmethod
    def of(cls, media_type: str, value: object) -> Document:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return cls(media_type=media_type, body=text.encode())

    @classmethod
    def as_go_writes(cls, media_type: str, value: object) -> Document:
        """With the fields in this order, and the escapes of Go's `encoding/json`.

        Go clients such as skopeo write an index anew when they copy it, and refuse a copy under the same
        digest if these aren't the same bytes.
        """
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return cls(media_type=media_type, body=text.encode())

    def value(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return descriptor(self.media_type, self.digest, len(self.body), **more)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A version's source."""

    model: str
    version: int
    format: str
    digest: str
    bytes: int
    created_at: datetime
    fixed_inputs: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None

    @property
    def file_name(self) -> str:
        suffix = _SUFFIXES.get(SourceFormat(self.format), "tar")
        return f"{self.model}-v{self.version}.{suffix}"


def descriptor(media_type: str, digest: str, size: int, **more: Any) -> dict[str, Any]:
    """A descriptor; what is None or empty in ``more`` is left out."""
    given = {name: value for name, value in more.items() if value}
    return {"mediaType": media_type, "digest": digest, "size": size} | given


_NOTHING = Document(media_type=EMPTY, body=b"{}")


def nothing() -> dict[str, Any]:
    """The descriptor of the empty config, which carries its two bytes."""
    return _NOTHING.descriptor(data=base64.b64encode(_NOTHING.body).decode())


def empty_blob() -> Document:
    return _NOTHING


def engine_config(engine: EngineView, provenance: Mapping[str, Any], load: str) -> Document:
    """The farm's manifest of an engine, without what others' rows say of it."""
    shown = engine.model_dump(mode="json", exclude=_OF_OTHERS)
    return Document.of(
        ENGINE_CONFIG, {"engine": shown, "provenance": dict(provenance), "load": load}
    )


def engine(view: EngineView, config: Document) -> Document:
    """An engine: its bytes as the one layer, its description as the config."""
    layer = descriptor(
        ENGINE_CONTENT, view.digest, view.bytes, annotations={TITLE: view.file_name()}
    )
    return Document.of(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ENGINE,
            "config": config.descriptor(),
            "layers": [layer],
            "annotations": _of_version(view.version, view.created_at) | said_of(view),
        },
    )


def said_of(view: EngineView) -> dict[str, str]:
    """What an engine is for, in strings."""
    said = {
        "id": view.id,
        "model": view.model,
        "version": str(view.version),
        "gpu": view.gpu,
        "precision": view.precision.value,
        "prune": view.prune,
        "runtime": view.runtime.value,
        "runtime-version": view.runtime_version,
        "compute-capability": None if view.gpu == gpus.CPU else gpus.compute_capability(view.gpu),
        "toolchain": json.dumps(view.toolchain, sort_keys=True, separators=(",", ":")),
        "source": view.source_digest,
        "state": view.state.value,
    }
    return {f"{FARM}{name}": value for name, value in said.items() if value}


def platform(view: EngineView) -> dict[str, str]:
    """For clients that choose from an index: the GPU tag as the variant."""
    if view.gpu == gpus.CPU:
        return {"architecture": "amd64", "os": "linux"}
    on_arm = {view.gpu, gpus.compute_capability(view.gpu)} & _ON_ARM
    return {
        "architecture": "arm64" if on_arm else "amd64",
        "os": "linux",
        "variant": view.gpu,
    }


def source(of: Source) -> tuple[Document, Document]:
    """A source as a ModelPack: its manifest and its config."""
    config = Document.of(
        MODEL_CONFIG,
        {
            "descriptor": {
                "name": of.model,
                "version": str(of.version),
                "createdAt": _instant(of.created_at),
            },
            "modelfs": {"type": "layers", "diffIds": [of.digest]},
            "config": {"format": of.format},
        },
    )
    title = {TITLE: of.file_name, "org.cncf.model.filepath": of.file_name}
    facts = {"fixed-inputs": of.fixed_inputs, "architecture": of.architecture}
    more = {
        f"{FARM}{name}": json.dumps(value, sort_keys=True, separators=(",", ":"))
        for name, value in facts.items()
        if value
    }
    named = {f"{FARM}model": of.model, f"{FARM}version": str(of.version)}
    manifest = Document.of(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": MODEL,
            "config": config.descriptor(),
            "layers": [descriptor(MODEL_WEIGHT, of.digest, of.bytes, annotations=title)],
            "annotations": _of_version(of.version, of.created_at) | named | more,
        },
    )
    return manifest, config


def report(
    kind: str,
    layer: Mapping[str, Any],
    *,
    about: Document,
    created_at: datetime,
) -> Document:
    """What is known about a manifest: a referrer with one layer.

    Parameters:
        layer: its descriptor.
    """
    return Document.of(
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": kind,
            "config": nothing(),
            "layers": [dict(layer)],
            "subject": about.descriptor(),
            "annotations": {_CREATED: _instant(created_at)},
        },
    )


def index(
    of: Source,
    engines: Sequence[tuple[EngineView, Document]],
    source_manifest: Document,
    *,
    yanked: str | None,
) -> Document:
    """A version across GPUs, what a client takes first in front; its source last.

    Artifact types are annotations here: clients older than image-spec 1.1 drop fields they don't know.
    """
    named = {f"{FARM}model": of.model, f"{FARM}version": str(of.version)}
    listed = [
        document.descriptor(
            annotations=_sorted(said_of(view) | {ARTIFACT_TYPE: ENGINE}), platform=platform(view)
        )
        for view, document in engines
    ]
    listed.append(source_manifest.descriptor(annotations=_sorted(named | {ARTIFACT_TYPE: MODEL})))
    said = named | ({f"{FARM}yanked": yanked} if yanked else {})
    return Document.as_go_writes(
        INDEX,
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": listed,
            "annotations": _sorted(_of_version(of.version, of.created_at) | said),
        },
    )


def _sorted(strings: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(strings.items()))


def referrers(found: Sequence[Document]) -> Document:
    """The answer to a query for referrers: their descriptors with type and annotations."""
    listed = []
    for document in found:
        value = document.value()
        listed.append(
            document.descriptor(
                artifactType=artifact_type(value), annotations=value.get("annotations")
            )
        )
    return Document.of(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})


def artifact_type(manifest: Mapping[str, Any]) -> str | None:
    """A manifest's artifact type; without one, its config's media type."""
    config = manifest.get("config")
    found = manifest.get("artifactType") or (isinstance(config, dict) and config.get("mediaType"))
    return found if isinstance(found, str) else None


def _of_version(version: int, created_at: datetime) -> dict[str, str]:
    return {_VERSION: f"v{version}", _CREATED: _instant(created_at)}


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
