"""Keys on their holder's side: where a client finds one, whom it sends it to, and what the commands print."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from farm.cli import app, exits
from farm.client import Farm
from farm.client.key import find
from farm.client.problems import error_of
from farm.database import migrate
from farm.database.session import Database
from farm.database.tables import ApiKey, AuditRow
from farm.errors import FarmError, InvalidRequest, KeyNeeded, NotFound, ScopeMissing
from farm.local import home
from farm.settings import Settings
from farm.specs.scopes import Scope
from farm.testing.stub_farm import StubFarm
from farm.trust import credentials, keys
from farm.trust.callers import THE_FARM
from tests.keys import a_key

KEY, OTHER = credentials.new()[0], credentials.new()[0]
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmVk"


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a key in it, and nothing in the environment."""
    for name in ("FARM_KEY", "FARM_TOKEN", "FARM_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    credentials.write(credentials.home_file(tmp_path), KEY)
    return tmp_path


# What a client sends


def sent(url: str, **options: str) -> str | None:
    """The Authorization of a request to a farm at this address."""
    seen: list[str | None] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx2.Response(200, json=[])

    with Farm(url, transport=httpx2.MockTransport(api), **options) as farm:
        farm.workers()
    return seen[0]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:9", "http://[::1]:8000", "http://127.1.2.3"]
)
def test_a_farm_on_this_machine_gets_the_key_in_its_home(at_home: Path, url: str) -> None:
    assert sent(url) == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "url",
    [
        "http://farm.example",
        "http://192.0.2.7:8000",
        "http://localhost.evil.example",
        "http://127.0.0.1.nip.io",
        "http://localhost@evil.example",
        "http://evil.example/localhost",
        "https://0.0.0.0:8000",
    ],
)
def test_no_other_gets_it(at_home: Path, url: str) -> None:
    assert KEY not in str(sent(url))


def test_the_variable_comes_before_the_file_and_an_argument_before_both(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_KEY", f" {OTHER}\n")
    assert sent("http://127.0.0.1:8000") == f"Bearer {OTHER}"
    assert sent("http://farm.example") == f"Bearer {OTHER}"
    assert sent("http://farm.example", key=KEY) == f"Bearer {KEY}"
    monkeypatch.setenv("FARM_KEY", "")
    assert sent("http://127.0.0.1:8000") == f"Bearer {KEY}"


def test_a_token_is_sent_instead_of_a_key_wherever_the_farm_is(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sent("http://farm.example", token=TOKEN) == f"Bearer {TOKEN}"
    monkeypatch.setenv("FARM_TOKEN", f" {TOKEN}\n")
    assert sent("http://farm.example") == f"Bearer {TOKEN}"
    assert sent("http://127.0.0.1:8000") == f"Bearer {TOKEN}"
    # A caller's own comes first: `farm mirror` sends neither variable to the farm that it copies from.
    assert sent("http://farm.example", key=KEY) == f"Bearer {KEY}"
    assert sent("http://farm.example", key="") is None
    monkeypatch.setenv("FARM_KEY", OTHER)
    assert sent("http://farm.example", token=TOKEN) == f"Bearer {TOKEN}"


def test_a_key_beside_a_token_is_refused_rather_than_one_chosen(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="a key and a token"):
        Farm("http://farm.example", key=KEY, token=TOKEN)
    monkeypatch.setenv("FARM_KEY", KEY)
    monkeypatch.setenv("FARM_TOKEN", TOKEN)
    with pytest.raises(InvalidRequest, match="FARM_KEY and FARM_TOKEN are both set") as raised:
        Farm("http://farm.example")
    assert KEY not in str(raised.value) + raised.value.hint
    assert TOKEN not in str(raised.value) + raised.value.hint


def test_a_key_in_a_tokens_place_is_told(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_TOKEN", KEY)
    with pytest.raises(InvalidRequest, match="FARM_TOKEN is a key") as raised:
        Farm("http://farm.example")
    assert "set FARM_KEY" in raised.value.hint
    assert KEY not in str(raised.value) + raised.value.hint


@pytest.mark.parametrize(
    "wrong", ["two words", "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel", "a\nb"]
)
def test_what_no_header_can_hold_is_told(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("FARM_KEY", wrong)
    with pytest.raises(InvalidRequest, match="isn't a farm's key") as raised:
        Farm("http://farm.example")
    assert wrong not in str(raised.value)


def test_a_key_follows_no_redirect(at_home: Path) -> None:
    seen: list[str] = []

    def api(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.host)
        return httpx2.Response(307, headers={"Location": "http://evil.example/v1/workers"})

    with (
        Farm("http://127.0.0.1:8000", transport=httpx2.MockTransport(api)) as farm,
        pytest.raises(FarmError),
    ):
        farm.workers()
    assert seen == ["127.0.0.1"]


@pytest.mark.parametrize("content", [b"", b"not a key", b"farm_x", b"\xff\xfe", KEY.encode() * 2])
def test_what_isnt_a_key_isnt_sent(at_home: Path, content: bytes) -> None:
    credentials.home_file(at_home).write_bytes(content)
    assert sent("http://127.0.0.1:8000") is None


def test_each_place_has_its_hint(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(credentials.home_file(at_home))
    assert file in find(None, is_local=True).hint
    credentials.home_file(at_home).unlink()
    none = find(None, is_local=True)
    assert none.key is None
    assert file in none.hint
    assert "FARM_HOME" in none.hint
    assert "set FARM_KEY" in find(None, is_local=False).hint
    monkeypatch.setenv("FARM_KEY", KEY)
    assert "FARM_KEY isn't a key of this farm" in find(None, is_local=True).hint


@pytest.mark.parametrize(
    ("challenge", "said"),
    [
        ("", "this farm requires a key"),
        (', error="invalid_token"', "the farm doesn't know this key"),
    ],
)
def test_a_refusal_without_a_body_is_told_by_its_headers(challenge: str, said: str) -> None:
    headers = {"WWW-Authenticate": f'Bearer realm="engine farm"{challenge}'}
    request = httpx2.Request("HEAD", "http://farm/v1/blobs/x")
    told = error_of(httpx2.Response(401, headers=headers, request=request))
    assert (type(told), told.detail) == (KeyNeeded, said)
    other = error_of(httpx2.Response(401, request=request))
    assert (type(other), other.hint) == (FarmError, "is this an engine farm's address?")


def test_a_refusal_says_what_to_do_here(at_home: Path, stub: StubFarm) -> None:
    problem = {"code": "key-needed", "detail": "this farm requires a key", "hint": "the server's"}
    stub.problems["/v1/workers"] = [(401, problem)]
    with Farm(stub.url) as farm, pytest.raises(KeyNeeded) as raised:
        farm.workers()
    assert str(credentials.home_file(at_home)) in (raised.value.hint or "")
    lacks = {"code": "scope-missing", "detail": "needs admin", "hint": "ask for one"}
    stub.problems["/v1/workers"] = [(403, lacks)]
    with Farm(stub.url) as farm, pytest.raises(ScopeMissing) as lacking:
        farm.workers()
    assert lacking.value.hint == "ask for one"


# What a key is


def test_a_key_has_256_random_bits_and_an_id_that_says_nothing_of_them() -> None:
    made = [credentials.new() for _ in range(200)]
    assert len({key for key, _ in made}) == 200
    for key, key_id in made:
        assert credentials.id_of(key) == key_id
        assert len(key) == len("farm_") + 10 + 1 + 64
    assert credentials.id_of("x" + KEY) is None
    assert credentials.id_of(KEY + "\n") is None


def test_a_file_with_a_key_is_its_owners_from_the_first_byte_on(tmp_path: Path) -> None:
    file, umask = tmp_path / "key", os.umask(0)
    try:
        file.touch(mode=0o666)
        credentials.write(file, KEY)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert credentials.is_private(file)
    assert credentials.read(file) == KEY
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


# The home of an embedded farm


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path / "a home")
    home.make_private(made.home)
    migrate.upgrade(made)
    return made


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    made = Database(settings.database)
    yield made
    made.dispose()


def live(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(row.id for row in keys.live(session))


def test_a_home_is_its_users_alone(settings: Settings, database: Database) -> None:
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    home.key(settings, database)
    live(database)
    for file in (settings.home / "key", *settings.home.glob("farm.db*")):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    settings.home.chmod(0o755)
    home.make_private(settings.home)
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700


def test_a_folder_that_isnt_a_farms_keeps_its_permissions(tmp_path: Path) -> None:
    other = tmp_path / "projects"
    other.mkdir()
    other.chmod(0o755)
    (other / "thesis.tex").touch()
    (other / "logs").mkdir()
    home.make_private(other)
    assert stat.S_IMODE(other.stat().st_mode) == 0o755
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    home.make_private(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_a_farm_keeps_the_key_in_its_home(settings: Settings, database: Database) -> None:
    made = home.key(settings, database)
    assert home.key(settings, database) == made
    assert live(database) == [credentials.id_of(made)]


@pytest.mark.parametrize("loss", ["deleted", "emptied", "read by others", "another farm's"])
def test_a_key_that_is_lost_is_replaced_and_opens_nothing_more(
    settings: Settings, database: Database, loss: str
) -> None:
    file, before = settings.home / "key", home.key(settings, database)
    other = credentials.id_of(a_key(database, Scope.SUBMIT))
    if loss == "deleted":
        file.unlink()
    elif loss == "emptied":
        file.write_text("")
    elif loss == "read by others":
        file.chmod(0o644)
    else:
        credentials.write(file, KEY)
    after = home.key(settings, database)
    assert after != before
    assert credentials.read(file) == after
    assert credentials.is_private(file)
    assert live(database) == sorted([str(credentials.id_of(after)), str(other)])


def test_a_key_that_was_revoked_or_belongs_to_a_lost_database_is_replaced(
    settings: Settings, database: Database
) -> None:
    before = home.key(settings, database)
    with database.write() as session:
        keys.end(session, keys.get(session, credentials.id_of(before) or ""), by=THE_FARM)
    assert home.key(settings, database) != before


# The commands

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Run:
    """``farm``, on the machine of a farm that nobody serves."""
    monkeypatch.delenv("FARM_KEY", raising=False)
    monkeypatch.setenv("FARM_HOME", str(settings.home))
    monkeypatch.setenv("FARM_URL", "http://127.0.0.1:9")
    return lambda *words: CliRunner().invoke(app, list(words))


def test_a_key_is_made_listed_and_revoked_in_the_database_itself(
    run: Run, database: Database
) -> None:
    made = run("keys", "create", "--name", "ci", "--scope", "submit,promote", "--local")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    key_id = credentials.id_of(key)
    assert live(database) == [key_id]
    assert key not in made.stderr
    assert f"farm keys revoke {key_id}" in made.stderr
    listed = json.loads(run("keys", "list", "--local", "--json").stdout)
    assert [(one["id"], one["scopes"]) for one in listed] == [(key_id, ["promote", "submit"])]
    shown = run("keys", "list", "--local").stdout
    assert "valid" in shown
    assert key[-64:] not in shown
    # Whoever has a leaked key at hand needs no more than that.
    assert run("keys", "revoke", key, "--local").exit_code == 0
    assert live(database) == []
    assert "revoked" in run("keys", "list", "--local").stdout
    with database.read() as session:
        audited = session.query(AuditRow).order_by(AuditRow.id).all()
    assert [row.action for row in audited] == ["key.create", "key.revoke"]
    assert {row.address for row in audited} == {"this machine"}


def test_a_key_that_expires_says_until_when(run: Run, database: Database) -> None:
    made = run("keys", "create", "--scope", "read", "--expires", "90d", "--local", "--json")
    document = json.loads(made.stdout)
    with database.read() as session:
        row = session.get(ApiKey, document["id"])
        assert row is not None
        assert row.expires_at is not None
        assert (row.expires_at - row.created_at).days == 90


@pytest.mark.parametrize(
    "words",
    [
        ("--scope", "root"),
        ("--scope", "read", "--expires", "soon"),
        ("--scope", "read", "--expires", "1s"),
        ("--scope", "read", "--name", "a b"),
        (),
    ],
)
def test_a_key_that_makes_no_sense_is_a_usage_error(
    run: Run, database: Database, words: tuple[str, ...]
) -> None:
    assert run("keys", "create", "--local", *words).exit_code == exits.USAGE
    assert live(database) == []


def test_on_a_machine_without_a_farm_it_says_where_to_run_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "nothing"))
    result = run("keys", "create", "--scope", "admin", "--local")
    assert result.exit_code == exits.USAGE
    assert "run it where the API runs" in result.stderr
    assert not (tmp_path / "nothing").exists()


def test_the_first_key_needs_no_other_and_the_second_does(
    run: Run, stub: StubFarm, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", stub.url)
    refusal = (401, {"code": "key-needed", "detail": "this farm requires a key", "hint": None})
    stub.problems["/v1/keys"] = [refusal, refusal]
    first = run("keys", "create", "--name", "me", "--scope", "admin")
    assert first.exit_code == 0, first.output
    assert live(database) == [credentials.id_of(first.stdout.strip())]
    second = run("keys", "create", "--name", "me-too", "--scope", "admin")
    assert second.exit_code == exits.USAGE
    assert "requires a key" in second.stderr
    assert len(live(database)) == 1


def test_an_unknown_key_cant_be_revoked(run: Run) -> None:
    result = run("keys", "revoke", "none", "--local", "--json")
    assert result.exit_code == exits.of(NotFound())
    assert "farm keys list" in result.stderr
