"""Models as OCI repositories: tags, manifests, referrers, and what pushes may not touch."""

from __future__ import annotations

import base64
import json
import os
import re

import pytest
from sqlalchemy import Engine, func, select, update

from farm.api.app import create_app
from farm.database.tables import EngineRow, Model, OciDigest, OciDocument, OciManifest
from farm.registry.oci import derived, manifests, pushed, repositories
from farm.registry.oci.derived import Signature
from farm.settings import Settings
from farm.specs.scopes import Scope
from tests.contract.ages import age
from tests.contract.conftest import Api, request, with_key
from tests.contract.files import run_with_files
from tests.contract.registry import Registry, code, descriptor, digest_of, image, index
from tests.keys import a_key
from tests.statements import counted, of_work

ENGINE, MODEL = manifests.ENGINE, manifests.MODEL
TYPE = manifests.ARTIFACT_TYPE
SIGNATURE = "application/vnd.example.signature.v1+json"


@pytest.fixture
def digits(api, db) -> Registry:
    """Version 1 of a model, with two GPUs' engines."""
    targets = ["tensorrt-rtx:sm_89", "tensorrt-rtx:sm_120"]
    publish(api, db, model="Digits", targets=targets)
    return Registry(api, "digits")


def publish(api: Api, db, **changes) -> None:
    """Submit a version, and have each of its jobs make a file."""
    answer = api.post("/v1/builds", json=request(api, **changes))
    assert answer.status_code == 202, answer.text
    run_with_files(db, api.app.state.services.store)


def entries(registry: Registry, tag: str = "v1") -> list[dict]:
    return registry.manifest(tag).json()["manifests"]


def engine_of(registry: Registry, gpu: str) -> dict:
    """A GPU's entry in the index of version 1."""
    [found] = [one for one in entries(registry) if one.get("platform", {}).get("variant") == gpu]
    return found


# Names


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("ResNet-50", "resnet-50"),
        ("yolo_v8.s", "yolo_v8.s"),
        ("a__b", "a__b"),
        ("a..b", "hex/612e2e62"),
        ("end-", "hex/656e642d"),
    ],
)
def test_a_models_repository_is_its_name_or_spells_it(api, db, model, repository):
    publish(api, db, model=model)
    assert api.get("/v2/_catalog").json() == {"repositories": [repository]}
    assert Registry(api, repository).manifest("v1").status_code == 200
    assert Registry(api, f"hex/{b'digits'.hex()}").manifest("v1").status_code == 404


def test_models_that_differ_in_case_alone_have_repositories_of_their_own(api, db, digits):
    with db.write() as session:
        session.execute(update(Model).values(folded=None))
        session.add(Model(name="digits", folded=None))
    listed = api.get("/v2/_catalog").json()["repositories"]
    assert listed == ["digits", f"hex/{b'Digits'.hex()}"]
    assert digits.manifest("v1").status_code == 404
    assert Registry(api, listed[1]).manifest("v1").status_code == 200


def test_a_model_is_not_found_by_another_spelling(api, digits):
    answer = Registry(api, f"hex/{b'Digits'.hex()}").manifest("v1")
    assert (answer.status_code, code(answer)) == (404, "NAME_UNKNOWN")


# Tags


def test_versions_and_aliases_are_tags(api, db, digits):
    publish(api, db, source={"digest": api.upload(b"another model"), "format": "onnx"})
    assert api.request("PUT", "/v1/models/digits/aliases/canary", json={"version": 2}).is_success
    tags = digits.call("GET", "tags/list").json()["tags"]
    assert tags == ["canary", "v1", "v1-source", "v2", "v2-source"]
    second = digits.manifest("v2").content
    for tag in ("2", "canary", "latest"):
        assert digits.manifest(tag).content == second
    assert api.request("PUT", "/v1/models/digits/aliases/prod", json={"version": 1}).is_success
    first = digits.manifest("v1").content
    assert first != second
    for tag in ("prod", "latest"):
        assert digits.manifest(tag).content == first


def test_a_tag_is_an_index_of_engines_by_gpu_with_the_source_last(digits):
    answer = digits.manifest("v1")
    assert answer.headers["content-type"] == manifests.INDEX
    assert answer.headers["docker-content-digest"] == digest_of(answer.content)
    *engines, source = answer.json()["manifests"]
    assert [one["platform"] for one in engines] == [
        {"os": "linux", "architecture": "amd64", "variant": gpu} for gpu in ("sm_120", "sm_89")
    ]
    said = engines[1]["annotations"]
    assert {name: said[f"farm.engine.{name}"] for name in ("gpu", "precision", "runtime")} == {
        "gpu": "sm_89",
        "precision": "fp16",
        "runtime": "tensorrt-rtx",
    }
    assert said["farm.engine.compute-capability"] == "sm_89"
    engine = digits.api.get(f"/v1/engines/{said['farm.engine.id']}").json()
    assert json.loads(said["farm.engine.toolchain"]) == engine["toolchain"]
    assert [one["annotations"][TYPE] for one in engines] == [ENGINE, ENGINE]
    assert (source["annotations"][TYPE], "platform" in source) == (MODEL, False)


def test_what_a_pull_takes_comes_first_for_its_gpu(api, db):
    publish(api, db, model="digits", precisions=["fp32", "fp16"])
    for winner in ("fp32", "fp16"):
        taken = api.get(f"/v1/models/digits/engines/sm_89?precision={winner}").json()["engine"]
        assert taken["precision"] == winner
    best = api.get("/v1/models/digits/engines/sm_89").json()["engine"]["id"]
    first, second, _ = entries(Registry(api, "digits"))
    assert first["annotations"]["farm.engine.id"] == best
    assert second["platform"] == first["platform"]


# Manifests


def test_an_engine_is_an_artifact_with_its_bytes_and_the_farms_manifest(api, digits):
    entry = engine_of(digits, "sm_89")
    answer = digits.manifest(entry["digest"])
    assert digest_of(answer.content) == entry["digest"]
    assert len(answer.content) == entry["size"]
    manifest = answer.json()
    assert manifest["artifactType"] == ENGINE
    engine = api.get(f"/v1/engines/{manifest['annotations']['farm.engine.id']}").json()
    [layer] = manifest["layers"]
    assert (layer["digest"], layer["size"]) == (engine["digest"], engine["bytes"])
    title = layer["annotations"]["org.opencontainers.image.title"]
    assert title == "Digits-v1-fp16-sm_89.engine"
    content = digits.blob(layer["digest"])
    assert digest_of(content.content) == layer["digest"]
    config = digits.blob(manifest["config"]["digest"])
    assert digest_of(config.content) == manifest["config"]["digest"]
    said = config.json()
    assert (said["engine"]["id"], said["engine"]["digest"]) == (engine["id"], engine["digest"])
    whole = api.get(f"/v1/engines/{engine['id']}/manifest").json()
    assert (said["provenance"], said["load"]) == (whole["provenance"], whole["load"])


def test_a_source_is_a_model_pack(digits):
    answer = digits.manifest("v1-source")
    manifest = answer.json()
    assert entries(digits)[-1]["digest"] == digest_of(answer.content)
    assert manifest["artifactType"] == MODEL
    [layer] = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert layer["annotations"]["org.cncf.model.filepath"] == "Digits-v1.onnx"
    assert digits.blob(layer["digest"]).content == b"a model"
    config = digits.blob(manifest["config"]["digest"]).json()
    assert config["descriptor"]["name"] == "Digits"
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"]]}
    assert config["config"] == {"format": "onnx"}


def test_a_digest_can_be_asked_for_before_any_tag_was(api, db, digits):
    before = {one["digest"] for one in entries(digits)[:-1]}
    with db.write() as session:
        for table in (OciManifest, OciDocument):
            session.query(table).delete()
    for digest in before:
        assert digest_of(digits.manifest(digest).content) == digest
        assert digits.manifest(digest).status_code == 200


@pytest.mark.parametrize("ask", [Registry.manifest, Registry.referrers])
def test_digests_that_there_arent_cost_the_manifests_of_all_engines_once(digits, monkeypatch, ask):
    made: list[str] = []
    make = derived._engine
    monkeypatch.setattr(derived, "_engine", lambda s, v: (made.append(v.id), make(s, v))[1])
    monkeypatch.setattr(repositories, "_MOST_ENGINES", 1)
    for content in (b"one", b"two"):
        assert ask(digits, digest_of(content)).status_code in (200, 404)
    assert len(made) == len(set(made)) == 2


def test_a_manifest_that_was_pushed_before_the_farm_made_it_is_the_farms(api, db, digits):
    entry = engine_of(digits, "sm_89")
    body = digits.manifest(entry["digest"]).content
    config = digits.blob(json.loads(body)["config"]["digest"]).content
    with db.write() as session:
        for table in (OciManifest, OciDocument):
            session.query(table).delete()
    digits.push_blob(config)
    assert digits.put(entry["digest"], body).status_code == 201
    assert entry["digest"] in [one["digest"] for one in entries(digits)]
    answer = digits.manifest(entry["digest"], "DELETE")
    assert (answer.status_code, code(answer)) == (405, "UNSUPPORTED")


def test_an_engines_manifest_stays_whatever_happens_to_the_engine(api, db, digits):
    entry = engine_of(digits, "sm_89")
    before = digits.manifest(entry["digest"]).content
    index = digits.manifest("v1").headers["docker-content-digest"]
    engine = entry["annotations"]["farm.engine.id"]
    publish(api, db, model="digits")
    assert api.post(f"/v1/engines/{engine}/yank", json={"reason": "slow"}).is_success
    with db.write() as session:  # as if a later farm wrote other words
        session.execute(update(EngineRow).values(runtime_version="9.9"))
    assert digits.manifest(entry["digest"]).content == before
    assert digits.manifest(index).status_code == 200
    listed = [one["digest"] for one in entries(digits)]
    assert entry["digest"] not in listed
    assert len(listed) == 2
    assert digits.manifest("v1").headers["docker-content-digest"] != index


def test_a_yanked_version_is_served_by_its_number_alone(api, digits):
    assert api.request("PUT", "/v1/models/digits/aliases/prod", json={"version": 1}).is_success
    yank = "/v1/models/digits/versions/1/yank"
    assert api.post(yank, json={"reason": "it guesses"}).is_success
    assert digits.call("GET", "tags/list").json()["tags"] == []
    answer = digits.manifest("prod")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")
    assert "it guesses" in answer.json()["errors"][0]["message"]
    index = digits.manifest("v1").json()
    assert index["annotations"]["farm.engine.yanked"] == "it guesses"


def test_doubtful_engines_are_not_in_the_index(api, db, digits):
    with db.write() as session:
        session.execute(update(EngineRow).values(state="doubtful"))
    assert [one["annotations"][TYPE] for one in entries(digits)] == [MODEL]


def test_what_is_served_is_kept_once(db, digits):
    def rows():
        with db.read() as session:
            return session.scalar(select(func.count()).select_from(OciManifest))

    for _ in range(3):
        digits.manifest("v1")
        digits.referrers(engine_of(digits, "sm_89")["digest"])
    assert rows() == 2 + 1 + 1 + 1  # engines, source, index, one accuracy


def test_a_client_that_has_a_manifest_isnt_sent_it_again(digits):
    etag = digits.manifest("v1").headers["etag"]
    answer = digits.call("GET", "manifests/v1", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


# Referrers


def test_an_engines_reports_and_signature_refer_to_it(digits, monkeypatch):
    def signed(_session, engine_id):
        return Signature(media_type=SIGNATURE, file_name="bundle.json", body=engine_id.encode())

    entry = engine_of(digits, "sm_89")
    monkeypatch.setattr(derived, "signature_of", signed)
    answer = digits.referrers(entry["digest"])
    listed = {one["artifactType"]: one for one in answer.json()["manifests"]}
    assert set(listed) == {SIGNATURE, manifests.ACCURACY}
    manifest = digits.manifest(listed[SIGNATURE]["digest"]).json()
    assert manifest["subject"]["digest"] == entry["digest"]
    assert digits.blob(manifest["config"]["digest"]).content == b"{}"
    [layer] = manifest["layers"]
    body = digits.blob(layer["digest"]).content
    assert body.decode() == entry["annotations"]["farm.engine.id"]
    [layer] = digits.manifest(listed[manifests.ACCURACY]["digest"]).json()["layers"]
    assert digits.blob(layer["digest"]).json()["cosine"] == 1.0
    [only] = digits.referrers(entry["digest"], SIGNATURE).json()["manifests"]
    assert only == listed[SIGNATURE]


def test_what_refers_to_an_engine_can_be_asked_for_before_its_manifest_was(db, digits):
    digest = engine_of(digits, "sm_89")["digest"]
    before = digits.referrers(digest).json()
    with db.write() as session:
        for table in (OciManifest, OciDocument):
            session.query(table).delete()
    assert digits.referrers(digest).json() == before
    assert len(before["manifests"]) == 1


def test_what_is_pushed_about_an_engine_refers_to_it_too(api, digits):
    entry = engine_of(digits, "sm_89")
    digits.push_blob(b"{}")
    subject = {name: entry[name] for name in ("mediaType", "digest", "size")}
    scan = image(artifactType="application/vnd.example.scan", subject=subject)
    assert digits.put("scan-1", scan).status_code == 201
    listed = [one["digest"] for one in digits.referrers(entry["digest"]).json()["manifests"]]
    assert digest_of(scan) in listed
    assert len(listed) == 2


# Blobs


def test_a_repository_serves_its_own_blobs_alone(api, db, digits):
    data = api.upload(b"calibration data")
    publish(api, db, model="others", source={"digest": api.upload(b"other"), "format": "onnx"})
    for digest in (data, digest_of(b"other")):
        answer = digits.blob(digest)
        assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")
    assert digits.blob(digest_of(b"a model")).content == b"a model"


def test_a_lost_engine_is_said_to_be_damaged(api, digits):
    [layer] = digits.manifest(engine_of(digits, "sm_89")["digest"]).json()["layers"]
    api.app.state.services.store.condemn(layer["digest"])
    answer = digits.blob(layer["digest"])
    assert (answer.status_code, code(answer)) == (503, "UNAVAILABLE")


# Keys


def basic(user: str, key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"}


@pytest.mark.parametrize("user", ["", "farm", "any one"])
def test_a_key_is_the_password_of_any_user(api, user):
    nobody = with_key(api, None)
    answer = nobody.get("/v2/")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="engine farm"'
    assert nobody.get("/v2/", headers=basic(user, api.key)).status_code == 200
    refused = nobody.get("/v2/", headers=basic(user, api.key + "x"))
    assert (refused.status_code, code(refused)) == (401, "UNAUTHORIZED")


def test_passwords_open_nothing_but_the_registry(api):
    answer = with_key(api, None).get("/v1/models", headers=basic("farm", api.key))
    assert answer.status_code == 401


def test_pushing_takes_the_scope_submit_and_deleting_admin(api, db):
    keys = [a_key(db, scope) for scope in (Scope.READ, Scope.SUBMIT)]
    reader, pusher = (Registry(with_key(api, key), "pushed") for key in keys)
    answer = reader.call("POST", "blobs/uploads/")
    assert (answer.status_code, code(answer)) == (403, "DENIED")
    pusher.push_image("mine", b"layer")
    assert reader.manifest("mine").status_code == 200
    answer = pusher.manifest("mine", "DELETE")
    assert (answer.status_code, code(answer)) == (403, "DENIED")
    assert Registry(api, "pushed").manifest("mine", "DELETE").status_code == 202


# Pushes beside a model


@pytest.mark.parametrize(
    "tag",
    [
        "v1",
        "1",
        "v7",
        "v1-source",
        "prod",
        "latest",
        "canary",
        "V7",
        "v07",
        "Latest",
        "PROD",
        "Canary",
    ],
)
def test_a_push_moves_no_version_and_no_alias(api, digits, tag):
    assert api.request("PUT", "/v1/models/digits/aliases/canary", json={"version": 1}).is_success
    before = digits.manifest("v1").content
    digits.push_blob(b"{}")
    by_digest = f"{digest_of(image())}?tag=mine&tag={tag}"
    for answer in (
        digits.put(tag, image()),
        digits.put(by_digest, image()),
        digits.manifest(tag, "DELETE"),
    ):
        assert (answer.status_code, code(answer)) == (403, "DENIED")
        assert "farm promote" in answer.json()["errors"][0]["detail"]["hint"]
    assert digits.manifest("v1").content == before
    assert digits.manifest("mine").status_code == 404


def test_an_alias_hides_a_tag_that_was_pushed_before(api, digits):
    pushed = digits.push_image("canary")
    assert digits.manifest("canary").content == pushed
    assert api.request("PUT", "/v1/models/digits/aliases/canary", json={"version": 1}).is_success
    assert digits.manifest("canary").content == digits.manifest("v1").content


def test_what_the_farm_made_is_not_deleted(digits):
    entry = engine_of(digits, "sm_89")
    answer = digits.manifest(entry["digest"], "DELETE")
    assert (answer.status_code, code(answer)) == (405, "UNSUPPORTED")
    assert "farm yank" in answer.json()["errors"][0]["detail"]["hint"]
    [layer] = digits.manifest(entry["digest"]).json()["layers"]
    assert digits.blob(layer["digest"], "DELETE").status_code == 404
    assert digits.blob(layer["digest"]).status_code == 200


def test_a_pushed_source_can_be_submitted(api, db):
    body = image(b"{}", b"a pushed model")
    registry = Registry(api, "team/sources")
    registry.push_image("first", b"a pushed model")
    assert registry.manifest("first").content == body
    source = {"digest": digest_of(b"a pushed model"), "format": "onnx"}
    publish(api, db, model="fresh", source=source)
    [layer] = Registry(api, "fresh").manifest("v1-source").json()["layers"]
    assert layer["digest"] == source["digest"]


def test_garbage_collection_keeps_what_pushed_manifests_need(api, db):
    registry = Registry(api, "kept")
    registry.push_image("mine", b"needed")
    registry.push_blob(b"not needed")
    services = api.app.state.services
    for content in (b"{}", b"needed", b"not needed"):
        age(services, digest_of(content))
    api.post("/v1/gc", json={"older_than_s": 7200})
    assert registry.blob(digest_of(b"needed")).content == b"needed"
    assert registry.blob(digest_of(b"not needed")).status_code == 404
    assert registry.manifest("mine", "DELETE").status_code == 202
    assert registry.manifest(digest_of(image(b"{}", b"needed")), "DELETE").status_code == 202
    api.post("/v1/gc", json={"older_than_s": 7200})
    assert registry.blob(digest_of(b"needed")).status_code == 404


def test_garbage_collection_keeps_what_a_manifest_needs_by_its_sha512(api, db):
    registry = Registry(api, "kept")
    for content in (b"{}", b"needed", b"not needed"):
        registry.push_blob(content, "sha512")
    needed, not_needed = (digest_of(content, "sha512") for content in (b"needed", b"not needed"))
    body = image(layers=[descriptor(b"needed", digest=needed)])
    assert registry.put(digest_of(body, "sha512"), body).status_code == 201
    for content in (b"{}", b"needed", b"not needed"):
        age(api.app.state.services, digest_of(content))
    api.post("/v1/gc", json={"older_than_s": 7200})
    assert registry.blob(needed).content == b"needed"
    assert registry.blob(not_needed).status_code == 404
    with db.read() as session:
        assert not_needed not in set(session.scalars(select(OciDigest.digest)))
    # What was collected can be pushed again.
    registry.push_blob(b"not needed", "sha512")
    assert registry.blob(not_needed).content == b"not needed"


@pytest.mark.parametrize("collect", ["gc", "the keeper"])
def test_uploads_that_rested_for_long_are_collected(api, collect):
    registry, services = Registry(api, "left"), api.app.state.services
    left = registry.begin()
    registry.patch(left, b"half")
    [file] = (services.settings.store_dir / "uploads").iterdir()
    api.post("/v1/gc", json={"older_than_s": 0})
    assert file.is_file()
    os.utime(file, (0, 0))
    if collect == "gc":
        api.post("/v1/gc", json={"older_than_s": 0, "dry_run": True})
        assert file.is_file()
        api.post("/v1/gc", json={"older_than_s": 0})
    else:
        services.keeper.round()
    assert not file.exists()


def test_a_blob_that_a_manifest_needs_is_not_deleted(api):
    registry = Registry(api, "kept")
    registry.push_image("mine", b"needed")
    answer = registry.blob(digest_of(b"needed"), "DELETE")
    assert (answer.status_code, code(answer)) == (405, "UNSUPPORTED")


# Bad input


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2}',
        b'{"schemaVersion": 2, "config": {"digest": 7}}',
        b'{"schemaVersion": 2, "config": {"mediaType": "x", "digest": "sha256:x", "size": 1}}',
        b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}',
        json.dumps({"schemaVersion": 2, "config": descriptor(b"{}"), "layers": {}}).encode(),
        json.dumps({"schemaVersion": 2, "config": descriptor(b"{}") | {"size": 9}}).encode(),
        image().replace(b'"layers": []', b'"layers": [], "layers": []'),
        image().decode().encode("utf-16"),
        image(manifests=[]),
        image(annotations=["a"]),
        image(annotations={"a": 1}),
        image(annotations={"a": "\ud800"}),
        image(artifactType="\ud800"),
        image(artifactType=7),
        image(subject=descriptor(b""), annotations={"a": "x" * 65536}),
    ],
)
def test_what_isnt_a_manifest_is_refused(api, body):
    registry = Registry(api, "bad")
    registry.push_blob(b"{}")
    answer = registry.put("tag", body)
    assert answer.status_code == 400
    assert re.fullmatch("MANIFEST_INVALID|DIGEST_INVALID", code(answer))


@pytest.mark.parametrize("more", [{"config": "x"}, {"layers": []}, {"config": descriptor(b"{}")}])
def test_an_index_that_may_be_read_as_a_manifest_is_refused(api, more):
    answer = Registry(api, "bad").put("tag", index(**more), manifests.INDEX)
    assert (answer.status_code, code(answer)) == (400, "MANIFEST_INVALID")


def test_a_manifest_of_many_layers_takes_as_many_statements_as_one_of_few(api):
    registry = Registry(api, "many")
    layers = [str(number).encode() for number in range(20)]
    for one in (b"{}", *layers):
        registry.push_blob(one)
    asked = []
    for many in (1, 20):
        body = image(b"{}", *layers[:many], *layers[:many])
        with counted(Engine) as statements:
            assert registry.put(f"of-{many}", body).status_code == 201
        asked.append(len(of_work(statements)))
    assert asked[0] == asked[1]


def test_a_manifest_has_so_many_referrers_and_no_more(api, monkeypatch):
    monkeypatch.setattr(pushed, "_MOST_REFERRERS", 2)
    registry = Registry(api, "about")
    registry.push_blob(b"{}")
    scans = [image(subject=descriptor(b""), artifactType=f"a/{n}") for n in range(3)]
    answers = [registry.put(digest_of(one), one) for one in (*scans, scans[0])]
    assert [one.status_code for one in answers] == [201, 201, 400, 201]
    assert len(registry.referrers(digest_of(b"")).json()["manifests"]) == 2


def test_a_manifest_of_another_type_is_refused(api):
    registry = Registry(api, "bad")
    registry.push_blob(b"{}")
    for media_type in ("application/json", manifests.INDEX):
        answer = registry.put("tag", image(), media_type)
        assert (answer.status_code, code(answer)) == (400, "MANIFEST_INVALID")


def test_a_manifest_may_have_four_mebibytes(api):
    registry = Registry(api, "bad")
    answer = registry.put("tag", b" " * (4 * 2**20 + 1))
    assert (answer.status_code, code(answer)) == (413, "SIZE_INVALID")


def test_an_upload_may_have_no_more_than_a_blob(settings: Settings):
    settings = settings.model_copy(update={"max_upload_bytes": 10})
    registry = Registry(Api(create_app(settings)), "big")
    location = registry.begin()
    assert registry.patch(location, b"12345678").status_code == 202
    answer = registry.patch(location, b"12345678")
    assert (answer.status_code, code(answer)) == (413, "SIZE_INVALID")
    assert registry.patch(location, b"x" * 11).status_code == 413


def test_an_upload_belongs_to_its_repository(api):
    location = Registry(api, "mine").begin()
    stolen = location.replace("/mine/", "/yours/")
    answer = api.request("PATCH", stolen, content=b"x")
    assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("upload", ["*", "a" * 32, "[0-9a-f]*"])
def test_what_isnt_an_upload_is_not_found(api, upload):
    registry = Registry(api, "mine")
    registry.begin()
    answer = registry.call("PATCH", f"blobs/uploads/{upload}", content=b"x")
    assert answer.status_code == 404


@pytest.mark.parametrize("sent", ["9-1", "x", "0-99", "bytes=0-3", "0-" + "9" * 30])
def test_a_range_that_isnt_one_is_refused(api, sent):
    registry = Registry(api, "mine")
    headers = {"Content-Range": sent}
    answer = api.request("PATCH", registry.begin(), content=b"1234", headers=headers)
    assert (answer.status_code, code(answer)) == (416, "BLOB_UPLOAD_INVALID")


def test_a_page_of_fewer_than_no_tags_is_refused(digits):
    answer = digits.call("GET", "tags/list?n=-1")
    assert (answer.status_code, code(answer)) == (422, "UNSUPPORTED")


def test_a_tag_that_an_administrator_wrote_is_moved_by_administrators_alone(api):
    mine = with_key(api, a_key(api.app.state.services.db, "submit"))
    admins, others = Registry(api, "mirror/digits"), Registry(mine, "mirror/digits")
    first = admins.push_image("v1", b"first")
    others.push_blob(b"forged")
    forged = image(b"{}", b"forged")
    refused = others.put("v1", forged)
    assert (refused.status_code, code(refused)) == (403, "DENIED")
    assert "ask an administrator" in refused.json()["errors"][0]["detail"]["hint"]
    assert admins.manifest("v1").content == first
    # The same again moves nothing; nor does it become the other key's.
    assert others.put("v1", first).status_code == 201
    assert code(others.put("v1", forged)) == "DENIED"
    assert code(others.put(f"{digest_of(forged)}?tag=v1", forged)) == "DENIED"
    # A key's own tags move, until an administrator writes them.
    assert others.put("mine", first).status_code == 201
    assert others.put("mine", forged).status_code == 201
    assert admins.put("mine", first).status_code == 201
    assert code(others.put("mine", forged)) == "DENIED"
    assert admins.put("v1", forged).status_code == 201
    assert admins.manifest("v1").content == forged
