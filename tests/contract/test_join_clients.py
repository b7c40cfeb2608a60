"""Join tokens from outside: the client, the commands, and TLS that isn't trusted."""

from __future__ import annotations

import datetime
import http.server
import json
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from farm.cli import app as commands
from farm.cli import joining
from farm.client import Backoff, Farm
from farm.errors import InvalidRequest, JoinRefused, ScopeMissing, Unavailable
from farm.local import joined
from farm.specs.scopes import Scope
from farm.trust import credentials
from tests.contract.test_key_clients import client
from tests.keys import a_key


@pytest.fixture
def farm(api) -> Farm:
    return client(api, api.key)


@pytest.fixture
def run(api, monkeypatch):
    monkeypatch.setattr("farm.cli.tokens.connect", lambda _url: client(api, api.key))

    def ran(*words: str, code: int = 0):
        result = CliRunner().invoke(commands, list(words))
        assert result.exit_code == code, result.output
        return result

    return ran


def test_the_client_makes_lists_uses_and_revokes_tokens(api, farm):
    made = farm.create_token(expires_in_s=600, uses=2)
    answer = client(api, "").join(made.token, "box")
    assert credentials.id_of(answer.key) == answer.key_id
    [listed] = farm.tokens()
    assert (listed.id, listed.used, listed.uses) == (made.id, 1, 2)
    assert farm.revoke_token(made.id).revoked_at
    with pytest.raises(JoinRefused, match="was revoked") as refused:
        client(api, "").join(made.token, "other")
    assert refused.value.hint == "an administrator makes another: farm tokens create --worker"
    with pytest.raises(ScopeMissing):
        client(api, answer.key).tokens()


def test_the_commands_make_list_and_revoke_tokens(run):
    assert "no join tokens" in run("tokens").stdout
    made = run("tokens", "create", "--worker", "--expires", "2h", "--uses", "4")
    token = made.stdout.strip()
    token_id = credentials.join_id_of(token)
    assert "4 machines join until" in made.stderr
    assert "farm worker --join http://localhost" in made.stderr
    assert token not in made.stderr
    for words in (["tokens"], ["tokens", "list"]):
        shown = run(*words).stdout
        assert token_id in shown
        assert "0 of 4" in shown
        assert "valid" in shown
    assert json.loads(run("tokens", "--json").stdout)[0]["id"] == token_id
    assert token_id in run("tokens", "revoke", token).stdout
    assert "revoked" in run("tokens").stdout


def test_a_token_for_nothing_isnt_made(run):
    refused = run("tokens", "create", code=2)
    assert "hint: farm tokens create --worker" in refused.stderr


def test_a_machine_that_joins_again_by_the_same_token_spends_no_use(
    api, farm, tmp_path, monkeypatch
):
    monkeypatch.setattr("farm.client.Farm", lambda _url, key: client(api, key))
    token = farm.create_token().token
    first = joining.joined_by("http://localhost/", token, "box", tmp_path)
    assert (first.farm, first.name) == ("http://localhost", "box")
    assert joining.joined_by("http://localhost", token, "box", tmp_path) == first
    assert joining.joined_by("http://localhost", None, "box", tmp_path) == first
    with pytest.raises(InvalidRequest, match=r"joining http://other\.example takes a token"):
        joining.joined_by("http://other.example", None, "box", tmp_path)
    again = joining.joined_by("http://localhost", farm.create_token().token, "box", tmp_path)
    assert again.key_id != first.key_id
    assert joined.read(tmp_path) == again


def test_a_refused_token_leaves_what_was_joined_before(api, farm, tmp_path, monkeypatch):
    monkeypatch.setattr("farm.client.Farm", lambda _url, key: client(api, key))
    first = joining.joined_by("http://localhost", farm.create_token().token, "box", tmp_path)
    with pytest.raises(JoinRefused):
        joining.joined_by("http://localhost", "join_7k2c9qd4mx_" + "0" * 64, "box", tmp_path)
    assert joined.read(tmp_path) == first


@pytest.mark.parametrize("given", ["join_7k2c9qd4mx_" + "0" * 64, None])
def test_a_token_comes_from_its_option_its_variable_or_a_file(given, tmp_path, monkeypatch):
    monkeypatch.setenv("FARM_JOIN_TOKEN", "join_7k2c9qd4mx_" + "0" * 64)
    file = tmp_path / "token"
    file.write_text("join_7k2c9qd4mx_" + "1" * 64 + "\n")
    assert joining.token_of(given, file).endswith("1")
    assert joining.token_of(given, None) == given
    assert "FARM_JOIN_TOKEN" not in joining.os.environ


def test_what_is_no_token_is_told_without_being_repeated(db):
    key = a_key(db, Scope.ADMIN)
    with pytest.raises(InvalidRequest) as refused:
        joining.token_of(key, None)
    assert key not in f"{refused.value.detail} {refused.value.hint}"


@pytest.fixture
def tls(tmp_path):
    """The port of a server whose certificate nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    at = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at - datetime.timedelta(days=1))
        .not_valid_after(at + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_certificate_that_isnt_trusted_is_told_as_such(tls):
    farm = Farm(f"https://localhost:{tls}", key="", backoff=Backoff(attempts=1))
    with pytest.raises(Unavailable, match=r"isn't trusted here: self.signed") as refused:
        farm.join("join_7k2c9qd4mx_" + "0" * 64, "box")
    assert "SSL_CERT_FILE" in refused.value.hint


def test_an_address_without_tls_is_told_as_such(tls):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as plain:
        threading.Thread(target=plain.serve_forever, args=(0.01,), daemon=True).start()
        url = f"https://localhost:{plain.server_address[1]}"
        farm = Farm(url, key="", backoff=Backoff(attempts=1))
        with pytest.raises(Unavailable, match="no TLS connection to") as refused:
            farm.join("join_7k2c9qd4mx_" + "0" * 64, "box")
        plain.shutdown()
    assert "http://" in refused.value.hint
