"""Bearer tokens of an OpenID Connect issuer, which is a process of its own here."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from sqlalchemy import func, select
from typer.testing import CliRunner

from farm.api.app import create_app
from farm.cli import app as commands
from farm.client import Farm
from farm.database.tables import ApiKey, Login
from farm.errors import TokenRefused
from farm.settings import Settings
from farm.specs.oidc import Oidc
from farm.trust import credentials
from tests.contract.conftest import REQUEST, Api, OverTheApi, with_key
from tests.contract.test_api import problem
from tests.issuer import Issuer
from tests.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site():
    made = Issuer()
    yield made
    made.stop()


@pytest.fixture
def issuer(site) -> Issuer:
    site.mute(False)
    return site


@pytest.fixture
def oidc(issuer) -> dict:
    return {"issuer": issuer.url, "audience": "engine-farm"}


@pytest.fixture
def settings(database_url, tmp_path, oidc) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, oidc=oidc)


def by(api: Api, token: str) -> Api:
    return with_key(api, token)


def refused(api: Api, token: str) -> str:
    """Why a token is refused."""
    answer = by(api, token).get("/v1/me")
    told = problem(answer, 401)
    assert told["code"] == "token-refused"
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert "get another one from the issuer" in told["hint"] or "JWE" in told["detail"]
    return told["detail"]


# Accepted


def test_a_tokens_subject_is_the_actor_of_what_it_does(api, issuer, db):
    Ledger(db).worker()
    alice = by(api, issuer.token("alice", scope="openid farm:submit"))
    me = alice.get("/v1/me").json()
    assert (me["name"], me["scopes"]) == ("alice", ["submit"])
    source = {"digest": alice.upload(b"a model"), "format": "onnx"}
    build = alice.post("/v1/builds", json=REQUEST | {"source": source}).json()
    [entry] = api.get("/v1/audit", params={"action": "submit"}).json()["items"]
    assert (entry["who"], entry["key_id"], entry["object"]) == ("alice", me["key"], build["id"])
    [made] = api.get("/v1/audit", params={"action": "subject.create"}).json()["items"]
    assert (made["object"], made["details"]) == (me["key"], {"subject": "alice"})
    # Another of her tokens is hers, and another's isn't.
    again = by(api, issuer.token("alice", scope="farm:read"))
    assert again.get("/v1/builds/last").json()["id"] == build["id"]
    problem(by(api, issuer.token("bob")).get("/v1/builds/last"), 404)
    listed = {one["name"]: one for one in api.get("/v1/keys").json()["items"]}
    assert listed["alice"]["issuer"] == issuer.url
    assert listed["alice"]["scopes"] == []


def test_what_a_token_allows_is_what_it_claims(api, issuer):
    reader = by(api, issuer.token(scope="farm:read other:things"))
    assert reader.get("/v1/models").status_code == 200
    told = problem(reader.post("/v1/blobs", content=b"x"), 403)
    assert told["code"] == "scope-missing"
    assert "FARM_OIDC" in told["hint"]
    told = problem(by(api, issuer.token(scope="profile")).get("/v1/models"), 403)
    assert told["detail"].endswith("has none")
    admin = by(api, issuer.token(scope="farm:admin"))
    assert admin.get("/v1/keys").status_code == 200


def test_scopes_come_from_roles_in_any_claim():
    oidc = Oidc(
        issuer="https://login.example.com",
        audience="farm",
        scopes_claim="realm_access.roles",
        roles={"ml": ("submit", "promote"), "ops": ("admin",)},
        every_token=("read",),
    )
    assert oidc.scopes({"realm_access": {"roles": ["ml", "x", 5]}}) == {"read", "submit", "promote"}
    assert oidc.scopes({"realm_access.roles": "ops ml"}) == {"read", "submit", "promote", "admin"}
    for strange in ({}, {"realm_access": "ops"}, {"realm_access": {"roles": {"ops": 1}}}):
        assert oidc.scopes(strange) == {"read"}


def test_a_subject_has_limits_like_a_key_and_is_revoked_like_one(api, issuer, db):
    Ledger(db).worker()
    alice = by(api, issuer.token("alice"))
    key_id = alice.get("/v1/me").json()["key"]
    path = f"/v1/keys/{key_id}"
    assert api.request("PATCH", f"{path}/limits", json={"builds": 0}).is_success
    source = {"digest": alice.upload(b"a model"), "format": "onnx"}
    told = problem(alice.post("/v1/builds", json=REQUEST | {"source": source}), 403)
    assert told["detail"] == "the key alice has 0 of 0 builds in flight"
    assert api.request("DELETE", path).is_success
    assert "an administrator revoked them" in refused(api, issuer.token("alice"))
    with db.read() as session:
        assert session.scalar(select(func.count()).where(ApiKey.subject == "alice")) == 1


def test_keys_go_on_beside_tokens(api, issuer):
    assert api.get("/v1/keys").status_code == 200
    told = problem(with_key(api, "farm_0123456789_" + "0" * 64).get("/v1/me"), 401)
    assert told["code"] == "key-needed"


def test_the_client_sends_a_token_and_says_what_to_do_if_it_is_refused(api, issuer, monkeypatch):
    monkeypatch.delenv("FARM_KEY", raising=False)
    keyless = with_key(api, None)

    def refused_with(**claims):
        now = int(time.time())
        monkeypatch.setenv("FARM_TOKEN", issuer.sign(issuer.claims(exp=now + 200) | claims))
        with pytest.raises(TokenRefused) as told:
            Farm("http://localhost", transport=OverTheApi(keyless)).me()
        assert "set FARM_TOKEN to another one from the issuer" in told.value.hint
        return told.value.detail

    monkeypatch.setenv("FARM_TOKEN", issuer.token("carol"))
    assert Farm("http://localhost", transport=OverTheApi(keyless)).me().name == "carol"
    assert "somebody else" in refused_with(aud="another")
    assert "has expired" in refused_with(exp=int(time.time()) - 3600)


def test_a_token_in_place_of_a_key_is_let_in_too(api, issuer, monkeypatch):
    monkeypatch.delenv("FARM_TOKEN", raising=False)
    monkeypatch.setenv("FARM_KEY", issuer.token("carol"))
    farm = Farm("http://localhost", transport=OverTheApi(with_key(api, None)))
    assert farm.me().name == "carol"


def test_a_client_of_oci_sends_a_token_as_its_password(api, issuer):
    basic = base64.b64encode(f"any:{issuer.token()}".encode()).decode()
    answer = with_key(api, None).get("/v2/", headers={"Authorization": f"Basic {basic}"})
    assert answer.status_code == 200


def test_a_browser_logs_in_by_a_token_with_what_that_allows(api, issuer):
    keyless = with_key(api, None)
    now = int(time.time())
    token = issuer.sign(issuer.claims(sub="dave", scope="farm:read", exp=now + 200))
    answer = keyless.post("/v1/login", json={"key": token})
    assert answer.status_code == 204
    cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
    # Another of his tokens allows more; the browser isn't logged in by that.
    assert by(api, issuer.token("dave", scope="farm:admin")).get("/v1/keys").status_code == 200
    api.app.state.services.ring.forget()
    assert keyless.get("/v1/me", headers=cookie).json()["scopes"] == ["read"]
    problem(keyless.get("/v1/keys", headers=cookie), 403)
    with api.app.state.services.db.read() as session:
        [login] = session.scalars(select(Login)).all()
    assert int(login.expires_at.timestamp()) == now + 200
    told = problem(keyless.post("/v1/login", json={"key": token[:-4] + "AAAA"}), 401)
    assert told["code"] == "token-refused"


# The issuer's keys


def test_a_new_key_of_the_issuer_is_fetched_once_it_signs(api, issuer, monkeypatch):
    monkeypatch.setattr("farm.trust.issuer._UNKNOWN_AGAIN_S", 0.0)
    old = issuer.token()
    assert by(api, old).get("/v1/me").status_code == 200
    issuer.rotate("RSA")
    assert by(api, issuer.token()).get("/v1/me").status_code == 200
    assert by(api, old).get("/v1/me").status_code == 200  # while the issuer shows it
    issuer.rotate("EC")
    assert by(api, issuer.token()).get("/v1/me").status_code == 200
    assert "which" in refused(api, old)
    issuer.rotate("RSA")


def test_made_up_keys_have_the_issuer_asked_rarely(api, issuer):
    assert by(api, issuer.token()).get("/v1/me").status_code == 200
    before = len(issuer.asked())
    stranger = RSAKey.generate_key(2048)
    for number in range(20):
        token = jwt.encode({"alg": "RS256", "kid": f"kid-{number}"}, issuer.claims(), stranger)
        assert f'signed by the key "kid-{number}", which' in refused(api, token)
    assert len(issuer.asked()) == before


def test_an_issuer_that_is_down_is_503_with_a_hint_until_it_is_back(api, issuer, monkeypatch):
    monkeypatch.setattr("farm.trust.issuer._FAIL_AGAIN_S", 0.0)
    token = issuer.token()
    issuer.mute()
    told = problem(by(api, token).get("/v1/me"), 503)
    assert told["code"] == "issuer-unavailable"
    assert "answered 503" in told["detail"]
    assert "use a key" in told["hint"]
    assert api.get("/v1/me").status_code == 200
    issuer.mute(False)
    assert by(api, token).get("/v1/me").status_code == 200
    # Known keys serve on while it is down again.
    issuer.mute()
    monkeypatch.setattr(
        api.app.state.services.subjects._issuer, "_fresh_until_s", time.monotonic() - 1
    )
    assert by(api, token).get("/v1/me").status_code == 200
    monkeypatch.setattr("farm.trust.issuer._UNKNOWN_AGAIN_S", 0.0)
    monkeypatch.setattr("farm.trust.issuer._STALE_S", 0.0)
    monkeypatch.setattr(
        api.app.state.services.subjects._issuer, "_fresh_until_s", time.monotonic() - 1
    )
    problem(by(api, token).get("/v1/me"), 503)


def test_an_issuer_that_does_not_answer_in_time_is_503(database_url, tmp_path, monkeypatch):
    monkeypatch.setattr("farm.trust.issuer._TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        oidc = {"issuer": url, "audience": "engine-farm"}
        app = create_app(Settings(home=tmp_path, database_url=database_url, oidc=oidc))
        stranger = RSAKey.generate_key(2048)
        token = jwt.encode({"alg": "RS256", "kid": "a"}, {"sub": "x"}, stranger)
        told = problem(by(Api(app), token).get("/v1/me"), 503)
        assert "Timeout" in told["detail"]
        app.state.services.db.dispose()


# Refused


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"aud": "another"}, "the token is for somebody else (aud)"),
        ({"aud": ["another", "third"]}, "the token is for somebody else (aud)"),
        ({"aud": {"engine-farm": 1}}, "the token is for somebody else (aud)"),
        ({"aud": None}, "the token lacks one of iss, aud, sub and exp"),
        ({"iss": "https://evil.example"}, "the token is of another issuer (iss)"),
        ({"exp": 1}, "the token has expired"),
        ({"exp": None}, "the token lacks one of iss, aud, sub and exp"),
        ({"exp": "tomorrow"}, "the token's exp isn't a time"),
        ({"exp": True}, "the token's exp isn't a time"),
        ({"nbf": 2**33}, "the token isn't valid yet (nbf)"),
        ({"iat": 2**33}, "the token is from the future (iat): compare the clocks"),
        ({"sub": None}, "the token lacks one of iss, aud, sub and exp"),
        ({"sub": ""}, "the token's sub isn't a name"),
        ({"sub": ["alice"]}, "the token's sub isn't a name"),
        ({"sub": "a" * 256}, "the token's sub is too long, or has control characters"),
        ({"sub": "a\nb"}, "the token's sub is too long, or has control characters"),
    ],
)
def test_a_token_with_wrong_claims_is_refused_and_says_which(api, issuer, changes, why):
    assert refused(api, issuer.sign(issuer.claims(**changes))) == why


def test_clocks_may_differ_a_little(api, issuer):
    now = int(time.time())
    near = issuer.claims(exp=now - 10, nbf=now + 10, iat=now + 10)
    assert by(api, issuer.sign(near)).get("/v1/me").status_code == 200
    assert by(api, issuer.sign(issuer.claims(exp=10**400))).get("/v1/me").status_code == 200
    audiences = ["another", "engine-farm"]
    assert by(api, issuer.sign(issuer.claims(aud=audiences))).get("/v1/me").status_code == 200


DOUBLED = b'{"alg": "RS256", "alg": "none"}'


def encoded(document: object) -> str:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def test_a_token_without_a_signature_or_by_the_public_key_is_refused(api, issuer):
    claims = encoded(issuer.claims())
    assert refused(api, f"{encoded({'alg': 'none'})}.{claims}.").startswith(
        'the token is signed by "none"'
    )
    for key in (OctKey.import_key("secret-secret-secret-secret-s"), OctKey.import_key(issuer.url)):
        token = jwt.encode({"alg": "HS256", "kid": "shared"}, issuer.claims(), key)
        assert refused(api, token).startswith('the token is signed by "HS256"')
    good = issuer.token()
    head, body, signature = good.split(".")
    kid = json.loads(base64.urlsafe_b64decode(head + "=="))["kid"]
    stranger = RSAKey.generate_key(2048)
    forged = jwt.encode({"alg": "RS256", "kid": kid}, issuer.claims(), stranger)
    assert refused(api, forged) == "the token's signature isn't its issuer's"
    other = encoded(issuer.claims(scope="farm:admin"))
    assert refused(api, f"{head}.{other}.{signature}") == "the token's signature isn't its issuer's"
    swapped = f"{encoded({'alg': 'ES256', 'kid': kid})}.{body}.{signature}"
    assert refused(api, swapped) == "the token's signature isn't its issuer's"


def test_hostile_tokens_are_refused_with_a_reason(api, issuer):
    claims, body = issuer.claims(), encoded(issuer.claims())
    once = json.dumps(claims)
    twice = once[:-1] + ', "sub": "root"}'
    deep = once[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}"
    names = {
        "a.b": "it has no three parts",
        "..": "can't be read as JSON",
        "a.b.c": "isn't base64url",
        f"{encoded([])}.{body}.x": "isn't a JSON object",
        f"{encoded(b'{')}.{body}.x": "can't be read as JSON",
        f"{encoded(b'[' * 3000)}.{body}.x": "can't be read as JSON",
        f"{encoded({'alg': ['RS256']})}.{body}.x": "signed by list",
        f"{encoded({'alg': 'RS256', 'kid': 5})}.{body}.x": "kid isn't a text",
        f"{encoded(DOUBLED)}.{body}.x": "have a name twice",
        f"{encoded({'alg': 'RS256', 'typ': 'logout+jwt'})}.{body}.x": "isn't for this",
        f"{encoded({'alg': 'RS256', 'crit': ['b64'], 'b64': False})}.{body}.x": "extensions",
        f"{encoded({'alg': 'RS256'})}.{body}.x": "(kid), and it has several",
        ".".join([encoded({"alg": "RSA-OAEP", "enc": "A256GCM"}), "a", "b", "c", "d"]): "JWE",
        issuer.sign(twice.encode()): "the token's claims have a name twice",
        issuer.sign(deep.encode()): "can't be read as JSON",
        issuer.sign(b"[1]"): "isn't a JSON object",
        issuer.sign(b"\xff\xfe"): "can't be read as JSON",
        issuer.sign(claims, pad="x" * 5000): "header is too long",
        issuer.sign(claims | {"pad": "x" * 20_000}): "longer than 16384 characters",
    }
    issuer.rotate()  # two keys
    for token, why in names.items():
        assert why in refused(api, token), token[:60]


def test_a_token_is_never_shown(api, issuer, caplog):
    token = issuer.sign(issuer.claims(aud="another"))
    answer = by(api, token).get("/v1/me")
    assert token not in answer.text
    assert token not in caplog.text


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "http://login.example.com"},
        {"issuer": "https://user@login.example.com"},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"roles": {"ml": ["everything"]}},
        {"audiance": "x"},
    ],
)
def test_a_setting_that_would_be_unsafe_is_refused(oidc, wrong):
    with pytest.raises(ValueError, match="oidc"):
        Settings(oidc=oidc | wrong)


def test_the_setting_reaches_other_processes(settings, monkeypatch):
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().oidc == settings.oidc


def test_without_an_issuer_a_token_is_an_unknown_key(issuer, database_url, tmp_path):
    app = create_app(Settings(home=tmp_path / "home", database_url=database_url))
    told = problem(by(Api(app), issuer.token()).get("/v1/me"), 401)
    assert told["code"] == "key-needed"
    app.state.services.db.dispose()


def test_ids_of_subjects_are_like_those_of_keys(api, issuer):
    key_id = by(api, issuer.token()).get("/v1/me").json()["key"]
    assert credentials.id_of(f"farm_{key_id}_{'0' * 64}") == key_id


def test_a_token_with_any_character_changed_is_refused_and_never_an_accident(api, issuer):
    token = issuer.token()
    subjects = api.app.state.services.subjects
    assert subjects.look(token)[1].subject == "alice"
    whole = len(token) - 1  # the last one has bits that say nothing
    for at in range(whole):
        for other in "A.é\x00=-":
            if other != token[at]:
                with pytest.raises(TokenRefused):
                    subjects.look(token[:at] + other + token[at + 1 :])
    for end in range(0, whole, 7):
        with pytest.raises(TokenRefused):
            subjects.look(token[:end])


# The page on it


def test_what_the_page_on_tokens_says_is_so(api, issuer, monkeypatch):
    page = (ROOT / "docs/how-to/oidc.md").read_text()
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    settings = re.findall(r"FARM_OIDC='(.*)'", shell) + re.findall(
        r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    assert [Oidc.model_validate_json(one).audience for one in settings] == ["engine-farm"] * 2
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert documented == set(Oidc.model_fields)
    token = issuer.token("erin")
    key_id = by(api, token).get("/v1/me").json()["key"]
    told = {}
    for line in shell.splitlines():
        if line.startswith("farm ") and line != "farm api":
            sent = token if line == "farm whoami" else api.key
            farm = Farm("http://localhost", key=sent, transport=OverTheApi(api))
            monkeypatch.setattr("farm.client.Farm", lambda *_, farm=farm, **__: farm)
            words = line.replace("7k2c9qd4mx", key_id).split()[1:]
            done = CliRunner().invoke(commands, words)
            assert done.exit_code == 0, done.output
            told[line] = done.output
    assert len(told) == 4
    assert told["farm whoami"].startswith(f"erin ({key_id}): submit\n")
    assert re.search(rf"{key_id} +erin +valid +as its tokens say", told["farm keys list"])
    assert told["farm keys revoke 7k2c9qd4mx"] == f"erin ({key_id}) is revoked\n"
    assert "revoked them" in refused(api, token)


def test_the_farms_defaults_do_not_hold_for_a_token_of_an_administrator(
    issuer, oidc, database_url, tmp_path
):
    settings = Settings(home=tmp_path, database_url=database_url, oidc=oidc, limits={"builds": 1})
    app = create_app(settings)

    def limit(scope: str) -> float | None:
        me = by(Api(app), issuer.token("frank", scope=scope)).get("/v1/me").json()
        return me["limits"][0]["limit"]

    assert (limit("farm:submit"), limit("farm:admin")) == (1, None)
    app.state.services.db.dispose()
