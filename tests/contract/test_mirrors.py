"""A version of one farm in another: copied, registered on its signatures' word, pulled and reused there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from farm.api.app import create_app
from farm.client import Farm
from farm.client.verify import Verdict, verify_file
from farm.database import migrate
from farm.database.base import now
from farm.database.tables import Artifact, Build, EngineRow, Job, Model, OciManifest, Version
from farm.errors import Conflict, InvalidRequest, SignatureRefused, SigningKeyUnknown
from farm.registry.oci import manifests
from farm.schemas.mirrors import Mirrored
from farm.settings import Settings
from farm.signing import bundles, signers
from farm.signing.bundles import MEDIA_TYPE
from farm.specs.scopes import Scope
from tests.contract.conftest import Api
from tests.contract.files import Files
from tests.contract.registry import Registry, digest_of, encoded
from tests.contract.test_api import problem
from tests.contract.test_key_clients import Bridge
from tests.keys import a_key

SOURCE = b"a model to mirror"
TARGETS = ["onnxruntime:cpu", "tensorrt-rtx:sm_89"]


@dataclass
class One:
    """A farm in this process, with a worker."""

    api: Api
    settings: Settings
    url: str
    home: Path

    @property
    def services(self) -> Any:
        return self.api.app.state.services

    @property
    def db(self) -> Any:
        return self.services.db

    @property
    def client(self) -> Farm:
        return Farm(self.url, key=self.api.key, transport=Bridge(self.api), home=self.home)

    def ledger(self) -> Files:
        made = Files(self.db, self.services.store)
        made.worker()
        return made

    def submit(self, **changes: Any) -> dict[str, Any]:
        asked = {
            "model": "digits",
            "source": {"digest": self.api.upload(SOURCE), "format": "onnx"},
            "precisions": ["fp16"],
            "targets": TARGETS,
        }
        answer = self.api.post("/v1/builds", json=asked | changes)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def engines(self, model: str = "digits") -> list[dict[str, Any]]:
        return list(self.api.get(f"/v1/models/{model}/engines").json()["items"])

    def rows(self) -> dict[str, int]:
        """How many there are of all that a registration makes."""
        with self.db.read() as session:
            return {
                table.__tablename__: session.scalar(select(func.count()).select_from(table))
                for table in (Model, Version, Build, Job, EngineRow)
            }


def a_farm(settings: Settings, url: str, home: Path) -> Iterator[One]:
    app = create_app(settings)
    yield One(api=Api(app), settings=settings, url=url, home=home)
    app.state.services.db.dispose()


@pytest.fixture
def first(settings: Settings, tmp_path: Path) -> Iterator[One]:
    """Has engines of digits, and signs them."""
    signers.make(settings.signing_key_file)
    for one in a_farm(settings, "http://127.0.0.1:8001", tmp_path / "client"):
        one.ledger()
        one.submit()
        one.ledger().run_all()
        for engine in one.engines():
            assert one.api.get(f"/v1/engines/{engine['id']}/signature").is_success
        yield one


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "farm.db"
    migrate.upgrade(Settings(database_url=f"sqlite:///{path}"))
    return path


@pytest.fixture
def second(migrated: Path, tmp_path: Path) -> Iterator[One]:
    home = tmp_path / "second"
    home.mkdir(mode=0o700)
    settings = Settings(home=home, database_url=f"sqlite:///{home / 'farm.db'}")
    shutil.copyfile(migrated, home / "farm.db")
    for one in a_farm(settings, "http://127.0.0.1:8002", tmp_path / "client"):
        one.ledger()
        yield one


def mirrored(first: One, second: One, model: str = "digits", **options: Any) -> Mirrored:
    return second.client.mirror(first.client.http, model, **options)


def as_said(engine: dict[str, Any]) -> dict[str, Any]:
    """What mirroring doesn't change of an engine."""
    own = {"id", "version", "build", "created_at"}
    return {name: value for name, value in engine.items() if name not in own}


# What the second farm has


def test_the_second_farm_has_the_version_with_its_engines_as_the_first_says(first, second):
    made = mirrored(first, second).registered
    assert made is not None
    assert (made.model, made.version, made.left_out) == ("digits", 1, [])
    theirs = {one["id"]: one for one in first.engines()}
    mine = {one["id"]: one for one in second.engines()}
    assert len(mine) == 2
    for one in made.engines:
        assert one.is_new
        assert as_said(mine[one.id]) == as_said(theirs[one.origin])


def test_farm_pull_gets_a_mirrored_engine_from_the_second_farm(first, second, tmp_path):
    key = signers.make(second.settings.signing_key_file).key
    mirrored(first, second)
    pulled = second.client.pull("digits", "cpu", tmp_path / "engines")
    [theirs] = [one for one in first.engines() if one["gpu"] == "cpu"]
    assert digest_of(pulled.path.read_bytes()) == theirs["digest"]
    verified = verify_file(pulled.path, home=second.home)
    assert (verified.verdict, verified.key) == (Verdict.VERIFIED, key.id)
    assert verified.farm == second.url


def test_its_provenance_says_whose_it_is(first, second):
    made = mirrored(first, second).registered
    key = signers.FileSigner.read(first.settings.signing_key_file).key
    for one in made.engines:
        manifest = second.api.get(f"/v1/engines/{one.id}/manifest").json()
        theirs = first.api.get(f"/v1/engines/{one.origin}/manifest").json()
        for part in ("build", "measure"):
            said = manifest["provenance"][part]
            assert said["key"] == theirs["provenance"][part]["key"]
            assert said["recipe"] == theirs["provenance"][part]["recipe"]
            assert said["mirrored"]["farm"] == "http://127.0.0.1:8001"
            assert said["mirrored"]["signing_key"] == key.fingerprint
            assert said["mirrored"]["worker"] == "cpu@here"
        assert manifest["provenance"]["build"]["mirrored"]["engine"] == one.origin


def test_what_is_built_on_the_first_farm_isnt_built_again_on_the_second(first, second):
    mirrored(first, second)
    before = second.rows()
    build = second.submit()
    assert build["state"] == "succeeded"
    assert {job["reuse"] for job in build["jobs"]} == {"cached"}
    assert {one["engine"] for one in build["engines"]} == {one["id"] for one in second.engines()}
    assert second.rows() == before | {"builds": before["builds"] + 1}


def test_mirroring_again_changes_nothing(first, second):
    made = mirrored(first, second).registered
    before = second.rows()
    again = mirrored(first, second, "digits@1").registered
    assert [(one.id, one.is_new) for one in again.engines] == [
        (one.id, False) for one in made.engines
    ]
    assert second.rows() == before


def test_what_the_second_farm_built_itself_stays_its_own(first, second):
    second.submit(source={"digest": second.api.upload(b"before"), "format": "onnx"}, model="else")
    second.submit(targets=["onnxruntime:cpu"])
    second.ledger().run_all()
    [own] = second.engines()
    made = mirrored(first, second).registered
    assert [one["id"] for one in second.engines() if one["gpu"] == "cpu"] == [own["id"]]
    [theirs] = [one for one in first.engines() if one["gpu"] == "cpu"]
    assert theirs["digest"] != own["digest"]
    [left] = made.left_out
    assert (left.origin, "built the same itself" in left.why) == (theirs["id"], True)
    assert {one["gpu"] for one in second.engines()} == {"cpu", "sm_89"}


def test_a_version_of_which_nothing_can_be_taken_isnt_registered(first, second):
    second.submit()
    before = second.rows()
    with pytest.raises(Conflict, match="about to do the same work itself"):
        mirrored(first, second)
    assert second.rows() == before


def test_work_that_is_on_its_way_isnt_taken_over(first, second):
    build = second.submit(targets=["onnxruntime:cpu"])
    made = mirrored(first, second).registered
    [left] = made.left_out
    assert "about to do the same work itself" in left.why
    assert len(made.engines) == 1
    second.ledger().run_all()
    assert second.api.get(f"/v1/builds/{build['id']}").json()["state"] == "succeeded"


def test_a_mirrored_build_is_shown_and_explained_as_any(first, second):
    made = mirrored(first, second).registered
    [build] = second.api.get("/v1/builds").json()["items"]
    assert (build["state"], build["model"], build["version"]) == ("succeeded", "digits", 1)
    shown = second.api.get(f"/v1/builds/{build['id']}").json()
    assert {one["engine"] for one in shown["engines"]} == {one.id for one in made.engines}
    assert {one["why"] for one in shown["engines"]} == {f"mirrored from {first.url}"}
    assert {job["state"] for job in shown["jobs"]} == {"succeeded"}
    for path in ("events", "logs", "explain"):
        assert second.api.get(f"/v1/builds/{build['id']}/{path}").is_success
    second.api.post(f"/v1/builds/{build['id']}/retry")
    assert second.api.get(f"/v1/builds/{build['id']}").json()["state"] == "succeeded"


def test_a_mirrored_version_is_deleted_and_mirrored_again(first, second):
    mirrored(first, second)
    answer = second.api.request("DELETE", "/v1/models/digits/versions/1")
    assert answer.is_success, answer.text
    assert second.engines() == []
    made = mirrored(first, second).registered
    assert (made.version, [one.is_new for one in made.engines]) == (2, [True, True])
    assert {one["version"] for one in second.engines()} == {2}


def test_a_large_parameter_has_the_same_key_on_both_farms(first, second):
    fixed = {"scale": [0.5] * 600}
    first.submit(model="fixed", fixed_inputs=fixed)
    first.ledger().run_all()
    mirrored(first, second, "fixed")
    assert {tuple(one["fixed_inputs"]["scale"]) for one in second.engines("fixed")} == {
        (0.5,) * 600
    }
    build = second.submit(model="fixed", fixed_inputs=fixed)
    assert {job["reuse"] for job in build["jobs"]} == {"cached"}


def test_a_version_of_doubtful_engines_alone_isnt_mirrored(first, second):
    other = {"digest": first.api.upload(b"another model"), "format": "onnx"}
    first.submit(model="doubted", source=other)
    first.ledger().run_all(doubts=["its outputs differ"])
    assert {one["state"] for one in first.engines("doubted")} == {"doubtful"}
    with pytest.raises(InvalidRequest, match="at least one engine"):
        mirrored(first, second, "doubted", unsigned=True)


def test_other_inputs_need_a_word(first, second):
    other = second.submit(
        source={"digest": second.api.upload(b"another model"), "format": "onnx"},
        targets=["onnxruntime:cpu"],
    )
    facts = {"inputs": [{"name": "x", "dtype": "float32", "shape": [1]}], "outputs": []}
    second.ledger().run_all(**facts)
    assert second.api.get(f"/v1/builds/{other['id']}").json()["state"] == "succeeded"
    before = second.rows()
    with pytest.raises(Conflict, match="inputs or outputs aren't those of version 1"):
        mirrored(first, second)
    assert second.rows() == before
    made = mirrored(first, second, new_inputs=True).registered
    assert made.version == 2


def test_a_version_may_have_another_number_there(first, second):
    other = {"digest": second.api.upload(b"another model"), "format": "onnx"}
    second.submit(source=other)
    second.ledger().run_all()
    made = mirrored(first, second).registered
    assert made.version == 2
    assert {one["version"] for one in second.engines()} == {1, 2}


def test_quantised_engines_keep_what_they_were_made_from(first, second):
    data = {"digest": first.api.upload(b"samples"), "method": "entropy"}
    first.submit(model="quantised", precisions=["int8"], calibration=data)
    first.ledger().run_all()
    made = mirrored(first, second, "quantised").registered
    assert len(made.engines) == 2
    signers.make(second.settings.signing_key_file)
    bundle = second.api.get(f"/v1/engines/{made.engines[0].id}/signature").content
    said = bundles.unverified(bundle).predicate
    assert said["materials"]["calibration"] == data["digest"]
    assert said["provenance"]["build"]["mirrored"]["engine"] == made.engines[0].origin


def test_yanks_stay_on_the_first_farm_and_garbage_collection_takes_nothing(first, second):
    made = mirrored(first, second).registered
    theirs = made.engines[0].origin
    assert first.api.post(f"/v1/engines/{theirs}/yank", json={"reason": "bad"}).is_success
    assert {one["yanked"] for one in second.engines()} == {None}
    for name in ("v1", "latest"):
        assert second.api.request("DELETE", f"/v2/mirror/digits/manifests/{name}").is_success
    with second.db.write() as session:
        session.execute(delete(OciManifest))
        session.execute(update(Artifact).values(created_at=now() - timedelta(days=9)))
    assert second.api.post("/v1/gc", json={"older_than_s": 7200}).is_success
    [kept] = {one["source_digest"] for one in second.engines()}
    held = {one["digest"] for one in second.engines()} | {kept}
    with second.db.read() as session:
        assert held <= set(session.scalars(select(Artifact.digest)))
    for one in second.engines():
        assert second.api.get(f"/v1/engines/{one['id']}/content").is_success


def test_only_copying_registers_nothing(first, second):
    made = mirrored(first, second, register=False)
    assert made.registered is None
    assert second.rows() == {
        "models": 0, "versions": 0, "builds": 0, "jobs": 0, "engines": 0
    }  # fmt: skip


def test_the_audit_says_who_vouched_for_which_key(first, second):
    made = mirrored(first, second)
    [row] = second.api.get("/v1/audit", params={"action": "mirror"}).json()["items"]
    assert row["object"] == "digits@1"
    assert row["details"]["farm"] == "http://127.0.0.1:8001"
    assert row["details"]["signing_keys"] == [
        signers.FileSigner.read(first.settings.signing_key_file).key.fingerprint
    ]
    assert row["details"]["digest"] == made.digest
    assert len(row["details"]["engines"]) == 2


# Whom it believes


def test_a_farm_that_doesnt_sign_needs_a_word(settings, second, tmp_path):
    for first in a_farm(settings, "http://127.0.0.1:8001", tmp_path / "client"):
        first.ledger()
        first.submit()
        first.ledger().run_all()
        with pytest.raises(SignatureRefused, match="isn't signed"):
            mirrored(first, second)
        assert second.rows()["models"] == 0
        made = mirrored(first, second, unsigned=True).registered
        assert len(made.engines) == 2
        said = second.api.get(f"/v1/engines/{made.engines[0].id}/manifest").json()["provenance"]
        assert said["build"]["mirrored"]["signing_key"] is None


def test_a_farm_whose_key_nobody_knows_isnt_believed(first, second, tmp_path):
    stranger = Farm(
        "http://farm.example.com",
        key=first.api.key,
        transport=Bridge(first.api),
        home=tmp_path / "nobody",
    )
    with pytest.raises(SigningKeyUnknown):
        second.client.mirror(stranger.http, "digits")
    assert second.api.get("/v2/mirror/digits/tags/list").status_code == 404  # nothing was copied


def test_vouching_needs_the_scope_admin(first, second):
    copied = mirrored(first, second, register=False)
    others = [a_key(second.db, scope) for scope in (Scope.READ, Scope.SUBMIT, Scope.PROMOTE)]
    for key in others:
        assert asked(second, first, copied, key=key).status_code == 403
    assert asked(second, first, copied).status_code == 200


def asked(second: One, first: One, copied: Mirrored, *, key: str | None = None, **changes: Any):
    body = {
        "repository": copied.repository,
        "digest": copied.digest,
        "farm": first.url,
        "signing_keys": [signers.FileSigner.read(first.settings.signing_key_file).key.pem],
    }
    api = second.api if key is None else Api(second.api.app, key)
    return api.post("/v1/models/digits/mirror", json=body | changes)


def test_an_address_with_more_than_a_farms_is_refused(first, second):
    copied = mirrored(first, second, register=False)
    for farm in ("http://me:secret@farm", "farm.example.com", "file:///etc", "http://farm/?key=1"):
        assert "credentials" in problem(asked(second, first, copied, farm=farm), 422)["detail"]


def test_neither_keys_nor_unsigned_is_refused_and_so_are_both(first, second):
    copied = mirrored(first, second, register=False)
    for changes in ({"signing_keys": []}, {"unsigned": True}):
        assert "unsigned" in problem(asked(second, first, copied, **changes), 422)["detail"]


# Copies by hand, and hostile ones


def unchanged(given: bytes) -> bytes:
    return given


@dataclass
class Forged:
    """A version's copy in the second farm, with something of it changed."""

    first: One
    second: One

    def __call__(
        self,
        *,
        config: Callable[[dict[str, Any]], None] | None = None,
        bundle: Callable[[bytes], bytes] | None = None,
        layer: bytes | None = None,
        **asked_for: Any,
    ) -> Any:
        target = Registry(self.second.api, "forged/digits")
        origin = Registry(self.first.api, "digits")
        index = origin.manifest("v1").json()
        for entry in index["manifests"]:
            manifest = origin.manifest(entry["digest"]).json()
            is_engine = manifests.artifact_type(manifest) == manifests.ENGINE
            for one in [manifest["config"], *manifest["layers"]]:
                content = origin.blob(one["digest"]).content
                if is_engine and one is manifest["config"] and config is not None:
                    said = json.loads(content)
                    config(said)
                    content = encoded(said)
                if is_engine and one in manifest["layers"] and layer is not None:
                    content = layer
                one |= {"digest": target.push_blob(content), "size": len(content)}
            body = manifests.Document.of(manifests.MANIFEST, manifest).body
            assert target.put(digest_of(body), body).status_code == 201
            if is_engine:
                engine_id = entry["annotations"][f"{manifests.FARM}id"]
                self.sign(target, engine_id, body, bundle or unchanged)
            entry |= {"digest": digest_of(body), "size": len(body)}
        body = encoded(index)
        assert target.put(digest_of(body), body, manifests.INDEX).status_code == 201
        before = self.second.rows()
        copied = Mirrored(
            repository=target.name,
            tag="v1",
            digest=digest_of(body),
            manifests=0,
            blobs=0,
            bytes=0,
        )
        answer = asked(self.second, self.first, copied, **asked_for)
        if not answer.is_success:
            assert self.second.rows() == before  # nothing is half registered
        return answer

    def sign(self, target: Registry, engine_id: str, about: bytes, forge=unchanged) -> None:
        signed = forge(self.first.api.get(f"/v1/engines/{engine_id}/signature").content)
        target.push_blob(signed)
        target.push_blob(b"{}")
        report = manifests.report(
            MEDIA_TYPE,
            manifests.descriptor(MEDIA_TYPE, digest_of(signed), len(signed)),
            about=manifests.Document(media_type=manifests.MANIFEST, body=about),
            created_at=self.first.services.signatory.keys()[0].created_at,
        )
        assert target.put(report.digest, report.body).status_code == 201


@pytest.fixture
def forged(first: One, second: One) -> Forged:
    return Forged(first, second)


def test_a_copy_by_other_clients_is_registered_too(forged):
    assert len(forged().json()["engines"]) == 2


def test_a_doubtful_engine_stays_doubtful(forged, second):
    def doubted(said: dict[str, Any]) -> None:
        _unsigned(said, state="doubtful", doubts=["its outputs differ"])

    assert forged(config=doubted, signing_keys=[], unsigned=True).is_success
    assert [(one["state"], one["doubts"]) for one in second.engines()] == [
        ("doubtful", ["its outputs differ"])
    ] * 2
    assert second.api.get("/v1/models/digits/engines/cpu").status_code == 404


def test_signatures_of_other_engines_beside_the_right_one_dont_matter(forged, tmp_path):
    other = signers.make(tmp_path / "other.pem")
    target = Registry(forged.second.api, "forged/digits")
    index = Registry(forged.first.api, "digits").manifest("v1").json()
    engine_ids = [
        one["annotations"][f"{manifests.FARM}id"]
        for one in index["manifests"]
        if f"{manifests.FARM}id" in one["annotations"]
    ]
    for entry, engine_id in zip(index["manifests"], reversed(engine_ids), strict=False):
        about = Registry(forged.first.api, "digits").manifest(entry["digest"]).content
        forged.sign(target, engine_id, about)
        forged.sign(
            target, engine_id, about, lambda one: bundles.sealed(bundles.unverified(one), other)
        )
    assert len(forged().json()["engines"]) == 2


def test_a_config_that_says_something_else_than_was_signed_is_refused(forged):
    def better(said: dict[str, Any]) -> None:
        said["engine"]["accuracy"]["cosine_min"] = 1.0

    told = problem(forged(config=better), 400)
    assert told["code"] == "signature-refused"
    assert "accuracy differ" in told["detail"]


def test_a_bundle_by_another_key_is_refused(forged, tmp_path):
    other = signers.make(tmp_path / "other.pem")

    def resigned(given: bytes) -> bytes:
        return bundles.sealed(bundles.unverified(given), other)

    assert problem(forged(bundle=resigned), 400)["code"] == "signature-refused"


def test_a_bundle_that_was_changed_is_refused(forged):
    def changed(given: bytes) -> bytes:
        found = json.loads(given)
        payload = found["dsseEnvelope"]["payload"]
        found["dsseEnvelope"]["payload"] = payload[:-8] + "AAAA" + payload[-4:]
        return encoded(found)

    assert problem(forged(bundle=changed), 400)["code"] == "signature-refused"


def test_another_file_than_the_signed_one_is_refused(forged):
    told = problem(forged(layer=b"swapped"), 400)
    assert told["code"] == "signature-refused"
    assert "isn't of the engine" in told["detail"]


def test_an_index_that_isnt_here_is_refused(first, second):
    copied = mirrored(first, second, register=False)
    problem(asked(second, first, copied, digest="sha256:" + "0" * 64), 404)
    problem(asked(second, first, copied, repository="nobody/digits"), 404)
    problem(asked(second, first, copied, repository="../etc"), 400)


def _unsigned(said: dict[str, Any], **changes: Any) -> None:
    said["engine"] |= changes


def _recipe(said: dict[str, Any], **changes: Any) -> None:
    said["provenance"]["build"]["recipe"] |= changes


LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no engine": (lambda said: said.pop("engine"), "description is missing"),
    "no provenance": (lambda said: said.pop("provenance"), "provenance has no build"),
    "a long doubt": (
        lambda said: _unsigned(said, doubts=["x" * 5000], state="doubtful"),
        "at most 4000 characters",
    ),
    "a million doubts": (
        lambda said: _unsigned(said, doubts=["x"] * 400_000, state="doubtful"),
        "larger than any",
    ),
    "many values": (
        lambda said: _unsigned(said, doubts=[""] * 150_000, state="doubtful"),
        "more than 100000 values",
    ),
    "doubts of a ready one": (lambda said: _unsigned(said, doubts=["?"]), "1 doubts"),
    "doubtful without doubts": (lambda said: _unsigned(said, state="doubtful"), "0 doubts"),
    "an unknown GPU": (lambda said: _unsigned(said, gpu="sm_12345"), "doesn't know the GPU"),
    "another digest": (lambda said: _unsigned(said, digest="sha256:" + "1" * 64), "is of sha256:1"),
    "another size": (lambda said: _unsigned(said, bytes=1), "which has 1 bytes"),
    "another source": (
        lambda said: _unsigned(said, source_digest="sha256:" + "1" * 64),
        "contradict",
    ),
    "another toolchain": (lambda said: _unsigned(said, toolchain={"onnx": "9"}), "contradict"),
    "another precision": (lambda said: _unsigned(said, precision="fp32"), "contradict"),
    "an id of markup": (lambda said: _unsigned(said, id="<b>"), "its id"),
    "a number too large": (lambda said: _unsigned(said, peak_memory_bytes=2**70), "64 bits"),
    "a long version": (lambda said: _unsigned(said, runtime_version="1" * 41), "longer than any"),
    "another recipe": (lambda said: _recipe(said, stage=99), "isn't that of its recipe"),
    "another kind": (lambda said: _recipe(said, kind="infer"), "of the stage build"),
    "an input that is none": (lambda said: _recipe(said, inputs={"typed": "../x"}), "is none"),
    "a role that is none": (lambda said: _recipe(said, inputs={"x": "sha256:1"}), "is none"),
    "a huge recipe": (lambda said: _recipe(said, tools={"onnx": "9" * 9999}), "100 characters"),
    "a null character": (
        lambda said: _unsigned(said, metrics_reason="\x00"),
        "null character",
    ),
    "a null worker": (
        lambda said: said["provenance"]["measure"].update(worker="\x00"),
        "null character",
    ),
    "more in a recipe": (lambda said: _recipe(said, more=1), "other fields"),
}


def test_what_no_farm_says_of_an_engine_is_refused_though_signatures_arent_needed(forged):
    for name, (lie, why) in LIES.items():
        answer = forged(config=lie, signing_keys=[], unsigned=True)
        assert why in problem(answer, 422)["detail"], name
    assert forged(signing_keys=[], unsigned=True).is_success


def test_a_config_that_is_too_large_or_no_json_is_refused(first, second, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_BUNDLE_BYTES", 100)
    copied = mirrored(first, second, register=False)
    assert "more than 100 bytes" in problem(asked(second, first, copied), 422)["detail"]
