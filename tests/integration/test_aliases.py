"""Aliases: one version for the whole fleet, moved only where nothing is lost, and back in one step."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select

from farm.database.tables import Build, EngineRow, Version
from farm.errors import Conflict, NotFound
from farm.registry import aliases, compare, models
from farm.registry.aliases import By
from farm.registry.match import best_match
from farm.schemas.aliases import PromoteRequest
from farm.specs.references import Reference
from tests.ledger import DATA, LABELLED, SOURCE

ME = By(who="ann")
SOURCES = (SOURCE, DATA)


@pytest.fixture
def built(ledger):
    """Builds a version of ``digits``, the first or the second source."""

    def one(number, targets=("sm_75", "sm_89"), doubts=(), **more):
        source = {"digest": SOURCES[number - 1], "format": "onnx"}
        build = ledger.submit(source=source, targets=list(targets), **more)
        ledger.run_all(doubts=doubts)
        assert ledger.view(build).version == number
        return build

    return one


@pytest.fixture
def promote(ledger):
    def one(version, alias="prod", by=ME, dry_run=False, **more):
        request = PromoteRequest(version=version, **more)
        with ledger.db.write() as session:
            return aliases.promote(session, "digits", alias, request, by, dry_run=dry_run)

    return one


@pytest.fixture
def rollback(ledger):
    def one(alias="prod", by=ME, note=None):
        with ledger.db.write() as session:
            return aliases.rollback(session, "digits", alias, by, note=note)

    return one


@pytest.fixture
def pulled(ledger):
    """The version that a pull takes, and why."""

    def one(gpu="sm_89", **asked):
        with ledger.db.read() as session:
            match = best_match(session, "digits", gpu, **asked)
        return match.engine.version, match.why

    return one


def measured(ledger, version, gpu, *, p50=1.0, task=None, evaluation=None):
    """Give a version's engine a latency, and a metric on evaluation data."""
    with ledger.db.write() as session:
        row = session.scalars(
            select(EngineRow)
            .join(Version, Version.id == EngineRow.version_id)
            .where(Version.number == version, EngineRow.gpu == gpu)
        ).one()
        row.metrics = {"batch": 1, "latency_ms": {"p50": p50}, "settings": {"cpu": "a cpu"}}
        if task is not None:
            row.accuracy = {
                "task": {"metric": "top1", "source": 0.95, "engine": task, "drop": 0.95 - task}
            }
            build = session.get_one(Build, row.build_id)
            build.request = build.request | {"evaluation": {"digest": evaluation}}


def test_a_pull_takes_the_version_that_prod_names_whatever_is_newer(built, promote, pulled):
    built(1)
    built(2)
    assert pulled()[0] == 2
    promote(1)
    version, why = pulled()
    assert version == 1
    assert "version 1 is prod" in why
    assert pulled(version=2)[0] == 2


def test_a_pull_takes_one_version_whatever_the_gpu(built, promote, pulled):
    built(1)
    built(2, targets=["sm_89"])
    assert pulled("sm_89")[0] == 2
    with pytest.raises(NotFound, match="version 2 of digits has no engine for sm_75") as caught:
        pulled("sm_75")
    assert "or pull version 1: --version 1" in caught.value.hint
    with pytest.raises(NotFound, match="no int8 engine for sm_75") as caught:
        pulled("sm_75", precision="int8")
    assert "--version" not in caught.value.hint  # version 1 has none either
    promote(1)
    assert {pulled("sm_89")[0], pulled("sm_75")[0]} == {1}


def test_without_prod_a_pull_takes_the_newest_version_that_is_complete(ledger, built, pulled):
    built(1)
    second = ledger.submit(source={"digest": DATA, "format": "onnx"}, targets=["sm_75", "sm_89"])
    while ledger.view(second).engines_done == 0:
        ledger.succeed(ledger.claim_next())
    assert pulled()[0] == 1
    ledger.run_all()
    version, why = pulled()
    assert version == 2
    assert "version 2 is the newest that is complete" in why


def test_a_version_whose_engines_failed_their_gates_is_not_complete(built, pulled):
    built(1)
    built(2, doubts=["it guesses"])
    assert pulled()[0] == 1
    with pytest.raises(NotFound, match="passed its gates"):
        pulled(version=2)


def test_a_version_that_failed_for_one_gpu_is_taken_only_where_no_other_is_complete(ledger, pulled):
    from farm.errors import EngineBuildFailed

    build = ledger.submit(targets=["sm_75", "sm_89"])
    while queue := ledger.queued():
        claim = ledger.claim(queue[0])
        if "sm_75" in claim.title and claim.kind == "build":
            ledger.fail(claim, EngineBuildFailed("no kernel"))
        else:
            ledger.succeed(claim)
    assert ledger.view(build).state == "failed"
    version, why = pulled("sm_89")
    assert version == 1
    assert "none is complete" in why


def test_a_version_is_promoted_only_with_an_engine_for_each_gpu_served_before(
    built, promote, pulled
):
    built(1)
    built(2, targets=["sm_89"])
    assert promote(1).before is None
    with pytest.raises(Conflict, match="sm_75: it has no engine"):
        promote(2)
    assert pulled()[0] == 1
    made = promote(2, partial=True, note="t4 goes")
    assert [(one.gpu, one.why) for one in made.left_out] == [("sm_75", "it has no engine")]
    assert (made.before, made.version, made.alias.note) == (1, 2, "t4 goes")
    assert pulled()[0] == 2


def test_an_engine_that_failed_a_gate_stands_in_the_way(built, promote):
    built(1)
    built(2, doubts=["it guesses"])
    promote(1)
    with pytest.raises(Conflict, match="sm_89: its engine failed a gate: it guesses"):
        promote(2)


def test_a_version_without_a_good_engine_takes_no_alias(built, promote):
    built(1, doubts=["it guesses"])
    with pytest.raises(Conflict, match="no engine that passed its gates"):
        promote(1)
    with pytest.raises(NotFound, match="no version 7"):
        promote(7)


@pytest.mark.parametrize(("p50", "passes"), [(1.09, True), (1.2, False)])
def test_an_engine_slower_than_the_one_it_replaces_stands_in_the_way(
    ledger, built, promote, p50, passes
):
    for number, took in ((1, 1.0), (2, p50)):
        built(number, targets=["sm_89"])
        measured(ledger, number, "sm_89", p50=took)
    promote(1)
    if passes:
        [beside] = promote(2).engines
        assert beside.latency_ratio == pytest.approx(p50)
        assert beside.task_reason == "neither was evaluated with labels"
        return
    with pytest.raises(Conflict, match=r"takes 1\.20 × the time of the one it replaces"):
        promote(2)
    assert promote(2, max_slowdown=1.5).alias.version == 2


def test_an_engine_that_is_worse_on_the_same_data_stands_in_the_way(ledger, built, promote):
    for number, metric in ((1, 0.95), (2, 0.9)):
        built(number, targets=["sm_89"])
        measured(ledger, number, "sm_89", task=metric, evaluation=LABELLED)
    promote(1)
    with pytest.raises(Conflict, match=r"0\.0500 below that of the one it replaces"):
        promote(2)
    assert promote(2, max_drop=0.06).engines[0].task_drop == pytest.approx(0.05)


def test_what_was_evaluated_on_other_data_is_not_compared_and_that_is_said(ledger, built, promote):
    for number, data in ((1, LABELLED), (2, SOURCE)):
        built(number, targets=["sm_89"])
        measured(ledger, number, "sm_89", task=0.95 - number / 10, evaluation=data)
    promote(1)
    [beside] = promote(2).engines
    assert (beside.task_drop, beside.task_reason) == (None, "they were evaluated on different data")


def test_two_versions_are_compared_by_gpu(ledger, built, promote):
    built(1)
    built(2, targets=["sm_89"])
    for number, took, metric in ((1, 2.0, 0.9), (2, 1.0, 0.93)):
        measured(ledger, number, "sm_89", p50=took, task=metric, evaluation=LABELLED)
    promote(1)
    with ledger.db.read() as session:
        found = compare.compared(session, "digits", Reference(alias="prod"), Reference(version=2))
    assert (found.a, found.b) == (1, 2)
    by_gpu = {one.gpu: one for one in found.gpus}
    both = by_gpu["sm_89"]
    assert (both.latency_ratio, both.size_ratio) == (0.5, 1.0)
    assert both.task_drop == pytest.approx(-0.03)
    assert (by_gpu["sm_75"].b, by_gpu["sm_75"].latency_ratio) == (None, None)
    assert by_gpu["sm_75"].a.version == 1


def test_a_dry_run_says_what_would_be_left_out_and_moves_nothing(ledger, built, promote, pulled):
    built(1)
    built(2, targets=["sm_89"])
    promote(1)
    said = promote(2, dry_run=True)
    assert (said.alias, said.before, said.left_out[0].gpu) == (None, 1, "sm_75")
    assert pulled()[0] == 1
    with ledger.db.read() as session:
        assert len(aliases.history(session, "digits", "prod", limit=10)) == 1


def test_a_rollback_goes_one_step_back_each_time_and_the_history_tells_all(
    ledger, built, promote, rollback, pulled
):
    built(1)
    built(2)
    third = ledger.submit(source=ledger.upload(3), targets=["sm_75", "sm_89"])
    ledger.run_all()
    assert ledger.view(third).version == 3
    for version in (1, 2, 3):
        promote(version, note=f"n{version}")
    assert rollback(by=By(who="bob"), note="it burns").version == 2
    assert pulled()[0] == 2
    assert rollback().version == 1
    with pytest.raises(
        Conflict, match="named no version before 1 was promoted: there is nothing to go back to"
    ):
        rollback()
    with ledger.db.read() as session:
        moves = aliases.history(session, "digits", "prod", limit=10)
    assert [(m.revision, m.action, m.before, m.version, m.by) for m in moves] == [
        (5, "rollback", 2, 1, "ann"),
        (4, "rollback", 3, 2, "bob"),
        (3, "promote", 2, 3, "ann"),
        (2, "promote", 1, 2, "ann"),
        (1, "promote", None, 1, "ann"),
    ]
    assert moves[1].note == "it burns"


def test_a_version_that_an_alias_names_already_is_promoted_without_a_move(built, promote):
    built(1)
    assert promote(1).alias.revision == promote(1).alias.revision == 1


def test_a_move_is_refused_to_who_saw_another_revision(built, promote, rollback):
    built(1)
    built(2)
    promote(1, by=By(who="ann", revision=0))
    with pytest.raises(Conflict, match="at revision 1, not 0"):
        promote(2, by=By(who="bob", revision=0))
    promote(2, by=By(who="bob", revision=1))
    with pytest.raises(Conflict, match="at revision 2, not 1"):
        rollback(by=By(who="ann", revision=1))


def test_a_deleted_alias_names_nothing_and_keeps_its_history(ledger, built, promote, pulled):
    built(1)
    built(2)
    promote(1)
    with ledger.db.write() as session:
        aliases.delete(session, "digits", "prod", ME)
    assert pulled()[0] == 2
    with ledger.db.read() as session:
        assert models.model(session, "digits").aliases == []
        assert [m.action for m in aliases.history(session, "digits", "prod", limit=9)] == [
            "delete",
            "promote",
        ]
        with pytest.raises(NotFound, match="no alias 'prod'"):
            aliases.one(session, "digits", "prod")
    assert promote(2).alias.revision == 3


def test_other_aliases_are_pulled_by_name_and_do_not_change_the_default(built, promote, pulled):
    built(1)
    built(2)
    promote(1, "canary")
    assert pulled()[0] == 2
    assert pulled(alias="canary")[0] == 1
    with pytest.raises(NotFound, match="no alias 'staging'") as caught:
        pulled(alias="staging")
    assert "canary" in caught.value.hint


def test_of_promotions_at_once_each_sees_the_one_before(ledger, built, promote):
    built(1)
    built(2)
    promote(1)
    ended, lost = [], []

    def move(version):
        try:
            ended.append(promote(version, by=By(who=str(version), revision=1)).alias.revision)
        except Conflict:
            lost.append(version)

    threads = [threading.Thread(target=move, args=(2,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [2]
    assert len(lost) == 3
