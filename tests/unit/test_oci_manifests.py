"""Manifests as bytes: the same today and tomorrow; and the names of repositories."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import DigestInvalid, RepositoryNameInvalid
from farm.registry.oci import manifests
from farm.registry.oci.manifests import Document, Source
from farm.schemas.engines import EngineView
from farm.specs import repositories
from farm.specs.names import folded

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
DIGEST, OTHER = (f"sha256:{digit * 64}" for digit in "12")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)


def view(**changes) -> EngineView:
    known = {
        "id": "06gm2vw9k3xq4t7n",
        "model": "digits",
        "version": 7,
        "runtime": "tensorrt-rtx",
        "runtime_version": "1.7.1",
        "gpu": "rtx-4090",
        "precision": "fp16",
        "digest": DIGEST,
        "bytes": 7,
        "accuracy": {"cosine": 1.0},
        "metrics": None,
        "metrics_reason": "nobody measured",
        "profiles": [],
        "inputs": [],
        "outputs": [],
        "toolchain": {"torch": "2.13.0+cu130", "tensorrt-rtx": "1.7.1"},
        "source_digest": OTHER,
        "build": "01m7y8mb9kssegkq",
        "created_at": AT,
    }
    return EngineView.model_validate(known | changes)


def source(**changes) -> Source:
    known = {"model": "digits", "version": 7, "format": "onnx", "digest": OTHER, "bytes": 9}
    return Source(**(known | {"created_at": AT} | changes))


def manifest_of(engine: EngineView) -> Document:
    return manifests.engine(engine, manifests.engine_config(engine, {"build": {}}, "load it"))


def test_what_may_change_about_an_engine_changes_no_digest():
    before = manifest_of(view())
    later = {"yanked": "slow", "judgements": [], "against": None}
    assert manifest_of(view(**later)).digest == before.digest
    assert manifest_of(view(digest=OTHER)).digest != before.digest


def test_the_order_of_a_rows_json_changes_no_digest():
    turned = dict(reversed(view().toolchain.items()))
    assert manifest_of(view(toolchain=turned)).digest == manifest_of(view()).digest
    assert manifests.source(source(fixed_inputs={"a": 1, "b": 2})) == manifests.source(
        source(fixed_inputs={"b": 2, "a": 1})
    )


def test_a_source_is_the_same_bytes_in_every_release():
    manifest, config = manifests.source(source())
    assert config.body == (
        b'{"config":{"format":"onnx"},"descriptor":{"createdAt":"2026-05-04T03:02:01Z",'
        b'"name":"digits","version":"7"},"modelfs":{"diffIds":["' + OTHER.encode() + b'"],'
        b'"type":"layers"}}'
    )
    assert manifest.digest == (
        "sha256:deea3fc93372e6c3f105969899b6098872530cdaadbbad6c7b71e09afa857d47"
    )


@pytest.mark.parametrize(
    ("gpu", "platform"),
    [
        ("cpu", {"architecture": "amd64", "os": "linux"}),
        ("sm_89", {"architecture": "amd64", "os": "linux", "variant": "sm_89"}),
        ("rtx-4090", {"architecture": "amd64", "os": "linux", "variant": "rtx-4090"}),
        ("jetson-orin", {"architecture": "arm64", "os": "linux", "variant": "jetson-orin"}),
        ("gh200", {"architecture": "arm64", "os": "linux", "variant": "gh200"}),
        ("dgx-spark", {"architecture": "arm64", "os": "linux", "variant": "dgx-spark"}),
    ],
)
def test_a_platform_has_the_gpu_as_its_variant(gpu, platform):
    assert manifests.platform(view(gpu=gpu)) == platform


def test_an_engine_says_the_compute_capability_of_its_gpu():
    assert manifests.said_of(view())["farm.engine.compute-capability"] == "sm_89"
    assert "farm.engine.compute-capability" not in manifests.said_of(view(gpu="cpu"))


def test_an_index_is_what_go_would_write():
    engine = manifest_of(view())
    index = manifests.index(
        source(), [(view(), engine)], manifests.source(source())[0], yanked="<&> — \u2028"
    )
    text = index.body.decode()
    assert r"\u003c\u0026\u003e — \u2028" in text
    value = json.loads(text)
    assert value["annotations"]["farm.engine.yanked"] == "<&> — \u2028"
    assert list(value) == ["schemaVersion", "mediaType", "manifests", "annotations"]
    entry = value["manifests"][0]
    assert list(entry) == ["mediaType", "digest", "size", "annotations", "platform"]
    assert list(entry["annotations"]) == sorted(entry["annotations"])


# Names


@given(NAMES)
def test_every_models_repository_is_legal_and_leads_back(name):
    repository = repositories.of_model(name)
    assert repositories.check_repository(repository) == repository
    found = repositories.model_of(repository)
    assert found is not None
    assert folded(found) == folded(name)
    exact = repositories.of_model(name, is_folded=False)
    assert repositories.check_repository(exact) == exact
    assert repositories.model_of(exact) == name


@pytest.mark.parametrize("repository", ["a/b", "hex/zz", "hex/ff", "hex/a"])
def test_some_repositories_are_no_models(repository):
    assert repositories.model_of(repository) is None


@pytest.mark.parametrize("name", ["", "A", "a/", "/a", "a//b", ".a", "a..b", "a___b", "a" * 256])
def test_some_names_are_no_repositories(name):
    with pytest.raises(RepositoryNameInvalid):
        repositories.check_repository(name)


def test_a_reference_is_a_digest_or_a_tag():
    assert repositories.is_digest(DIGEST)
    assert repositories.is_digest(f"sha512:{'1' * 128}")
    assert not repositories.is_digest("v7")
    for bad in ("sha256:12", f"sha512:{'1' * 127}", f"sha512:{'A' * 128}", "md5:1"):
        with pytest.raises(DigestInvalid):
            repositories.is_digest(bad)
    for bad in ("", "-a", "a b", "a" * 129):
        with pytest.raises(RepositoryNameInvalid):
            repositories.is_digest(bad)
