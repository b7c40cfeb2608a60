"""Models over REST, in whatever case they are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert

from farm.database.tables import Model
from tests.again import until_served
from tests.contract.conftest import request


def submit(api, **changes):
    return api.post("/v1/builds", json=request(api, **changes))


@pytest.fixture
def pair(db) -> None:
    """Two names that differ in case alone, as a database from before folding may hold them."""
    with db.write() as session:
        session.execute(insert(Model), [{"name": "ResNet"}, {"name": "resnet"}])


def test_a_submission_in_another_case_becomes_a_version_of_the_first(api):
    first = submit(api, model="ResNet50").json()
    source = {"digest": api.upload(b"another model"), "format": "onnx"}
    second = submit(api, model="resnet50", source=source).json()
    assert (first["model"], first["version"]) == ("ResNet50", 1)
    assert (second["model"], second["version"]) == ("ResNet50", 2)
    assert [one["name"] for one in api.get("/v1/models").json()["items"]] == ["ResNet50"]


@pytest.mark.parametrize("path", ["models/{}", "models/{}/engines", "builds?model={}"])
def test_a_model_is_found_in_any_case(api, path):
    submit(api, model="ResNet50")
    found = [api.get(f"/v1/{path.format(name)}") for name in ("ResNet50", "RESNET50", "resnet50")]
    assert [answer.status_code for answer in found] == [200] * 3
    assert len({answer.text for answer in found}) == 1


def test_a_bench_of_a_model_in_another_case_is_of_that_model(api):
    submit(api, model="ResNet50")
    answer = api.post(
        "/v1/models/RESNET50/bench", json={"targets": ["sm_89"], "wait_for_workers": True}
    )
    assert answer.status_code == 202, answer.text
    assert (answer.json()["model"], answer.json()["version"]) == ("ResNet50", 1)
    shown = api.get("/v1/models/resnet50/bench", params={"gpu": "sm_89"}).json()
    assert shown["model"] == "ResNet50"


def test_a_repeat_with_its_idempotency_key_gets_the_first_build_of_the_folded_name(api):
    submit(api, model="ResNet50")
    headers = {"Idempotency-Key": "again"}
    body = request(api, model="resnet50")
    first, second = (api.post("/v1/builds", json=body, headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]


@pytest.mark.parametrize(
    "path",
    [
        "models/RESNET",
        "models/RESNET/engines",
        "models/RESNET/engines/sm_89",
        "models/RESNET/compare?a=1&b=2",
        "models/RESNET/aliases",
        "models/RESNET/aliases/prod",
        "models/RESNET/aliases/prod/history",
        "models/RESNET/bench?gpu=sm_89",
        "builds?model=RESNET",
    ],
)
def test_a_name_that_may_be_either_of_two_is_a_conflict_that_names_both(api, pair, path):
    answer = api.get(f"/v1/{path}")
    assert answer.status_code == 409, answer.text
    problem = answer.json()
    assert problem["code"] == "name-ambiguous"
    assert problem["detail"] == "'RESNET' may be any of ResNet, resnet"
    assert problem["hint"] == "write it exactly: ResNet"


def test_a_submission_under_a_name_that_may_be_either_of_two_is_a_conflict(api, pair):
    assert submit(api, model="RESNET").json()["code"] == "name-ambiguous"
    for name in ("ResNet", "resnet"):
        assert submit(api, model=name).json()["model"] == name


def test_first_submissions_at_once_in_different_cases_are_all_accepted_as_one_model(api):
    bodies = [
        request(api, model=name, source={"digest": api.upload(name.encode()), "format": "onnx"})
        for name in ("bert", "Bert", "BERT", "bErT")
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(
            pool.map(lambda body: until_served(lambda: api.post("/v1/builds", json=body)), bodies)
        )
    assert [answer.status_code for answer in answers] == [202] * len(bodies)
    assert len({answer.json()["model"] for answer in answers}) == 1
    assert sorted(answer.json()["version"] for answer in answers) == [1, 2, 3, 4]
    assert len(api.get("/v1/models").json()["items"]) == 1
