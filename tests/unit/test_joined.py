"""What a machine keeps of a farm that it has joined."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from farm.errors import InvalidRequest
from farm.local import joined
from farm.schemas.tokens import JoinView, SharedSettings
from farm.settings import Settings
from farm.stages import JobKind

URL = "https://farm.example"
ANSWER = JoinView(
    version="1",
    key_id="7k2c9qd4mx",
    key="farm_7k2c9qd4mx_secret",
    broker_url="redis://broker.example/0",
    database_url="postgresql://db.example/farm",
    store=None,
    settings=SharedSettings(
        lease_ttl_s=7.0,
        worker_ttl_s=8.0,
        max_attempts=4,
        retry_first_s=1.0,
        retry_longest_s=2.0,
        job_timeout_s=600.0,
        stage_timeouts_s={JobKind.PRUNE: 60.0},
        cpu_timing_share=0.5,
        plugin_keys=(),
    ),
)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FARM_STORE", "FARM_KEY", "FARM_BROKER_URL", "FARM_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def made(answer: JoinView = ANSWER) -> joined.Joined:
    return joined.of_answer(answer, farm=URL, name="box", token_id="1234567890")


def test_a_farms_answer_is_kept_as_the_settings_it_means(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = {"PATH": "/bin", "FARM_HOME": str(tmp_path)}
    made().apply(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.broker_url == "redis://broker.example/0"
    assert settings.database == "postgresql://db.example/farm"
    assert settings.store == URL
    assert settings.home == tmp_path
    told = ANSWER.settings.model_dump()
    assert {name: getattr(settings, name) for name in told} == told
    assert environment["FARM_KEY"] == ANSWER.key
    assert environment["PATH"] == "/bin"


def test_a_farm_sets_no_variable_but_those_that_a_worker_shares_with_it() -> None:
    names = {"FARM_KEY", "FARM_STORE", "FARM_BROKER_URL", "FARM_DATABASE_URL"}
    names |= {f"FARM_{name.upper()}" for name in SharedSettings.model_fields}
    assert set(made().environment) == names


def test_what_the_environment_says_itself_comes_first() -> None:
    environment = {"FARM_BROKER_URL": "redis://nearer.example/0", "FARM_LEASE_TTL_S": ""}
    made().apply(environment)
    assert environment["FARM_BROKER_URL"] == "redis://nearer.example/0"
    assert environment["FARM_LEASE_TTL_S"] == "7.0"


def test_the_key_is_that_of_the_store_in_use() -> None:
    of_a_user = {"FARM_KEY": "farm_of_a_user"}
    made().apply(of_a_user)
    assert of_a_user["FARM_KEY"] == ANSWER.key
    own_store = {"FARM_STORE": "https://mirror.example", "FARM_KEY": "farm_of_the_mirror"}
    made().apply(own_store)
    assert own_store["FARM_STORE"] == "https://mirror.example"
    assert own_store["FARM_KEY"] == "farm_of_the_mirror"


def test_it_is_readable_by_its_user_only_and_read_as_it_was_written(tmp_path: Path) -> None:
    assert joined.read(tmp_path) is None
    joined.keep(tmp_path, made())
    assert joined.read(tmp_path) == made()
    assert stat.S_IMODE(joined.file_in(tmp_path).stat().st_mode) == 0o600


def test_a_file_that_cant_be_understood_is_told_with_what_to_do(tmp_path: Path) -> None:
    joined.file_in(tmp_path).write_text("{")
    with pytest.raises(InvalidRequest, match="can't be understood") as refused:
        joined.read(tmp_path)
    assert "farm worker --join URL" in str(refused.value.hint)


def test_the_home_of_a_farm_of_its_own_joins_no_other(tmp_path: Path) -> None:
    joined.require_no_farm(tmp_path)
    (tmp_path / "up.lock").touch()
    with pytest.raises(InvalidRequest, match="a farm of this machine's own"):
        joined.require_no_farm(tmp_path)
