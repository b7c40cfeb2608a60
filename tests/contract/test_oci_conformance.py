"""The cases of distribution-spec's conformance suite (its branch main of August 2026), in its order.

The suite is a Go program whose modules can't be had everywhere (scripts/oci-conformance runs it); these are
its checks, by hand. Left out, as the specification leaves them to the registry: sparse manifests.
"""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from farm.registry.oci.manifests import EMPTY, INDEX, MANIFEST
from tests.contract.registry import (
    Registry,
    code,
    descriptor,
    digest_of,
    encoded,
    image,
    index,
)

EXAMPLE, OTHER = "application/vnd.example.conf.v1", "application/vnd.example.other.v1"
BLOB = bytes(range(256)) * 8


@pytest.fixture
def registry(api) -> Registry:
    return Registry(api)


def served(registry: Registry, content: bytes, algorithm: str = "sha256") -> None:
    """The blob is there, whole."""
    digest = digest_of(content, algorithm)
    for method, body in (("HEAD", b""), ("GET", content)):
        answer = registry.blob(digest, method)
        assert (answer.status_code, answer.content) == (200, body)
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["docker-content-digest"] == digest


def test_ping_says_that_this_is_a_registry(registry):
    assert registry.api.get("/v2/").status_code == 200


def test_an_unknown_repository_has_no_tags_and_an_empty_list_of_referrers(registry):
    answer = registry.call("GET", "tags/list")
    assert (answer.status_code, code(answer)) == (404, "NAME_UNKNOWN")
    answer = registry.referrers(digest_of(b"nothing"))
    assert (answer.status_code, answer.json()["manifests"]) == (200, [])
    assert answer.headers["content-type"] == INDEX


# Blobs


def test_a_blob_that_was_not_pushed_is_not_found(registry):
    registry.push_blob(b"another")
    answer = registry.blob(digest_of(BLOB))
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")


def post_only(registry, content, digest):
    return registry.call("POST", "blobs/uploads/", params={"digest": digest}, content=content)


def post_put(registry, content, digest):
    return registry.finish(registry.begin(), digest, content)


def stream(registry, content, digest):
    answer = registry.patch(registry.begin(), content)
    assert answer.status_code == 202
    return registry.finish(answer.headers["location"], digest)


def chunked(registry, content, digest, *, put_last=False, out_of_order=False, size=700):
    location, start = registry.begin(), 0
    while start < len(content):
        chunk = content[start : start + size]
        is_last = start + size >= len(content)
        if out_of_order:
            refused = registry.patch(location, chunk, start + size)
            assert (refused.status_code, code(refused)) == (416, "BLOB_UPLOAD_INVALID")
            status = registry.api.get(location)
            assert status.status_code == 204
            assert status.headers["range"] == f"0-{max(start - 1, 0)}"
            location = status.headers["location"]
        if put_last and is_last:
            return registry.finish(location, digest, chunk, start)
        answer = registry.patch(location, chunk, start)
        assert answer.status_code == 202
        start += len(chunk)
        assert answer.headers["range"] == f"0-{start - 1}"
        location = answer.headers["location"]
    return registry.finish(location, digest)


def chunked_single(registry, content, digest):
    return chunked(registry, content, digest, size=len(content))


def chunked_put_last(registry, content, digest):
    return chunked(registry, content, digest, put_last=True)


def chunked_out_of_order(registry, content, digest):
    return chunked(registry, content, digest, out_of_order=True)


def chunked_out_of_order_put_last(registry, content, digest):
    return chunked(registry, content, digest, out_of_order=True, put_last=True)


ALGORITHMS = ("sha256", "sha512")
WAYS = (
    *(post_only, post_put, stream, chunked, chunked_single, chunked_put_last),
    *(chunked_out_of_order, chunked_out_of_order_put_last),
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("push", WAYS)
def test_a_blob_pushed_in_any_way_is_served_and_deleted(registry, push, algorithm):
    digest = digest_of(BLOB, algorithm)
    answer = push(registry, BLOB, digest)
    assert answer.status_code == 201
    assert answer.headers["docker-content-digest"] == digest
    assert registry.api.get(answer.headers["location"]).content == BLOB
    served(registry, BLOB, algorithm)
    assert registry.blob(digest, "DELETE").status_code == 202
    assert registry.blob(digest, "HEAD").status_code == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("push", WAYS)
def test_a_blob_with_another_digest_is_refused_and_not_kept(registry, push, algorithm):
    answer = push(registry, BLOB + b"oh no", digest_of(BLOB, algorithm))
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    registry.push_blob(b"another")
    for content in (BLOB, BLOB + b"oh no"):
        for name in ALGORITHMS:
            assert registry.blob(digest_of(content, name)).status_code == 404


@pytest.mark.parametrize("content", [b"", b"{}"], ids=["empty", "empty JSON"])
def test_well_known_blobs_are_served(registry, content):
    registry.push_blob(content)
    served(registry, content)
    registry.blob(digest_of(content), "DELETE")
    assert registry.blob(digest_of(content), "HEAD").status_code == 404


def test_a_cancelled_upload_is_gone(registry):
    location = registry.begin()
    assert registry.api.request("DELETE", location).status_code == 204
    answer = registry.finish(location, digest_of(BLOB), BLOB)
    assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("origin", [{"from": "conformance/other"}, {}], ids=["named", "any"])
def test_a_blob_is_mounted_from_another_repository(registry, origin, algorithm):
    other = Registry(registry.api, "conformance/other")
    digest = other.push_blob(BLOB, algorithm)
    answer = registry.call("POST", "blobs/uploads/", params={"mount": digest} | origin)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v2/{registry.name}/blobs/{digest}"
    assert answer.headers["docker-content-digest"] == digest
    served(registry, BLOB, algorithm)
    # The other's going takes nothing from this one.
    assert other.blob(digest, "DELETE").status_code == 202
    served(registry, BLOB, algorithm)


def test_what_was_pushed_to_no_repository_is_mounted_from_none(registry):
    digest = registry.api.post("/v1/blobs", content=BLOB).json()["digest"]
    answer = registry.call("POST", "blobs/uploads/", params={"mount": digest})
    assert answer.status_code == 202
    registry.push_blob(b"another")
    assert registry.blob(digest).status_code == 404


@pytest.mark.parametrize("origin", [{"from": "conformance/other"}, {}])
def test_what_cant_be_mounted_is_uploaded(registry, origin):
    params = {"mount": digest_of(BLOB)} | origin
    answer = registry.call("POST", "blobs/uploads/", params=params)
    assert answer.status_code == 202
    finished = registry.finish(answer.headers["location"], digest_of(BLOB), BLOB)
    assert finished.status_code == 201
    served(registry, BLOB)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("500-1499", 500, 1500),
        ("500-", 500, 2048),
        ("-500", 1548, 2048),
        ("2000-5000", 2000, 2048),
    ],
)
def test_a_range_of_a_blob_is_served(registry, asked, start, end):
    digest = registry.push_blob(BLOB)
    answer = registry.blob(digest, Range=f"bytes={asked}")
    assert (answer.status_code, answer.content) == (206, BLOB[start:end])
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/2048"


@pytest.mark.parametrize("asked", ["500-0", "5000-10000"])
def test_a_range_that_isnt_there_is_refused(registry, asked):
    digest = registry.push_blob(BLOB)
    assert registry.blob(digest, Range=f"bytes={asked}").status_code == 416


# Manifests: each kind is pushed, listed, asked for, pulled, and deleted


def _image(registry):
    registry.push_blob(b"layer")
    registry.push_blob(b"config")
    return [(image(b"config", b"layer"), MANIFEST)]


def _large(registry):
    registry.push_blob(b"{}")
    many = {f"large-annotation-{n}": "A" * 10_000 for n in range(390)}
    return [(image(annotations=many), MANIFEST)]


def _index(registry):
    registry.push_blob(b"one")
    registry.push_blob(b"two")
    registry.push_blob(b"{}")
    both = [image(b"{}", b"one"), image(b"{}", b"two")]
    return [*((one, MANIFEST) for one in both), (index(*both), INDEX)]


def _nested(registry):
    inner = _index(registry)
    outer = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(inner[-1][0], INDEX)]}
    return [*inner, (encoded(outer), INDEX)]


def _empty_index(_registry):
    return [(index(), INDEX)]


def _artifact(registry):
    registry.push_blob(b"{}")
    registry.push_blob(b"layer")
    return [(image(b"{}", b"layer", artifactType=EXAMPLE), MANIFEST)]


def _no_layers(registry):
    registry.push_blob(b"{}")
    return [(image(), MANIFEST)]


def _artifact_index(registry):
    found = _artifact(registry)
    return [*found, (index(found[0][0], artifactType=EXAMPLE), INDEX)]


def _data_field(registry):
    registry.push_blob(b"{}")
    config = descriptor(b"{}", EMPTY, data="e30=")
    return [(image(config=config), MANIFEST)]


def _foreign_layers(registry):
    registry.push_blob(b"{}")
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    away = descriptor(b"elsewhere", kind, urls=["https://store.example.com/blob"])
    return [(image(layers=[away]), MANIFEST)]


def _custom_fields(registry):
    registry.push_blob(b"{}")
    return [(image(**{"org.example.field": {"any": ["thing", 1]}}), MANIFEST)]


@pytest.mark.parametrize(
    "kind",
    [
        *(_image, _large, _index, _nested, _empty_index, _artifact, _no_layers),
        *(_artifact_index, _data_field, _foreign_layers, _custom_fields),
    ],
)
def test_a_manifest_is_pushed_listed_pulled_and_deleted(registry, kind):
    made = kind(registry)
    for body, media_type in made:
        answer = registry.put(digest_of(body), body, media_type)
        assert answer.status_code == 201, answer.text
        assert answer.headers["docker-content-digest"] == digest_of(body)
    last, media_type = made[-1]
    assert registry.put("a-tag", last, media_type).status_code == 201
    assert registry.call("GET", "tags/list").json() == {"name": registry.name, "tags": ["a-tag"]}
    for reference in ("a-tag", digest_of(last)):
        head, whole = registry.manifest(reference, "HEAD"), registry.manifest(reference)
        assert (head.status_code, head.content) == (200, b"")
        assert (whole.status_code, whole.content) == (200, last)
        for answer in (head, whole):
            assert answer.headers["content-length"] == str(len(last))
            assert answer.headers["content-type"] == media_type
            assert answer.headers["docker-content-digest"] == digest_of(last)
    assert registry.manifest("a-tag", "DELETE").status_code == 202
    assert registry.manifest("a-tag", "HEAD").status_code == 404
    for body, _ in reversed(made):
        assert registry.manifest(digest_of(body), "DELETE").status_code == 202
        assert registry.manifest(digest_of(body), "HEAD").status_code == 404


def test_a_manifest_with_another_digest_is_refused(registry):
    registry.push_blob(b"{}")
    answer = registry.put(digest_of(image()), image() + b"  ")
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    assert registry.manifest(digest_of(image())).status_code == 404


def test_what_isnt_a_digest_is_refused(registry):
    registry.push_blob(b"{}")
    assert registry.put("sha256:baddigeststring", image()).status_code == 400
    assert registry.manifest("sha256:baddigeststring").status_code == 400


@pytest.mark.parametrize(
    "reference", [*(digest_of(b"nothing", one) for one in ALGORITHMS), "missing-tag"]
)
def test_a_missing_manifest_is_not_found(registry, reference):
    registry.push_blob(b"{}")
    answer = registry.manifest(reference)
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")


# sha512


def test_a_blob_that_was_pushed_by_its_sha512_has_its_sha256_too(registry):
    registry.push_blob(BLOB, "sha512")
    served(registry, BLOB, "sha256")
    other = Registry(registry.api, "conformance/other")
    other.push_blob(b"another")
    answer = other.blob(digest_of(BLOB, "sha512"))
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")


def test_an_index_and_all_below_it_may_be_named_by_their_sha512(registry):
    config, layer = registry.push_blob(b"{}", "sha512"), registry.push_blob(BLOB, "sha512")
    made = image(
        config=descriptor(b"{}", EMPTY, digest=config), layers=[descriptor(BLOB, digest=layer)]
    )
    listed = [descriptor(made, MANIFEST, digest=digest_of(made, "sha512"))]
    above = encoded({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
    answer = registry.put(digest_of(above, "sha512"), above, INDEX)
    assert (answer.status_code, code(answer)) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert registry.put(digest_of(made, "sha512"), made).status_code == 201
    digest = digest_of(above, "sha512")
    answer = registry.put(f"{digest}?tag=a-tag", above, INDEX)
    assert (answer.status_code, answer.headers["docker-content-digest"]) == (201, digest)
    for reference in ("a-tag", digest):
        answer = registry.manifest(reference)
        assert (answer.status_code, answer.content) == (200, above)
        assert answer.headers["docker-content-digest"] == digest
    for blob in (config, layer):  # a manifest needs it
        answer = registry.blob(blob, "DELETE")
        assert (answer.status_code, code(answer)) == (405, "UNSUPPORTED")
    for body in (above, made):
        assert registry.manifest(digest_of(body, "sha512"), "DELETE").status_code == 202
        assert registry.manifest(digest_of(body, "sha512")).status_code == 404
    assert registry.blob(layer, "DELETE").status_code == 202


def test_a_manifest_with_another_sha512_is_refused(registry):
    registry.push_blob(b"{}")
    answer = registry.put(digest_of(image(), "sha512"), image() + b"  ")
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    assert registry.manifest(digest_of(image(), "sha512")).status_code == 404


def test_a_manifest_that_needs_an_unknown_sha512_is_refused(registry):
    registry.push_blob(b"{}")
    body = image(layers=[descriptor(BLOB, digest=digest_of(BLOB, "sha512"))])
    answer = registry.put("a-tag", body)
    assert (answer.status_code, code(answer)) == (400, "MANIFEST_BLOB_UNKNOWN")


def test_what_refers_to_a_sha512_is_found(registry):
    registry.push_blob(b"{}")
    subject = descriptor(b"a subject", MANIFEST, digest=digest_of(b"a subject", "sha512"))
    body = image(artifactType=EXAMPLE, subject=subject)
    answer = registry.put(digest_of(body, "sha512"), body)
    assert (answer.status_code, answer.headers["oci-subject"]) == (201, subject["digest"])
    [one] = registry.referrers(subject["digest"]).json()["manifests"]
    assert one["digest"] == digest_of(body, "sha512")


# Tags


def test_a_manifest_that_is_pushed_by_its_digest_gets_every_tag_asked_for(registry):
    registry.push_blob(b"{}")
    body = image()
    answer = registry.put(f"{digest_of(body)}?tag=first&tag=Second&tag=first", body)
    assert answer.status_code == 201
    assert answer.headers.get_list("oci-tag") == ["Second", "first"]
    assert answer.headers["location"] == f"/v2/{registry.name}/manifests/{digest_of(body)}"
    for tag in ("first", "Second"):
        assert registry.manifest(tag).content == body
    assert registry.call("GET", "tags/list").json()["tags"] == ["Second", "first"]


def test_a_manifest_that_is_pushed_by_a_tag_tells_no_other_tags(registry):
    registry.push_blob(b"{}")
    assert "oci-tag" not in registry.put("first", image()).headers
    answer = registry.put("second?tag=third", image())
    assert answer.headers.get_list("oci-tag") == ["second", "third"]


@pytest.mark.parametrize(
    ("tags", "status", "expected"),
    [
        (["good", "not good"], 400, "NAME_INVALID"),
        (["good", digest_of(b"")], 400, "NAME_INVALID"),
        ([f"tag-{number}" for number in range(101)], 400, "MANIFEST_INVALID"),
    ],
)
def test_a_push_with_a_tag_that_cant_be_one_stores_nothing(registry, tags, status, expected):
    registry.push_blob(b"{}")
    query = urlencode([("tag", tag) for tag in tags])
    answer = registry.put(f"{digest_of(image())}?{query}", image())
    assert (answer.status_code, code(answer)) == (status, expected)
    assert registry.manifest(digest_of(image())).status_code == 404
    assert registry.call("GET", "tags/list").json()["tags"] == []


def test_tags_come_in_pages(registry):
    for number in range(4):
        registry.push_image(f"test{number}")
    registry.push_image("Test")
    every = ["Test", "test0", "test1", "test2", "test3"]
    assert registry.call("GET", "tags/list").json()["tags"] == every
    seen, path = [], f"/v2/{registry.name}/tags/list?n=2"
    while path:
        answer = registry.api.get(path)
        seen.append(answer.json()["tags"])
        link = answer.headers.get("link", "")
        assert not link or link.endswith('>; rel="next"')
        path = link.partition("<")[2].partition(">")[0]
    assert seen == [every[:2], every[2:4], every[4:]]
    answer = registry.api.get(f"/v2/{registry.name}/tags/list?n=0")
    assert (answer.json()["tags"], "link" in answer.headers) == ([], False)
    after = registry.api.get(f"/v2/{registry.name}/tags/list?last=test1").json()["tags"]
    assert after == ["test2", "test3"]


# Referrers


def test_referrers_are_listed_by_type_with_their_annotations(registry):
    subject = registry.push_image("image", b"layer")
    about = descriptor(subject, MANIFEST)
    said = {"org.opencontainers.conformance": "hello"}
    made = {}
    for kind, more in {EXAMPLE: {"annotations": said}, OTHER: {}}.items():
        body = image(artifactType=kind, subject=about, **more)
        answer = registry.put(digest_of(body), body)
        assert answer.headers["oci-subject"] == digest_of(subject)
        made[kind] = body
    of_config = encoded(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(b"{}", EXAMPLE),
            "layers": [],
            "subject": about,
        }
    )
    assert registry.put("by-config", of_config).status_code == 201
    listed = index(subject, artifactType=EXAMPLE, subject=about)
    assert registry.put("an-index", listed, INDEX).headers["oci-subject"] == digest_of(subject)
    answer = registry.referrers(digest_of(subject))
    found = {one["digest"]: one for one in answer.json()["manifests"]}
    assert set(found) == {digest_of(one) for one in (*made.values(), of_config, listed)}
    assert found[digest_of(made[EXAMPLE])] == {
        "mediaType": MANIFEST,
        "digest": digest_of(made[EXAMPLE]),
        "size": len(made[EXAMPLE]),
        "artifactType": EXAMPLE,
        "annotations": said,
    }
    assert found[digest_of(of_config)]["artifactType"] == EXAMPLE
    assert found[digest_of(listed)]["mediaType"] == INDEX
    assert "oci-filters-applied" not in answer.headers
    filtered = registry.referrers(digest_of(subject), OTHER)
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert [one["digest"] for one in filtered.json()["manifests"]] == [digest_of(made[OTHER])]


def test_what_refers_to_a_missing_manifest_is_found(registry):
    registry.push_blob(b"{}")
    body = image(artifactType=EXAMPLE, subject=descriptor(b"missing content", MANIFEST))
    answer = registry.put("tagged-artifact", body)
    assert (answer.status_code, answer.headers["oci-subject"]) == (
        201,
        digest_of(b"missing content"),
    )
    [one] = registry.referrers(digest_of(b"missing content")).json()["manifests"]
    assert one["digest"] == digest_of(body)
    registry.manifest(digest_of(body), "DELETE")
    assert registry.referrers(digest_of(b"missing content")).json()["manifests"] == []


# Errors


@pytest.mark.parametrize("name", ["Upper", "a//b", "-a", "a..b", "a_", "x" * 256])
def test_a_name_that_no_repository_can_have_is_refused(registry, name):
    answer = registry.api.request("POST", f"/v2/{name}/blobs/uploads/")
    assert (answer.status_code, code(answer)) == (400, "NAME_INVALID")


def test_a_manifest_whose_blobs_arent_there_is_refused(registry):
    answer = registry.put("tag", image(b"nowhere"))
    assert (answer.status_code, code(answer)) == (400, "MANIFEST_BLOB_UNKNOWN")
    answer = registry.put("tag", index(image()), INDEX)
    assert (answer.status_code, code(answer)) == (400, "MANIFEST_BLOB_UNKNOWN")
