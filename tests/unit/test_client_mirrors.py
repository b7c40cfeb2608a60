"""``farm mirror`` from a farm that lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from farm.cli import app, exits
from farm.client import Backoff, Farm
from farm.client.meant import Meant
from farm.client.mirrors import _INDEX, _MANIFEST
from farm.errors import FarmError, KeyNeeded
from farm.schemas.mirrors import Mirrored
from farm.testing.stub_farm import StubFarm

CONFIG = b"{}"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def descriptor(content: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": _MANIFEST, "digest": digest_of(content), "size": len(content)} | more


def manifest(**more: Any) -> bytes:
    made = {"schemaVersion": 2, "config": descriptor(CONFIG), "layers": []} | more
    return json.dumps(made).encode()


@dataclass
class Origin:
    """A farm that serves what a test says."""

    tags: dict[str, bytes] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    referrers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, content: bytes) -> dict[str, Any]:
        self.documents[digest_of(content)] = content
        return descriptor(content)

    def index(self, tag: str, *entries: dict[str, Any], **more: Any) -> None:
        self.tags[tag] = json.dumps({"manifests": list(entries)} | more).encode()

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.path)
        *_, kind, reference = request.url.path.split("/")
        if kind == "referrers":
            return httpx2.Response(200, json={"manifests": self.referrers.get(reference, [])})
        content = self.tags.get(reference) or self.documents[reference]
        return httpx2.Response(
            200, content=content, headers={"Docker-Content-Digest": digest_of(content)}
        )


@dataclass
class Here:
    """A farm that takes everything."""

    tags: list[str] = field(default_factory=list)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        if request.method == "HEAD":
            return httpx2.Response(200)
        self.tags.append(request.url.path.rpartition("/")[2])
        return httpx2.Response(201)


@pytest.fixture
def origin() -> Origin:
    made = Origin()
    made.documents[digest_of(CONFIG)] = CONFIG
    return made


@pytest.fixture
def here() -> Here:
    return Here()


Mirror = Callable[[str], Mirrored]


@pytest.fixture
def mirror(origin: Origin, here: Here) -> Mirror:
    def go(model: str) -> Mirrored:
        backoff = Backoff(attempts=1, first_s=0)
        other = Farm(
            "http://other", key="", backoff=backoff, transport=httpx2.MockTransport(origin.answer)
        )
        ours = Farm(
            "http://ours", key="k", backoff=backoff, transport=httpx2.MockTransport(here.answer)
        )
        with other, ours:
            return ours.mirror(other.http, model, register=False)

    return go


def test_what_refers_to_a_referrer_is_never_asked_for(
    origin: Origin, here: Here, mirror: Mirror
) -> None:
    engine = origin.add(manifest())
    about = origin.add(manifest(annotations={"a": "report without a subject"}))
    origin.index("latest", engine)
    # It says of both that the report refers to them: without end, if anybody followed.
    origin.referrers = {engine["digest"]: [about], about["digest"]: [about]}
    made = mirror("digits")
    assert (made.manifests, here.tags) == (
        2,
        [engine["digest"], about["digest"], "latest"],
    )


def test_no_other_version_than_the_one_asked_for_gets_a_tag(
    origin: Origin, here: Here, mirror: Mirror
) -> None:
    origin.index("v7", annotations={"org.opencontainers.image.version": "v9"})
    with pytest.raises(FarmError, match="sent v9 for v7; no tag was set"):
        mirror("digits@7")
    assert here.tags == []


@pytest.mark.parametrize(
    ("entry", "annotations"),
    [
        ({"size": -1}, {}),
        ({"size": 2**63}, {}),
        ({"digest": "../../v1/keys"}, {}),
    ],
)
def test_descriptors_that_cannot_be_are_refused(
    origin: Origin, here: Here, mirror: Mirror, entry: dict[str, Any], annotations: Any
) -> None:
    origin.index("latest", descriptor(b"") | entry, annotations=annotations)
    with pytest.raises(FarmError):
        mirror("digits")
    assert here.tags == []


def test_annotations_of_another_kind_say_no_version(
    origin: Origin, here: Here, mirror: Mirror
) -> None:
    origin.index("latest", _index_of := origin.add(manifest()), annotations=["v7"])
    assert mirror("digits").tag == "latest"
    assert here.tags == [_index_of["digest"], "latest"]


def test_an_index_among_the_referrers_is_left_out(origin: Origin, mirror: Mirror) -> None:
    engine = origin.add(manifest())
    origin.index("latest", engine)
    origin.referrers[engine["digest"]] = [descriptor(b"an index", mediaType=_INDEX)]
    assert mirror("digits").manifests == 1


def test_the_other_farm_is_never_sent_this_farms_key(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_KEY", "farm_ours")
    monkeypatch.delenv("FARM_FROM_KEY", raising=False)
    ran = CliRunner().invoke(app, ["mirror", stub.url, "digits"])
    assert ran.exit_code == exits.NOT_FOUND
    monkeypatch.setenv("FARM_FROM_KEY", "farm_theirs")
    CliRunner().invoke(app, ["mirror", stub.url, "digits"])
    sent = [headers.get("authorization") for _, _, headers in stub.seen]
    assert set(sent[: len(sent) // 2]) == {None}
    assert set(sent[len(sent) // 2 :]) == {"Bearer farm_theirs"}


def test_errors_say_which_of_the_two_farms_they_are_of(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = "http://127.0.0.1:1"

    def mirror(origin: str, ours: str) -> dict[str, Any]:
        monkeypatch.setenv("FARM_URL", ours)
        ran = CliRunner().invoke(app, ["mirror", origin, "digits", "--json"])
        told: dict[str, Any] = json.loads(ran.stderr)
        return told

    monkeypatch.setattr("farm.client.farm.Backoff", lambda: Backoff(attempts=1))
    gone = mirror(nobody, stub.url)
    assert gone["detail"].startswith(f"the farm to copy from, {nobody}: no farm answers")
    assert "FROM_URL, the first argument, says where it is" in gone["hint"]
    assert "FARM_URL" not in gone["hint"]

    index = "/v2/digits/manifests/latest"
    stub.problems[index] = [(401, {"code": "key-needed", "detail": "this farm requires a key"})]
    keyless = mirror(stub.url, nobody)
    assert keyless["detail"] == f"the farm to copy from, {stub.url}: this farm requires a key"
    assert keyless["hint"].startswith("set FARM_FROM_KEY to a key of that farm")
    refused = {"code": "scope-missing", "detail": "this requires the scope read", "hint": "ask"}
    stub.problems[index] = [(403, refused)]
    assert mirror(stub.url, nobody)["hint"] == "FARM_FROM_KEY holds the key for that farm: ask"


def test_this_farms_errors_are_told_as_its_own_in_a_mirror(origin: Origin) -> None:
    origin.index("latest", origin.add(manifest()))
    other = Farm("http://other", key="", transport=httpx2.MockTransport(origin.answer))

    def refuses(_: httpx2.Request) -> httpx2.Response:
        challenge = 'Bearer realm="engine farm"'
        return httpx2.Response(401, headers={"WWW-Authenticate": challenge})

    ours = Farm(
        "http://ours",
        key="k",
        transport=httpx2.MockTransport(refuses),
        meant=Meant(called="the farm to copy to"),
    )
    with other, ours, pytest.raises(KeyNeeded) as told:
        ours.mirror(other.http, "digits", register=False)
    assert told.value.detail == "the farm to copy to, http://ours: this farm requires a key"
    assert str(told.value.hint).startswith("pass a key of this farm")
