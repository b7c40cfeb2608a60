"""What the commands say that move aliases and yank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from farm.cli import aliases, app, exits, yank
from farm.errors import NotFound
from farm.schemas.aliases import Promotion


class Fleet:
    """A farm whose version 2 of Digits is prod."""

    def promote(self, _model: str, _version: str, _alias: str, **_: Any) -> Promotion:
        return Promotion(alias=None, version=2, before=2, changes=[], left_out=[], engines=[])

    def rollback(self, _model: str, alias: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(model="Digits", alias=alias, version=1)

    def version_of(self, what: str) -> tuple[str, int]:
        return what.partition("@")[0], 2

    def yank(self, _model: str, number: int, _reason: str) -> SimpleNamespace:
        prod = SimpleNamespace(alias="prod", version=2)
        canary = SimpleNamespace(alias="canary", version=number + 1)
        return SimpleNamespace(name="Digits", aliases=[prod, canary])

    def yank_engine(self, engine: str, _reason: str) -> None:
        raise NotFound(f"there is no engine {engine!r}")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    for module in (aliases, yank):
        monkeypatch.setattr(module, "connect", lambda _url: Fleet())
    return CliRunner().invoke(app, words)


def test_promoting_what_an_alias_names_already_says_that_nothing_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run(monkeypatch, "promote", "digits", "2", "--note", "trained in May")
    assert (result.exit_code, result.stdout) == (
        exits.OK,
        "digits@prod is v2 already: nothing is moved, and no note is kept\n",
    )


def test_a_yank_of_what_an_alias_names_says_that_its_pulls_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run(monkeypatch, "yank", "digits@2", "--reason", "it guesses")
    assert result.stdout.splitlines() == [
        "Digits@2 is yanked: it guesses",
        "prod names it: its pulls fail until it is moved: farm rollback Digits prod",
    ]


def test_a_yank_of_a_model_says_how_a_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "yank", "digits", "--reason", "it guesses")
    assert result.exit_code == exits.NOT_FOUND
    assert "a version is named like digits@7" in result.stderr


def test_a_rollback_says_how_to_go_forward_again(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "rollback", "digits")
    assert (result.exit_code, result.stdout.splitlines()) == (
        exits.OK,
        [
            "Digits@prod is v1 again",
            "the way forward: farm promote Digits VERSION prod; what it has named: farm aliases Digits prod",
        ],
    )
