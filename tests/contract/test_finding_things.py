"""The commands that describe and find things, as people read them, against an API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from farm.cli import app, exits
from farm.database.session import Database
from tests.contract.live_api import LiveApi, live_api
from tests.ledger import Ledger

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A farm with two models; of digits there is a version and a build of another."""
    with live_api(tmp_path_factory.mktemp("home")) as live:
        ledger = Ledger(Database(live.settings.database))
        for model, content in (("digits", b"a model"), ("bert", b"bert")):
            _submit(live, model, content)
        ledger.run_all()
        _submit(live, "digits", b"another")
        ledger.db.dispose()
        yield live


def _submit(live: LiveApi, model: str, content: bytes) -> None:
    source = {"digest": live.upload(content), "format": "onnx"}
    body = {"model": model, "source": source, "precisions": ["fp16"], "targets": ["sm_89"]}
    answer = live.http.post("/v1/builds", json=body)
    assert answer.status_code == 202, answer.text


@pytest.fixture
def run(live: LiveApi, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FARM_URL", live.url)
    monkeypatch.setenv("FARM_KEY", live.key)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_labels_are_set_shown_removed_and_filtered_by(run: Run) -> None:
    said = run("label", "digits@1", "team=vision", "stage=canary")
    assert said.stdout == "digits@1: stage=canary, team=vision\n", said.output
    assert run("label", "digits@1", "stage-").stdout == "digits@1: team=vision\n"
    assert run("label", "DIGITS@1").stdout == "digits@1: team=vision\n"
    assert run("label", "digits").stdout == "digits: no labels\n"
    shown = json.loads(run("label", "digits", "tier=1", "--json").stdout)
    assert shown == {"labels": {"tier": "1"}, "note": None}
    listed = run("models", "--label", "team=vision").stdout
    assert "digits" in listed
    assert "bert" not in listed
    assert "team=vision" in run("models", "digits").stdout


@pytest.mark.parametrize("word", ["team", "-", "=", "a b=c", "-team=x"])
def test_what_is_no_label_is_refused_with_a_hint(run: Run, word: str) -> None:
    result = run("label", "digits@1", "--", word)
    assert result.exit_code == exits.USAGE, result.output
    assert "label" in result.output


def test_a_note_is_set_shown_and_deleted(run: Run) -> None:
    assert run("note", "digits@1", "better at night").stdout.endswith("\nbetter at night\n")
    assert run("note", "digits@1").stdout.endswith("\nbetter at night\n")
    assert "better" not in run("note", "digits@1", "--delete").stdout
    assert run("note", "digits@1", "x", "--delete").exit_code == exits.USAGE
    assert run("note", "digits@9", "x").exit_code == exits.NOT_FOUND


def test_search_lists_what_matches(run: Run) -> None:
    lines = run("search", "bert").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["model", "bert"], ["version", "bert@1"]]
    assert "fp16 for tensorrt:sm_89" in lines[3]
    assert "succeeded, for sm_89" in lines[4]
    [build] = json.loads(run("search", "bert", "--kind", "build", "--json").stdout)
    assert run("search", build["id"][:12], "--kind", "build").stdout.count("\n") >= 2
    assert run("search", "nobody").stdout == "nothing matches\n"
    assert run("search").exit_code == exits.USAGE
    assert run("search", "bert", "--since", "2999-01-01").stdout == "nothing matches\n"


def test_show_takes_a_model_a_version_or_an_id(run: Run) -> None:
    shown = run("show", "digits").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "digits, 2 versions" in shown
    assert "sm_89 fp16  passed" in shown
    assert "is queued" in shown
    of_one = run("show", "digits@1").stdout
    assert "v2" not in of_one
    assert run("show", "digits@9").exit_code == exits.NOT_FOUND
    assert run("show", "nobody").exit_code == exits.NOT_FOUND
    assert run("show", "0000000000000000").exit_code == exits.NOT_FOUND
    engine = json.loads(run("search", "digits", "--kind", "engine", "--json").stdout)[0]["id"]
    build = json.loads(run("search", "digits", "--kind", "build", "--json").stdout)[0]["id"]
    assert f"build {build} of digits v2: queued" in run("show", build).stdout
    assert engine in run("show", engine).stdout
    assert json.loads(run("show", engine, "--json").stdout)["id"] == engine
    assert json.loads(run("show", "digits@1", "--json").stdout)["detailed"] == [1]
