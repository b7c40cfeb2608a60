"""Settings come from the environment, are checked, and don't depend on the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from farm.settings import Settings
from farm.specs.runtime import Runtime


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)


def test_no_setting_is_needed():
    settings = Settings()
    assert settings.home == Path.home() / ".engine-farm"
    assert settings.store_dir == settings.home / "store"
    assert settings.database == f"sqlite:///{settings.home}/farm.db"
    assert settings.runtimes == (
        Runtime.TENSORRT,
        Runtime.TENSORRT_RTX,
        Runtime.AOTINDUCTOR,
        Runtime.ONNXRUNTIME,
    )


def test_settings_come_from_variables_with_the_prefix(monkeypatch, tmp_path):
    given = {
        "FARM_HOME": str(tmp_path),
        "FARM_DATABASE_URL": "postgresql://farm@db/farm",
        "FARM_BROKER_URL": "redis://broker:6379/1",
        "FARM_STORE": str(tmp_path / "shared"),
        "FARM_LEASE_TTL_S": "12.5",
        "FARM_MAX_ATTEMPTS": "5",
        "FARM_JOB_MEMORY_BYTES": "1000000000",
        "FARM_KEEP_WORKDIRS": "true",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.home == tmp_path
    assert settings.database == "postgresql://farm@db/farm"
    assert settings.broker == "redis://broker:6379/1"
    assert settings.store_dir == tmp_path / "shared"
    assert settings.lease_ttl_s == 12.5
    assert settings.max_attempts == 5
    assert settings.job_memory_bytes == 10**9
    assert settings.keep_workdirs is True


def test_variables_without_the_prefix_are_nobodys_business(monkeypatch):
    monkeypatch.setenv("LEASE_TTL_S", "1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    assert (Settings().lease_ttl_s, Settings().database_url) == (30.0, "")
    assert Settings().lease_ttl_s == 30
    assert Settings().database.startswith("sqlite:")


@pytest.mark.parametrize(
    ("given", "runtimes"),
    [
        ("onnxruntime", (Runtime.ONNXRUNTIME,)),
        ("tensorrt-rtx,tensorrt", (Runtime.TENSORRT_RTX, Runtime.TENSORRT)),
        (" tensorrt-rtx , onnxruntime, ", (Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME)),
    ],
)
def test_runtimes_are_a_list_with_commas_in_order(monkeypatch, given, runtimes):
    monkeypatch.setenv("FARM_RUNTIMES", given)
    assert Settings().runtimes == runtimes


def test_a_relative_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", "state")
    monkeypatch.setenv("FARM_STORE", "blobs")
    settings = Settings()
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "state"
    assert settings.store_dir == tmp_path / "blobs"
    assert settings.database == f"sqlite:///{tmp_path}/state/farm.db"


def test_a_tilde_is_the_users_home(monkeypatch):
    monkeypatch.setenv("FARM_HOME", "~/farm")
    assert Settings().home == Path.home() / "farm"


def test_the_broker_is_what_the_running_farm_wrote_down(tmp_path):
    assert Settings(home=tmp_path).broker == "redis://127.0.0.1:6379/0"
    (tmp_path / "broker.url").write_text("redis://:secret@127.0.0.1:7777/0\n")
    assert Settings(home=tmp_path).broker == "redis://:secret@127.0.0.1:7777/0"
    other = Settings(home=tmp_path, broker_url="redis://elsewhere/0")
    assert other.broker == "redis://elsewhere/0"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("lease_ttl_s", "soon", "valid number"),
        ("lease_ttl_s", "0", "greater than 0"),
        ("sweep_interval_s", "-1", "greater than 0"),
        ("max_attempts", "0", "greater than or equal to 1"),
        ("max_attempts", "two", "valid integer"),
        ("keep_workdirs", "perhaps", "valid boolean"),
        (
            "runtimes",
            "tensorrt,cuda",
            "'tensorrt', 'tensorrt-rtx', 'onnxruntime', 'aotinductor' or",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_the_reason(monkeypatch, name, value, reason):
    monkeypatch.setenv(f"FARM_{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    error = caught.value.errors()[0]
    assert error["loc"][0] == name
    assert reason in error["msg"]


def test_settings_are_read_once_and_never_changed():
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_attempts = 9


def test_a_bad_value_stops_a_process_before_it_starts():
    run = subprocess.run(
        [sys.executable, "-m", "farm", "db", "upgrade"],
        env=os.environ | {"FARM_LEASE_TTL_S": "soon"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode != 0
    assert "lease_ttl_s" in run.stderr.lower()
    assert "FARM_LEASE_TTL_S: takes a number" in run.stderr


@pytest.mark.parametrize("name", ["public_url", "flower_url"])
def test_an_address_that_goes_into_pages_is_one_of_the_web(name):
    for given, kept in {
        "": "",
        "https://farm.example.com/": "https://farm.example.com",
        "http://[::1]:8000": "http://[::1]:8000",
        "http://10.0.0.1/at/farm/": "http://10.0.0.1/at/farm",
    }.items():
        assert getattr(Settings(**{name: given}), name) == kept
    for given in (
        "farm.example.com", "javascript:alert(1)", "https://a b", 'https://a"><script>', "https://a/?b",
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=r"isn't an address such as https://farm"):
            Settings(**{name: given})
