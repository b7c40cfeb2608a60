"""Each move of an alias is signed, and a client refuses an answer older than it has seen."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import select, update

from farm.client import Farm
from farm.client import seen as seen_moves
from farm.database.tables import AliasRow, AliasStatement, Version
from farm.errors import SignatureRefused, SigningFailed
from farm.registry import signed_aliases
from farm.signing import bundles, moves, signers
from farm.signing.moves import Moved
from farm.trust import signatory
from tests.contract.conftest import OverTheApi, request
from tests.contract.test_api import problem
from tests.ledger import Ledger

PROD = "/v1/models/digits/aliases/prod"


@pytest.fixture
def signer(settings):
    return signers.make(settings.signing_key_file)


@pytest.fixture
def versions(api, db):
    """Versions 1 and 2 of ``digits``, with an engine each."""
    Ledger(db).worker()
    for content in (b"a model", b"another"):
        source = {"digest": api.upload(content), "format": "onnx"}
        assert api.post("/v1/builds", json=request(api, source=source)).status_code == 202
    Ledger(db).run_all()


class Between(OverTheApi):
    """What stands between a client and its farm, and may answer a pull in its place."""

    def __init__(self, api) -> None:
        super().__init__(api)
        self.changes = None
        self.heard: list[dict] = []

    def handle_request(self, asked):
        answer = super().handle_request(asked)
        if "/engines/sm_89" not in asked.url.path or answer.is_error:
            return answer
        said = answer.json()
        self.heard.append(said)
        told = self.changes(said) if self.changes else said
        return httpx2.Response(200, content=json.dumps(told).encode(), request=asked)


@pytest.fixture
def between(api) -> Between:
    return Between(api)


@pytest.fixture
def farm(api, between, tmp_path):
    return Farm("http://localhost", key=api.key, transport=between, home=tmp_path / "user")


def promote(api, version):
    body = {"version": version, "max_slowdown": 1000}
    answer = api.request("PUT", PROD, json=body)
    assert answer.status_code == 200, answer.text


def pulled(farm, model="digits") -> int:
    return farm.match(model, "sm_89").engine.version


def stated(api, signer) -> Moved:
    bundle = api.get("/v1/models/digits/engines/sm_89").json()["statement"]
    return moves.move_in(bundles.opened(bundle.encode(), [signer.key]))


def test_each_move_is_signed_with_a_higher_number(api, versions, signer):
    of = {"model": "digits", "alias": "prod"}
    promote(api, 1)
    assert stated(api, signer) == Moved(**of, version=1, revision=1)
    promote(api, 2)
    assert stated(api, signer) == Moved(**of, version=2, revision=2)
    assert api.post(f"{PROD}/rollback", json={}).status_code == 200
    assert stated(api, signer) == Moved(**of, version=1, revision=3)
    assert api.request("DELETE", PROD).status_code == 204
    assert stated(api, signer) == Moved(**of, version=None, revision=4)
    by_number = api.get("/v1/models/digits/engines/sm_89", params={"version": 1})
    assert by_number.json()["statement"] is None


def test_an_answer_and_what_is_signed_are_of_one_moment(api, versions, signer, farm, monkeypatch):
    promote(api, 1)
    bundle_of = signed_aliases.bundle_of

    def late(*asked):
        monkeypatch.undo()
        with ThreadPoolExecutor(1) as another:
            another.submit(promote, api, 2).result()
        return bundle_of(*asked)

    monkeypatch.setattr(signed_aliases, "bundle_of", late)
    assert pulled(farm) == 1
    assert pulled(farm) == 2


def test_an_old_answer_is_refused_and_a_rollback_is_not(api, versions, signer, farm, between):
    promote(api, 1)
    assert pulled(farm) == 1
    old = between.heard[-1]
    promote(api, 2)
    assert pulled(farm, "digits@prod") == 2
    between.changes = lambda _said: old
    for model in ("digits", "digits@prod", "DIGITS@PROD"):
        with pytest.raises(SignatureRefused, match="you have seen move 2: it is an old answer"):
            farm.match(model, "sm_89")
    between.changes = None
    assert api.post(f"{PROD}/rollback", json={}).status_code == 200
    assert pulled(farm) == 1


def test_another_process_of_the_same_user_remembers_too(
    api, versions, signer, farm, between, tmp_path
):
    promote(api, 1)
    pulled(farm)
    old = between.heard[-1]
    promote(api, 2)
    pulled(farm)
    between.changes = lambda _said: old
    again = Farm("http://localhost", key=api.key, transport=between, home=tmp_path / "user")
    with pytest.raises(SignatureRefused, match="old answer"):
        pulled(again)
    again.trust_signing_key(None)  # farm signing forget
    assert pulled(again) == 1


def test_an_answer_without_the_statement_is_refused_once_there_was_one(
    api, versions, signer, farm, between
):
    promote(api, 1)
    pulled(farm)
    between.changes = lambda said: said | {"statement": None}
    with pytest.raises(SignatureRefused, match="has signed which version digits@prod is"):
        pulled(farm)
    # As if nobody had ever promoted one: what is newest is taken then.
    between.changes = None
    assert api.request("DELETE", PROD).status_code == 204
    assert pulled(farm) == 2
    between.changes = lambda said: said | {"statement": None}
    with pytest.raises(SignatureRefused):
        pulled(farm)


def test_a_version_that_the_database_alone_says_is_refused(api, db, versions, signer, farm):
    promote(api, 2)
    with db.write() as session:
        first = session.scalar(select(Version.id).where(Version.number == 1))
        session.execute(update(AliasRow).values(version_id=first))
    with pytest.raises(SignatureRefused, match="is version 2, as is signed, and the answer is of"):
        pulled(farm)


def test_another_aliass_statement_is_refused(api, versions, signer, farm, between):
    promote(api, 1)
    canary = PROD.replace("prod", "canary")
    assert api.request("PUT", canary, json={"version": 2}).status_code == 200
    farm.match("digits@canary", "sm_89")
    of_canary = between.heard[-1]
    between.changes = lambda _said: of_canary
    with pytest.raises(SignatureRefused, match="is of digits@canary"):
        pulled(farm)


def test_nothing_moves_where_it_cannot_be_signed(api, versions, signer, monkeypatch):
    promote(api, 1)

    def fails(*_):
        raise SigningFailed("the key service is away")

    monkeypatch.setattr(bundles, "sealed", fails)
    problem(api.request("PUT", PROD, json={"version": 2}), 503)
    problem(api.request("DELETE", PROD), 503)
    assert api.get(PROD).json()["version"] == 1
    assert api.get(PROD).json()["revision"] == 1


def test_without_a_key_nothing_is_signed_and_pulls_go_on(api, db, versions, farm):
    promote(api, 1)
    assert pulled(farm) == 1
    with db.read() as session:
        assert session.scalars(select(AliasStatement)).all() == []


def test_a_promotion_of_what_it_names_signs_what_is_not_signed_yet(api, db, versions, settings):
    promote(api, 1)
    signer = signers.make(settings.signing_key_file)
    dry = api.request("PUT", PROD, params={"dry_run": True}, json={"version": 1})
    assert dry.status_code == 200
    assert api.get("/v1/models/digits/engines/sm_89").json()["statement"] is None
    promote(api, 1)
    assert stated(api, signer) == Moved(model="digits", alias="prod", version=1, revision=1)
    with db.write() as session:
        signatory.revoke(session, signer.key.id)
        assert session.scalars(select(AliasStatement)).all() == []


def test_a_home_that_cannot_be_written_remembers_nothing(
    api, versions, signer, farm, between, monkeypatch
):
    promote(api, 1)

    def read_only(*_):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(seen_moves, "alone", read_only)
    assert pulled(farm) == 1
    old = between.heard[-1]
    promote(api, 2)
    between.changes = lambda said: old | {"engine": said["engine"]}
    with pytest.raises(SignatureRefused, match="is version 1, as is signed"):
        pulled(farm)
