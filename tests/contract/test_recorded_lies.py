"""Rows that an earlier farm kept unchecked: none of them keeps others from being shown."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from farm.database.tables import EngineRow, Job
from farm.stages import JobKind


def nested(depth: int) -> dict:
    found: dict = {}
    for _ in range(depth):
        found = {"a": found}
    return found


RANGE = {"min": [1], "opt": [1], "max": [1]}
ENGINES = {
    "accuracy is a list": {"accuracy": [1]},
    "accuracy is deep": {"accuracy": nested(300)},
    "samples are a word": {"accuracy": {"samples": "x", "task": [1]}},
    "agreement is a word": {"accuracy": {"top1_agreement": "x"}},
    "task is of words": {"accuracy": {"task": {"source": "x", "engine": [], "drop": {}}}},
    "metrics are a word": {"metrics": "x"},
    "latency is a list": {"metrics": {"latency_ms": [1]}},
    "p50 is a word": {"metrics": {"latency_ms": {"p50": "1.5"}}},
    "a share is a word": {"metrics": {"latency_ms": {"p50": 1.0}, "others_cpu_share": "a"}},
    "settings are a list": {"metrics": {"latency_ms": {"p50": 1.0}, "settings": [1]}},
    "warnings are a number": {"metrics": {"latency_ms": {"p50": 1.0}, "warnings": 5}},
    "doubts are a word": {"doubts": "abc", "state": "doubtful"},
    "doubts are lists": {"doubts": [1, [2]], "state": "doubtful"},
    "inputs are a number": {"description": {"inputs": 5, "outputs": [], "profiles": []}},
    "no inputs": {"description": {}},
    "compute is a word": {
        "description": {"inputs": [], "outputs": [], "profiles": [], "compute": "x"}
    },
    "a field is the view's own": {
        "description": {"inputs": [], "outputs": [], "profiles": [], "model": "x"}
    },
    "a number of 300 digits": {
        "description": {
            "inputs": [],
            "outputs": [],
            "profiles": [],
            "timing_cache": {"hit": 10**300},
        }
    },
}


@pytest.fixture
def build(api, ledger) -> str:
    """A build with engines in fp32, fp16 and int8, which are held against each other."""
    wanted = {
        "model": "digits",
        "source": {"digest": api.upload(b"a model"), "format": "onnx"},
        "precisions": ["fp32", "fp16", "int8"],
        "targets": ["tensorrt-rtx:sm_89"],
        "calibration": {"digest": api.upload(b"data")},
    }
    made = api.post("/v1/builds", json=wanted)
    assert made.status_code == 202, made.text
    ledger.run_all()
    return made.json()["id"]


def ask(api, build: str) -> list[str]:
    """Ask for all that shows it; return the ids of its engines."""
    engines = [one["engine"] for one in api.get(f"/v1/builds/{build}").json()["engines"]]
    paths = [f"/v1/builds/{build}{end}" for end in ("", "/explain", "/logs", "/events")]
    paths += ["/v1/builds", "/v1/models", "/v1/models/digits", "/v1/models/digits/engines"]
    paths += ["/v1/models/digits/engines/sm_89?doubtful=true", "/metrics"]
    paths += [f"/v1/engines/{one}{end}" for one in engines for end in ("", "/manifest")]
    for path in paths:
        answer = api.get(path)
        assert answer.status_code == 200, (path, answer.text[:500])
    return engines


@pytest.mark.parametrize("which", ["fp32", "int8"])
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_nobody_can_read_is_shown_as_doubtful(
    api, ledger, build, name, which
) -> None:
    with ledger.db.write() as session:
        fine = {"metrics": {"batch": 1, "latency_ms": {"p50": 1.0}}}
        session.execute(update(EngineRow).values(**fine))
        session.execute(
            update(EngineRow).where(EngineRow.precision == which).values(**ENGINES[name])
        )
    assert len(ask(api, build)) == 3
    items = {one["precision"]: one for one in api.get("/v1/models/digits/engines").json()["items"]}
    assert items[which]["state"] == "doubtful"
    assert items["fp16"]["state"] == "ready"
    assert items["fp16"]["metrics"] == fine["metrics"]
    assert api.get("/v1/models/digits/engines/sm_89").json()["engine"]["precision"] != which


@pytest.mark.parametrize(
    "facts",
    [nested(400), {"x": "y" * 3_000_000}, {"samples": [1]}, {"samples": "x" * 20_000}, [1], "x"],
    ids=["deep", "3 MB", "samples are a list", "samples are long", "a list", "a word"],
)
def test_facts_that_nobody_can_read_keep_no_build_from_being_shown(
    api, ledger, build, facts
) -> None:
    with ledger.db.write() as session:
        session.execute(update(Job).values(facts=facts))
    ask(api, build)
    again = {"labels": {"again": "yes"}, "precisions": ["fp16"], "targets": ["tensorrt-rtx:sm_86"]}
    wanted = {"model": "digits", "source": {"digest": api.upload(b"a model"), "format": "onnx"}}
    other = api.post("/v1/builds", json=wanted | again)
    assert other.status_code == 202
    assert api.get(f"/v1/builds/{other.json()['id']}/explain").status_code == 200


@pytest.mark.parametrize("text", [b"\0garbage", b'{"layers": 5}', b"[" * 100_000])
def test_a_layer_report_that_nobody_can_read_is_no_report(api, ledger, build, text) -> None:
    engine = ask(api, build)[0]
    outputs = {"engine": "sha256:" + "0" * 64, "layers": api.upload(text)}
    with ledger.db.write() as session:
        session.execute(update(Job).where(Job.kind == JobKind.BUILD).values(outputs=outputs))
    answer = api.get(f"/v1/engines/{engine}/layers")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    "facts",
    [{"snr_db": [1]}, {"snr_db": {"a": "x"}}, nested(400), [1], {"left_in_float": {"a": 1}}],
)
def test_a_calibration_that_nobody_can_read_is_none(api, ledger, build, facts) -> None:
    with ledger.db.write() as session:
        session.execute(update(Job).where(Job.kind == JobKind.CALIBRATE).values(facts=facts))
    for engine in ask(api, build):
        answer = api.get(f"/v1/engines/{engine}/quantization")
        is_empty = answer.status_code == 200 and not answer.json()["snr_db"]
        assert is_empty or (answer.status_code, answer.json()["code"]) == (404, "not-found")
        assert api.get(f"/engines/{engine}").status_code == 200
