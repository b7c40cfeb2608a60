"""Words of fixed sets are taken in any case: over REST, by the client, and on the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from farm.cli import app
from farm.client import Farm
from farm.settings import Settings
from farm.specs.options import BuilderOptions, Prune
from farm.specs.references import Reference, parse, split
from tests.contract.conftest import OverTheApi, request
from tests.ledger import Ledger

PROD = "/v1/models/digits/aliases/Prod"


@pytest.fixture
def farm(api):
    return Farm("http://localhost", key=api.key, transport=OverTheApi(api))


@pytest.fixture
def run(farm, monkeypatch):
    monkeypatch.setattr("farm.client.Farm", lambda *_, **__: farm)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def engine(api, db):
    """Version 1 of ``digits``, submitted in capitals, and its engine's id; ``prod`` names it."""
    Ledger(db).worker()
    body = request(
        api,
        precisions=["FP16"],
        targets=["TensorRT-RTX:SM_89"],
        source={"digest": api.upload(b"a model"), "format": "ONNX"},
        options={"hardware_compatibility_level": "NONE"},
    )
    answer = api.post("/v1/builds", json=body)
    assert answer.status_code == 202, answer.text
    Ledger(db).run_all()
    moved = api.request("PUT", PROD, json={"version": 1})
    assert moved.status_code == 200, moved.text
    assert moved.json()["alias"]["alias"] == "prod"
    [made] = api.get("/v1/models/digits/engines").json()["items"]
    assert (made["precision"], made["runtime"], made["gpu"]) == ("fp16", "tensorrt-rtx", "sm_89")
    return made["id"]


@pytest.mark.parametrize(
    "query",
    [
        {"precision": "FP16"},
        {"runtime": "TENSORRT-RTX"},
        {"alias": "PROD"},
        {"prune": "NONE"},
        {"has": "OS=Linux"},
    ],
)
def test_rest_takes_words_in_any_case(api, engine, query):
    found = api.get("/v1/models/digits/engines/SM_89", params=query)
    assert found.status_code == 200, found.text
    assert found.json()["engine"]["id"] == engine


def test_rest_filters_and_queries_fold_their_words(api, engine):
    def ids(path, **query):
        answer = api.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["items"]]

    assert ids("/v1/models/digits/engines", precision="Fp16", gpu="SM89") == [engine]
    assert len(ids("/v1/builds", state="Succeeded")) == 1
    assert api.get("/v1/models/digits/bench?gpu=SM_89&goal=THROUGHPUT").status_code == 200
    assert api.get("/v1/search", params={"q": "digits", "kind": "MODEL"}).json()["items"]
    same = api.get("/v1/models/digits/compare", params={"a": "PROD", "b": "V1"})
    assert same.status_code == 200, same.text
    key = api.post("/v1/keys", json={"name": "ci", "scopes": ["SUBMIT"]})
    assert key.json()["scopes"] == ["submit"]


def test_the_client_takes_words_in_any_case(farm, engine):
    found = farm.match("digits@PROD", "SM_89", precision="FP16", runtime="TensorRT-RTX")
    assert found.engine.id == engine
    assert farm.alias("digits", "PROD").version == 1
    assert farm.compare("digits", "Prod", "v1").model == "digits"
    [match] = farm.match_all_targets("digits@Prod", precisions=["FP16"]).matches
    assert match.engine.id == engine


def test_the_command_line_takes_words_in_any_case(run, engine):
    def said(*words):
        told = run(*words, "--json")
        assert told.exit_code == 0, told.output
        return json.loads(told.stdout)

    words = ("digits@PROD", "--precision", "FP16", "--gpu", "SM_89", "--runtime", "TensorRT-RTX")
    assert [one["id"] for one in said("engines", *words)] == [engine]
    assert (
        said("bench", "digits", "--gpu", "SM_89", "--goal", "Latency", "--no-build")["gpu"]
        == "sm_89"
    )
    assert said("aliases", "digits", "PROD")
    assert said("keys", "create", "--name", "ci", "--scope", "Submit,READ")["scopes"] == [
        "read",
        "submit",
    ]


@pytest.mark.parametrize("text", ["PROD", " prod", "Prod"])
def test_references_fold_case(text):
    assert parse(text) == Reference(alias="prod")
    assert split("digits@V7") == ("digits", Reference(version=7))


def test_settings_and_options_fold_case():
    settings = Settings(sandbox="BEST", log_level="debug", protected_aliases="Prod,STABLE")
    assert Settings(stage_timeouts_s={"PRUNE": 600}).stage_timeouts_s == {"prune": 600}
    assert (settings.sandbox, settings.log_level) == ("best", "DEBUG")
    assert settings.protected_aliases == ("prod", "stable")
    assert str(Prune.parse("L1:0.5")) == "l1:0.5"
    assert Prune(method="L1-Unstructured", amount=0.5).method == "l1-unstructured"
    level = BuilderOptions(hardware_compatibility_level="Ampere_Plus").hardware_compatibility_level
    assert level == "ampere_plus"
