"""What pages make of values: where jobs are drawn, and how facts read."""

from __future__ import annotations

import pytest

from farm.api.web import graph, readable
from farm.database.base import now
from farm.schemas.builds import JobView


def job(number: int, **changes) -> JobView:
    given = {
        "id": number,
        "kind": "build",
        "title": f"build digits:fp16@sm_{number}",
        "key": "k",
        "state": "queued",
        "reuse": "ran",
        "runtime": "tensorrt",
        "target": "tensorrt:sm_89",
        "precision": "fp16",
        "attempt": 1,
        "worker": None,
        "error": None,
        "facts": {},
        "created_at": now(),
        "started_at": None,
        "finished_at": None,
    }
    return JobView.model_validate(given | changes)


def columns(drawing):
    found: dict[int, list[int]] = {}
    for one in drawing.nodes:
        found.setdefault(one.x, []).append(one.job.id)
    return [found[x] for x in sorted(found)]


def test_a_job_is_drawn_right_of_all_that_it_takes_from():
    jobs = [job(number) for number in range(1, 6)]
    drawing = graph.draw(jobs, [(1, 2), (1, 3), (2, 4), (3, 5), (1, 5)])
    assert columns(drawing) == [[1], [2, 3], [4, 5]]
    assert len(drawing.paths) == 4  # that 5 takes from 1 is seen already
    for one in drawing.nodes:
        assert 0 < one.x <= drawing.width - graph.WIDTH
        assert 0 < one.y <= drawing.height - graph.HEIGHT
    places = [(one.x, one.y) for one in drawing.nodes]
    assert len(set(places)) == len(places)


def test_jobs_of_a_stage_stand_in_one_column():
    kinds = ["export", "cast", "build", "build", "measure"]
    jobs = [job(number, kind=kind) for number, kind in enumerate(kinds, 1)]
    # The third is built from what was exported, the fourth from what was cast.
    assert columns(graph.draw(jobs, [(1, 2), (1, 3), (2, 4), (4, 5)])) == [[1], [2], [3, 4], [5]]


def test_jobs_stand_beside_those_that_they_take_from():
    jobs = [job(number) for number in range(1, 5)]
    assert columns(graph.draw(jobs, [(1, 4), (2, 3)])) == [[1, 2], [4, 3]]


def test_edges_to_other_builds_jobs_and_circles_end_no_drawing():
    drawing = graph.draw([job(1), job(2)], [(1, 2), (2, 1), (9, 1), (1, 9)])
    assert sorted(one.job.id for one in drawing.nodes) == [1, 2]


@pytest.mark.parametrize("count", [0, graph.MOST + 1])
def test_none_and_too_many_jobs_are_not_drawn(count):
    assert graph.draw([job(number) for number in range(1, count + 1)], []) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "queued"),
        ({"state": "running", "progress": 0.4}, "running 40%"),
        ({"state": "succeeded", "reuse": "cached"}, "succeeded · cached"),
    ],
)
def test_a_drawn_job_says_its_state_in_words(changes, said):
    [one] = graph.draw([job(1, **changes)], []).nodes
    assert (one.head, one.place, one.said) == ("build fp16", "tensorrt:sm_89", said)


def test_facts_read_as_names_and_values_with_units():
    facts = {
        "peak_memory_bytes": 123_000_000,
        "build_s": 75.0,
        "run_ms": 0.12345,
        "layers": 7,
        "share": 0.5,
        "hit": True,
        "nothing": None,
        "accuracy": {"cosine": 0.9999999, "task": {"drop": 0.0}},
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 3]}],
        "float_types": ["fp16", "fp32"],
        "no_types": [],
        "profiles": [{"x": {"min": [1, 3], "opt": None}}],
    }
    assert readable.rows(facts) == [
        ("peak memory", "123.0 MB"),
        ("build", "1 min 15 s"),
        ("run", "0.123 ms"),
        ("layers", "7"),
        ("share", "50.0 %"),
        ("hit", "yes"),
        ("accuracy · cosine", "1"),
        ("accuracy · task · drop", "0"),
        ("inputs", "x: float32 [-1, 3]"),
        ("float types", "fp16, fp32"),
        ("profiles", "x=min=[1, 3]"),
    ]


def test_facts_are_grouped_by_record():
    facts = {"gone": {}, "accuracy": {"cosine": 1.0}, "layers": 7, "nobody_knows": {"x": None}}
    assert readable.groups(facts) == [("", [("layers", "7")]), ("accuracy", [("cosine", "1")])]


def test_of_many_facts_some_are_shown():
    assert len(readable.rows({f"n{number}": number for number in range(1000)})) == 120
    [(_, told)] = readable.rows({"many": list(range(100))})
    assert told.endswith("15, and 84 more")
