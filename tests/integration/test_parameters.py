"""Large parameters: kept once, and whole wherever they are read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from farm.builds import submit
from farm.builds.explain import explain
from farm.database.tables import Job, SharedParameter
from farm.errors import InvalidRequest
from farm.fleet.workers import Fleet
from farm.registry import catalog, provenance
from farm.schemas.submission import BuildRequest
from farm.specs.runtime import Runtime
from farm.stages import STAGES, JobKind
from tests.ledger import SOURCE


def profile(inputs: int, most: int = 8) -> dict:
    return {f"x{n}": {"min": [1, 4], "opt": [2, 4], "max": [most, 4]} for n in range(inputs)}


def recipes(ledger) -> list[dict]:
    with ledger.db.read() as session:
        return list(session.scalars(select(Job.recipe).order_by(Job.id)))


def kept(ledger) -> int:
    with ledger.db.read() as session:
        return session.scalar(select(func.count()).select_from(SharedParameter))


def test_a_worker_is_given_all_of_a_parameter_that_its_recipe_only_names(ledger):
    fixed = {"sizes": list(range(1000))}
    ledger.submit(profiles=[profile(100)], fixed_inputs=fixed)
    assert max(len(json.dumps(recipe)) for recipe in recipes(ledger)) < 2000
    assert kept(ledger) == 2
    claim = ledger.claim_next()
    params = STAGES[JobKind(claim.kind)].params.model_validate(claim.params)
    assert len(params.profiles[0]) == 100
    assert params.profiles[0]["x7"].max == (8, 4)
    assert params.fixed_inputs == fixed


def test_a_small_parameter_stays_in_the_recipe(ledger):
    ledger.submit(profiles=[profile(1)])
    assert kept(ledger) == 0
    assert all(recipe["params"]["profiles"] == [profile(1)] for recipe in recipes(ledger))


def test_builds_of_the_same_parameters_share_them_and_their_jobs(ledger):
    first = ledger.submit(profiles=[profile(100)])
    second = ledger.submit(profiles=[profile(100)])
    assert kept(ledger) == 1
    assert list(ledger.jobs_of(first)) == list(ledger.jobs_of(second))
    third = ledger.submit(profiles=[profile(100, most=16)])
    assert kept(ledger) == 2
    assert not set(ledger.jobs_of(first)) & set(ledger.jobs_of(third))


def test_a_config_of_weights_is_kept_once_too(ledger):
    architecture = {
        "library": "transformers",
        "name": "BertModel",
        "config": {"id2label": {str(n): f"label {n}" for n in range(500)}},
    }
    source = {"digest": SOURCE, "format": "safetensors", "architecture": architecture}
    ledger.submit(source=source)
    assert kept(ledger) == 1
    claim = ledger.claim_next()
    assert claim.params["architecture"] == architecture


def test_a_manifest_has_them_whole_and_an_explanation_names_them(ledger):
    ledger.submit(profiles=[profile(100)])
    ledger.run_all()
    with ledger.db.read() as session:
        [engine] = catalog.engines(session, "digits")
        found = provenance.provenance_of(session, engine.id)
    assert found["build"]["recipe"]["params"]["profiles"] == [profile(100)]
    other = ledger.submit(profiles=[profile(100, most=16)])
    with ledger.db.read() as session:
        [reason, *_] = explain(session, other).jobs
    assert reason.differs == [reason.differs[0]]
    assert reason.differs[0].startswith("profiles sha256:")


def test_a_build_that_failed_is_planned_again_with_the_same(ledger):
    build = ledger.submit(profiles=[profile(100)])
    before = [recipe["params"] for recipe in recipes(ledger)]
    ledger.cancel(build)
    ledger.retry(build)
    assert [recipe["params"] for recipe in recipes(ledger)][-len(before) :] == before
    assert kept(ledger) == 1


def test_a_build_has_so_many_jobs_and_no_more(ledger):
    request = BuildRequest.model_validate(
        {
            "model": "digits",
            "source": {"digest": SOURCE, "format": "onnx"},
            "precisions": ["fp16"],
            "targets": ["sm_86", "sm_89", "sm_120"],
        }
    )
    with ledger.db.write() as session:
        fleet = Fleet.load(session, ttl_s=240)
        terms = submit.Terms(fleet=fleet, runtimes=(Runtime.TENSORRT_RTX,), most_jobs=5)
        with pytest.raises(InvalidRequest, match="more than 5 jobs") as caught:
            submit.submit_build(session, request, terms)
    assert "several builds" in caught.value.hint
    with ledger.db.write() as session:
        submit.submit_build(session, request, replace(terms, most_jobs=6))
