"""Search over REST: what may be asked, and how the answer continues."""

from __future__ import annotations

import pytest

from farm.specs.scopes import Scope
from tests.contract.conftest import Api
from tests.contract.test_api import problem, submit
from tests.keys import a_key
from tests.ledger import Ledger


@pytest.fixture
def farm(api, db):
    build = submit(api, api.upload(b"a model"), labels={"team": "vision"}, note="at night")
    submit(api, api.upload(b"another"), model="bert")
    Ledger(db).run_all()
    return build


def search(api, q="", **query):
    return api.get("/v1/search", params={"q": q} | query)


def test_everything_of_a_kind_is_found_with_what_it_is(api, farm):
    found = search(api, "digits").json()
    assert [(one["kind"], one["id"]) for one in found["items"]][:2] == [
        ("model", "digits"),
        ("version", "digits@1"),
    ]
    _, version, engine, build = found["items"]
    assert (version["note"], version["labels"]) == ("at night", {"team": "vision"})
    assert (engine["model"], engine["version"], engine["labels"]) == (
        "digits",
        1,
        {"team": "vision"},
    )
    assert engine["about"] == "fp16 for tensorrt-rtx:sm_89"
    assert (build["id"], build["about"]) == (farm["id"], "succeeded, for tensorrt-rtx:sm_89")
    assert found["cursor"] is None


def test_pages_continue_by_their_cursor(api, farm):
    first = search(api, "since=2020-01-01", limit=5).json()
    rest = search(api, "since=2020-01-01", limit=5, cursor=first["cursor"]).json()
    assert [one["id"] for one in (*first["items"], *rest["items"])][:4] == [
        "bert",
        "digits",
        "bert@1",
        "digits@1",
    ]
    assert (len(first["items"]), len(rest["items"]), rest["cursor"]) == (5, 3, None)


def test_kinds_labels_and_times_narrow_it_down(api, farm):
    found = search(api, kind=["version", "build"], label="team=vision", since="2020-01-01").json()
    assert [one["id"] for one in found["items"]] == ["digits@1", farm["id"]]


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"q": "x" * 201},
        {"q": "a\x00b"},
        {"q": "digits", "kind": "job"},
        {"q": "digits", "label": "no key!"},
        {"q": "digits", "since": "yesterday"},
        {"q": "digits", "limit": 0},
        {"q": "digits", "limit": 201},
        {"q": "digits", "cursor": "model:x"},
        {"q": "digits", "cursor": "x" * 121},
        {"q": "a b c d e f g h i"},
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_hint(api, farm, query):
    assert problem(api.get("/v1/search", params=query), 422)["hint"]


def test_a_search_takes_the_scope_to_read(api, farm, ring):
    reader = Api(api.app, a_key(api.app.state.services.db, Scope.READ))
    ring.forget()
    assert search(reader, "digits").status_code == 200
