"""Signed engines over REST: what is signed, when, with which key, and that nothing gets past a client."""

from __future__ import annotations

import base64
import json
import shlex
import sys
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from farm.api.app import create_app
from farm.cli import app as commands
from farm.client import Farm
from farm.client.trust import vouched
from farm.daemon.signing import Notary
from farm.database.session import Database
from farm.database.tables import EngineRow, EngineSignature, SigningKeyRow
from farm.errors import DigestMismatch, SignatureRefused
from farm.registry import signed
from farm.schemas.signing import SigningKeyView
from farm.settings import Settings
from farm.signing import bundles, keys, signers, statements
from farm.store.local import LocalStore
from farm.trust.signatory import Signatory
from tests.contract.conftest import Api
from tests.contract.test_api import problem
from tests.contract.test_key_clients import Bridge
from tests.ledger import Ledger

#: Of the length that the ledger gives every output.
PLAN, ANOTHER, NEW = b"a plan.", b"another", b"the new"


@pytest.fixture
def ledger(settings):
    db = Database(settings.database)
    yield Ledger(db)
    db.dispose()


@pytest.fixture
def key_file(settings) -> Path:
    return settings.signing_key_file


@pytest.fixture
def signer(key_file):
    return signers.make(key_file)


@pytest.fixture
def publish(api, ledger):
    """Publishes an engine of a model, with these bytes; returns its id."""

    def one(content: bytes = PLAN, source: bytes = b"a model", **changes) -> str:
        built = api.upload(content)
        given = {"digest": api.upload(source), "format": "onnx"}
        asked = {"source": given, "precisions": ["fp32"], "targets": ["onnxruntime:cpu"]}
        build = ledger.submit(**asked | changes)
        while queue := ledger.queued():
            claim = ledger.claim(queue[0])
            ledger.succeed(claim, digest=built if claim.kind == "build" else "")
        [engine] = ledger.view(build).engines
        return engine.engine

    return one


@pytest.fixture
def farm(api, tmp_path, monkeypatch) -> Farm:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "client"))
    return Farm("http://localhost", key=api.key, transport=Bridge(api))


def bundle_of(api, engine: str, **query: str) -> bytes:
    answer = api.get(f"/v1/engines/{engine}/signature", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == bundles.MEDIA_TYPE
    return answer.content


# What is signed


def test_a_farm_without_a_key_says_that_its_engines_are_unsigned(api, publish):
    engine = publish()
    answer = problem(api.get(f"/v1/engines/{engine}/signature"), 404)
    assert answer["code"] == "unsigned"
    assert "farm signing rotate" in answer["hint"]
    manifest = api.get(f"/v1/engines/{engine}/manifest").json()
    assert manifest["signed_by"] is None
    assert api.get("/v1/signing-keys").json() == {"items": []}


def test_an_engine_that_isnt_there_has_no_signature(api, signer):
    assert problem(api.get("/v1/engines/none/signature"), 404)["code"] == "not-found"


def test_what_is_signed_names_the_files_and_everything_the_engine_comes_from(
    api, ledger, publish, signer
):
    data = {"digest": api.upload(b"samples"), "method": "entropy"}
    labelled = {"digest": api.upload(b"labelled")}
    engine = publish(precisions=["int8"], calibration=data, evaluation=labelled)
    opened = bundles.opened(bundle_of(api, engine), [signer.key])
    row = api.get(f"/v1/engines/{engine}").json()
    statement = opened.statement
    assert statement.type == statements.ENGINE
    assert statement.digests()["digits-v1-int8-cpu.onnx"] == row["digest"]
    assert set(statement.digests()) == {"digits-v1-int8-cpu.onnx", "report"}
    predicate = statement.predicate
    assert predicate["engine"]["id"] == engine
    assert predicate["engine"]["profiles"] == row["profiles"]
    assert predicate["engine"]["toolchain"] == row["toolchain"]
    for changing in ("yanked", "against", "judgements"):
        assert changing not in predicate["engine"]
    materials = predicate["materials"]
    assert materials["source"] == row["source_digest"]
    assert materials["calibration"] == data["digest"]
    assert materials["evaluation"] == labelled["digest"]
    assert materials["typed"].startswith("sha256:")
    kinds = [job["kind"] for job in predicate["jobs"]]
    assert kinds[:2] == ["measure", "build"]
    assert {"calibrate", "export"} <= set(kinds)
    assert all(job["worker"] == "cpu@here" for job in predicate["jobs"])
    build = predicate["provenance"]["build"]
    assert build["key"] in {job["key"] for job in predicate["jobs"]}
    assert build["recipe"]["tools"] == row["toolchain"]
    assert predicate["signing_key"]["id"] == signer.key.id


def test_the_manifest_says_what_is_signed(api, publish, signer):
    engine = publish()
    manifest = api.get(f"/v1/engines/{engine}/manifest").json()
    statement = bundles.opened(bundle_of(api, engine), [signer.key]).statement
    assert manifest["signed_by"] == signer.key.id
    assert manifest["files"] == statement.digests()
    assert manifest["load"] == statement.predicate["load"]
    assert manifest["provenance"] == statement.predicate["provenance"]


def test_model_signing_has_a_bundle_of_its_own(api, publish, signer):
    engine = publish()
    bundle = bundle_of(api, engine, format="model-signing")
    statement = bundles.opened(bundle, [signer.key]).statement
    assert statements.file_in(statement) == api.get(f"/v1/engines/{engine}").json()["digest"]
    wrong = api.get(f"/v1/engines/{engine}/signature", params={"format": "pgp"})
    assert wrong.status_code == 422


def test_yanks_and_aliases_change_nothing_that_is_signed(api, publish, signer):
    engine = publish()
    before = bundle_of(api, engine)
    moved = api.request("PUT", "/v1/models/digits/aliases/prod", json={"version": 1})
    assert moved.status_code == 200, moved.text
    assert api.post(f"/v1/engines/{engine}/yank", json={"reason": "slow"}).status_code == 200
    assert bundle_of(api, engine) == before
    manifest = api.get(f"/v1/engines/{engine}/manifest").json()
    assert manifest["engine"]["yanked"] == "slow"


# When, and with which key


def test_engines_of_before_there_was_a_key_are_signed_when_there_is_one(
    api, db, settings, publish, key_file
):
    first, second = publish(), publish(ANOTHER, b"another model")
    notary = Notary(db, Signatory(db, settings))
    assert notary.sign_some() == 0
    made = signers.make(key_file)
    assert bundles.opened(bundle_of(api, first), [made.key])
    assert notary.sign_some() == 1
    with db.read() as session:
        assert signed.unsigned(session, 10) == []
        assert signed.bundle_of(session, second) is not None
    assert notary.sign_some() == 0


def test_a_signature_is_made_once(api, publish, signer):
    engine = publish()
    assert bundle_of(api, engine) == bundle_of(api, engine)


def test_a_key_that_cannot_be_used_is_a_503_that_says_why(api, publish, signer, key_file):
    engine = publish()
    key_file.chmod(0o644)
    answer = problem(api.get(f"/v1/engines/{engine}/signature"), 503)
    assert answer["code"] == "signing-failed"
    assert "other users" in answer["detail"]


def test_a_command_signs_with_a_key_that_the_farm_doesnt_have(
    database_url, settings, publish, tmp_path
):
    engine = publish()
    service = signers.make(tmp_path / "in-the-service.pem")
    (tmp_path / "public.pem").write_text(service.key.pem)
    code = (
        "import pathlib, sys; from farm.signing.signers import FileSigner; sys.stdout.buffer.write("
        "FileSigner.read(pathlib.Path(sys.argv[1])).sign(sys.stdin.buffer.read()))"
    )
    command = shlex.join([sys.executable, "-c", code, str(tmp_path / "in-the-service.pem")])
    by_command = Settings(
        home=settings.home,
        database_url=database_url,
        signing_command=command,
        signing_public_key=tmp_path / "public.pem",
    )
    app = create_app(by_command)
    bundle = bundle_of(Api(app), engine)
    assert bundles.opened(bundle, [service.key]).key == service.key
    app.state.services.db.dispose()


def test_a_command_without_its_public_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="FARM_SIGNING_PUBLIC_KEY"):
        Settings(home=tmp_path, signing_command="sign")


def test_a_deleted_engine_takes_its_signature_along(api, db, publish, signer):
    engine = publish()
    bundle_of(api, engine)
    gone = api.request("DELETE", f"/v1/engines/{engine}")
    assert gone.status_code == 200, gone.text
    assert problem(api.get(f"/v1/engines/{engine}/signature"), 404)["code"] == "not-found"
    with db.read() as session:
        assert session.scalars(select(EngineSignature)).all() == []


# Rotation


@pytest.fixture
def cli(settings, database_url, monkeypatch):
    monkeypatch.setenv("FARM_HOME", str(settings.home))
    monkeypatch.setenv("FARM_DATABASE_URL", database_url)

    def run(*words: str) -> dict:
        done = CliRunner().invoke(commands, ["signing", *map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


def shown(api) -> list[SigningKeyView]:
    items = api.get("/v1/signing-keys").json()["items"]
    return [SigningKeyView.model_validate(one) for one in items]


def test_a_new_key_signs_and_what_the_old_one_signed_stays_valid(api, publish, signer, cli):
    first = publish()
    before = bundle_of(api, first)
    made = cli("rotate")
    second = publish(ANOTHER, b"another model")
    new = bundles.signer_named(bundle_of(api, second))
    assert made == {"key": f"sha256:{new}", "signed_again": 0}
    assert bundle_of(api, first) == before
    found = shown(api)
    assert [(one.id, one.current) for one in found] == [(new, True), (signer.key.id, False)]
    # Whichever of the two a client knows, it gets to know the other.
    both = {one.id for one in found}
    for known in found:
        grown = vouched(found, [keys.read(known.public_key.encode())])
        assert {key.id for key in grown} == both
    entries = api.get("/v1/audit", params={"action": "signing.rotate"}).json()["items"]
    assert [one["object"] for one in entries] == [new]


def test_a_chain_of_rotations_is_followed_from_its_first_key(api, signer, cli):
    for _ in range(3):
        cli("rotate")
    found = shown(api)
    assert len(vouched(found, [signer.key])) == 4


def test_a_compromised_key_answers_for_nothing_and_its_engines_are_signed_again(
    api, publish, signer, cli
):
    engine = publish()
    before = bundle_of(api, engine)
    made = cli("rotate", "--compromised")
    assert made["signed_again"] == 1
    again = bundle_of(api, engine)
    assert again != before
    assert f"sha256:{bundles.signer_named(again)}" == made["key"]
    found = shown(api)
    assert vouched(found, [signer.key]) == [signer.key]
    assert [one.revoked_at is not None for one in found] == [False, True]


def test_a_compromised_key_that_is_put_back_signs_nothing(api, publish, signer, key_file, cli):
    engine = publish()
    old = key_file.read_bytes()
    cli("rotate", "--compromised")
    key_file.write_bytes(old)
    assert "compromised" in problem(api.get(f"/v1/engines/{engine}/signature"), 503)["detail"]


def test_the_first_key_is_made_by_rotate_too(api, publish, key_file, cli):
    engine = publish()
    made = cli("rotate")
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert f"sha256:{bundles.signer_named(bundle_of(api, engine))}" == made["key"]


def test_a_key_service_lets_its_key_answer_for_the_next_one(api, signer, cli, tmp_path):
    other = signers.make(tmp_path / "next.pem")
    (tmp_path / "next.pub").write_text(other.key.pem)
    assert cli("vouch", tmp_path / "next.pub") == {"key": other.key.fingerprint}
    assert {key.id for key in vouched(shown(api), [signer.key])} == {signer.key.id, other.key.id}


def test_a_key_that_replaced_the_file_without_a_rotation_is_answered_for_by_nobody(
    api, db, signer, key_file
):
    assert [one.id for one in shown(api)] == [signer.key.id]
    signers.make(key_file)
    assert vouched(shown(api), [signer.key]) == [signer.key]
    with db.read() as session:
        assert len(session.scalars(select(SigningKeyRow)).all()) == 2


# A client of a farm whose records were tampered with


def test_a_signed_engine_is_pulled(api, farm, publish, signer, tmp_path):
    engine = publish()
    pulled = farm.pull_engine(engine, tmp_path / "e")
    assert pulled.signed_by == signer.key.id
    assert pulled.path.read_bytes() == PLAN


def refused(farm, engine: str, folder: Path, why: str) -> None:
    with pytest.raises(SignatureRefused, match=why):
        farm.pull_engine(engine, folder)
    assert list(folder.glob("*")) == []


def test_a_tampered_blob_is_refused(api, farm, settings, publish, signer, tmp_path):
    engine = publish()
    digest = api.get(f"/v1/engines/{engine}").json()["digest"]
    path = LocalStore(settings.store_dir).place(digest)
    path.chmod(0o644)
    path.write_bytes(PLAN[::-1])
    with pytest.raises(DigestMismatch):
        farm.pull_engine(engine, tmp_path / "e")
    assert [one.name for one in (tmp_path / "e").glob("*.onnx")] == []


def test_a_row_that_names_another_blob_is_refused(api, db, farm, publish, signer, tmp_path):
    engine, other = publish(), publish(ANOTHER, b"another model")
    bundle_of(api, engine)
    with db.write() as session:
        digest = session.get_one(EngineRow, other).digest
        session.get_one(EngineRow, engine).digest = digest
    with pytest.raises(DigestMismatch, match="in its manifest"):  # which is what was signed
        farm.pull_engine(engine, tmp_path / "e")
    assert list((tmp_path / "e").glob("*")) == []


def test_signatures_swapped_between_two_engines_are_refused(
    api, db, farm, publish, signer, tmp_path
):
    first, second = publish(), publish(ANOTHER, b"another model")
    bundle_of(api, first)
    bundle_of(api, second)
    with db.write() as session:
        one, two = (session.get_one(EngineSignature, which) for which in (first, second))
        one.engine, two.engine = two.engine, one.engine
        one.model, two.model = two.model, one.model
    with pytest.raises((SignatureRefused, DigestMismatch)):
        farm.pull_engine(first, tmp_path / "e")
    assert list((tmp_path / "e").glob("*")) == []


def test_a_tampered_statement_is_refused(api, db, farm, publish, signer, tmp_path):
    engine = publish()
    bundle = json.loads(bundle_of(api, engine))
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    evil = payload.replace(b'"fp32"', b'"fp16"')
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(evil).decode()
    with db.write() as session:
        session.get_one(EngineSignature, engine).engine = json.dumps(bundle)
    refused(farm, engine, tmp_path / "e", "isn't by a known key")


def test_a_farm_whose_key_was_replaced_is_refused_once_it_is_known(
    api, farm, publish, signer, key_file, tmp_path
):
    farm.pull_engine(publish(), tmp_path / "a")
    signers.make(key_file)
    again = Farm("http://localhost", key=api.key, transport=Bridge(api))
    refused(
        again, publish(NEW, b"a new model"), tmp_path / "e", "none of its keys that are known here"
    )


def test_a_rotation_is_followed_by_a_client_that_knows_the_farm(
    api, farm, publish, signer, cli, tmp_path, monkeypatch
):
    farm.pull_engine(publish(), tmp_path / "a")
    made = cli("rotate")
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "client"))
    again = Farm("http://localhost", key=api.key, transport=Bridge(api))
    pulled = again.pull_engine(publish(NEW, b"a new model"), tmp_path / "a")
    assert f"sha256:{pulled.signed_by}" == made["key"]
