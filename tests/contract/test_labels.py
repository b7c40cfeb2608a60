"""Labels and notes over REST: set, shown, filtered by, bounded."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from farm.cli import app as cli
from farm.client import Farm
from tests.contract.conftest import OverTheApi
from tests.contract.test_api import problem, submit

V1 = "/v1/models/digits/versions/1"


@pytest.fixture
def digits(api):
    return submit(api, api.upload(b"a model"), labels={"team": "vision"}, note="the first")


def patch(api, path, **changes):
    return api.request("PATCH", path, json=changes)


def shown(api):
    return api.get("/v1/models/digits").json()


def test_a_submission_labels_its_build_and_its_version(api, digits):
    assert api.get(f"/v1/builds/{digits['id']}").json()["labels"] == {"team": "vision"}
    [version] = shown(api)["versions"]
    assert (version["labels"], version["note"]) == ({"team": "vision"}, "the first")
    assert shown(api)["labels"] == {}


def test_a_later_submission_of_the_version_adds_to_its_labels(api, digits):
    again = submit(api, api.upload(b"a model"), labels={"stage": "canary"})
    assert api.get(f"/v1/builds/{again['id']}").json()["labels"] == {"stage": "canary"}
    [version] = shown(api)["versions"]
    assert (version["labels"], version["note"]) == (
        {"stage": "canary", "team": "vision"},
        "the first",
    )


def test_labels_and_notes_are_changed_and_removed_at_any_time(api, digits):
    changes = {"labels": {"team": None, "reviewed/by": "ann"}, "note": "better at night"}
    [version] = patch(api, V1, **changes).json()["versions"]
    assert (version["labels"], version["note"]) == ({"reviewed/by": "ann"}, "better at night")
    [version] = patch(api, V1, note=None).json()["versions"]
    assert (version["labels"], version["note"]) == ({"reviewed/by": "ann"}, None)
    model = patch(api, "/v1/models/DIGITS", labels={"tier": "1"}, note="ten classes").json()
    assert (model["name"], model["labels"], model["note"]) == (
        "digits",
        {"tier": "1"},
        "ten classes",
    )


def test_models_and_builds_are_filtered_by_label(api, digits):
    other = submit(api, api.upload(b"another"), model="bert", labels={"team": "text"})
    patch(api, "/v1/models/bert", labels={"tier": "1"})

    def found(path, *labels, name):
        answer = api.get(path, params={"label": list(labels)})
        return [one[name] for one in answer.json()["items"]]

    assert found("/v1/models", "team=vision", name="name") == ["digits"]
    assert found("/v1/models", "team", name="name") == ["bert", "digits"]
    assert found("/v1/models", "team", "tier=1", name="name") == ["bert"]
    assert found("/v1/models", "team=", name="name") == []
    assert found("/v1/builds", "team=text", name="id") == [other["id"]]
    assert found("/v1/builds", "team", name="id") == [other["id"], digits["id"]]
    problem(api.get("/v1/models", params={"label": "no key!"}), 422)
    problem(api.get("/v1/models", params={"label": ["a"] * 9}), 422)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"": "x"}},
        {"labels": {"-team": "x"}},
        {"labels": {"team-": "x"}},
        {"labels": {"a b": "x"}},
        {"labels": {"k" * 64: "x"}},
        {"labels": {"team": "x" * 201}},
        {"labels": {"team": "a\x1b[2J"}},
        {"labels": {f"k{n}": "x" for n in range(33)}},
        {"note": "x" * 1001},
        {"other": 1},
    ],
)
def test_what_is_too_long_or_hostile_is_refused(api, digits, changes):
    problem(patch(api, V1, **changes), 422)
    assert shown(api)["versions"][0]["labels"] == {"team": "vision"}


def test_a_version_has_at_most_32_labels(api, digits):
    patch(api, V1, labels={f"k{n}": "x" for n in range(31)})
    told = problem(patch(api, V1, labels={"one": "too many"}), 422)
    assert "33 labels; the limit is 32" in told["detail"]
    assert patch(api, V1, labels={"one": "more", "team": None}).status_code == 200


def test_what_there_is_not_cannot_be_labelled(api, digits):
    problem(patch(api, "/v1/models/digits/versions/9", note="x"), 404)
    problem(patch(api, "/v1/models/bert", note="x"), 404)


def test_the_manifest_says_nothing_that_changes(api, digits, db):
    from tests.ledger import Ledger

    Ledger(db).run_all()
    engine = api.get("/v1/models/digits/engines").json()["items"][0]["id"]
    before = api.get(f"/v1/engines/{engine}/manifest").json()
    patch(api, V1, labels={"team": "text"}, note="another")
    assert api.get(f"/v1/engines/{engine}/manifest").json() == before


def test_a_build_whose_labels_an_older_farm_took_is_retried(api, digits, db):
    from farm.database.tables import Build

    assert api.post(f"/v1/builds/{digits['id']}/cancel").is_success
    with db.write() as session:
        row = session.get_one(Build, digits["id"])
        row.request = row.request | {"labels": {"a key of old!": "x"}}
    assert api.post(f"/v1/builds/{digits['id']}/retry").json()["state"] == "queued"


def test_commands_print_the_names_case_and_details_in_words(api, digits, monkeypatch):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    monkeypatch.setattr("farm.client.Farm", lambda *_, **__: farm)

    def said(*words):
        told = CliRunner().invoke(cli, words)
        assert told.exit_code == 0, told.output
        return told.stdout

    assert said("label", "DIGITS", "tier=1") == "digits: tier=1\n"
    assert (
        said("label", "Digits@1", "stage=canary", "team-") == "digits@1: stage=canary\nthe first\n"
    )
    assert "digits@prod would be v1" in said("promote", "DIGITS", "1", "PROD", "--dry-run")
    shown = said("audit", "--action", "describe")
    assert "labels stage=canary, team=–" in shown
    assert "{" not in said("audit")
