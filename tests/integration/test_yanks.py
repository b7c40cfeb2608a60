"""Yanked versions and engines: no pull takes them by default, and what asks for them is told why."""

from __future__ import annotations

import pytest

from farm.errors import Conflict, NotFound
from farm.registry import aliases, bench, catalog, models, yanks
from farm.registry.aliases import By
from farm.registry.match import best_match
from farm.schemas.aliases import PromoteRequest
from tests.ledger import DATA, SOURCE

ME = By(who="ann")


@pytest.fixture
def versions(ledger):
    """Two versions of ``digits`` with an engine in fp16 and fp32 for one GPU."""
    for digest in (SOURCE, DATA):
        source = {"digest": digest, "format": "onnx"}
        ledger.submit(source=source, precisions=["fp16", "fp32"])
        ledger.run_all()


@pytest.fixture
def pulled(ledger):
    def one(**asked):
        with ledger.db.read() as session:
            return best_match(session, "digits", "sm_89", **asked)

    return one


def yank(ledger, version, reason="it guesses"):
    with ledger.db.write() as session:
        yanks.yank_version(session, "digits", version, reason, "ann")


def test_a_yanked_version_is_pulled_only_by_its_number_and_with_the_reason(
    ledger, versions, pulled
):
    yank(ledger, 2)
    assert pulled().engine.version == 1
    pinned = pulled(version=2)
    assert pinned.engine.version == 2
    assert pinned.engine.yanked == "it guesses"
    assert "yanked: it guesses" in pinned.why
    with ledger.db.read() as session:
        shown = [one.yanked for one in models.model(session, "digits").versions]
    assert shown == [None, "it guesses"]


def test_a_model_whose_versions_are_all_yanked_has_nothing_to_pull(ledger, versions, pulled):
    yank(ledger, 1)
    yank(ledger, 2)
    with pytest.raises(NotFound, match="no engines that weren't yanked"):
        pulled()


def test_an_alias_of_a_yanked_version_is_refused_with_the_way_back(ledger, versions, pulled):
    with ledger.db.write() as session:
        for version in (1, 2):
            request = PromoteRequest(version=version)
            aliases.promote(session, "digits", "prod", request, ME, dry_run=False)
    yank(ledger, 2)
    with pytest.raises(NotFound, match="version 2 of digits, which is prod, was yanked") as caught:
        pulled()
    assert "farm rollback digits prod" in caught.value.hint
    with ledger.db.write() as session:
        aliases.rollback(session, "digits", "prod", ME)
    assert pulled().engine.version == 1
    with ledger.db.write() as session, pytest.raises(Conflict, match="was yanked: it guesses"):
        aliases.promote(session, "digits", "prod", PromoteRequest(version=2), ME, dry_run=False)


def test_a_yanked_engine_gives_way_to_the_next_of_its_version(ledger, versions, pulled):
    first = pulled().engine
    with ledger.db.write() as session:
        assert yanks.yank_engine(session, first.id, "it is slow", "ann")
        assert not yanks.yank_engine(session, first.id, "it is slow", "ann")
    second = pulled().engine
    assert (second.version, second.id != first.id) == (2, True)
    with ledger.db.write() as session:
        yanks.yank_engine(session, second.id, "so is this", "ann")
    # A version without an engine is not complete.
    assert pulled().engine.version == 1
    with pytest.raises(NotFound, match="was yanked"):
        pulled(version=2)
    with ledger.db.read() as session:
        table = bench.bench(session, "digits", "sm_89", version=2)
        assert {row.passed_over for row in table.rows} == {
            "it was yanked: it is slow",
            "it was yanked: so is this",
        }
        assert table.winner is None


def test_a_yank_is_taken_back(ledger, versions, pulled):
    engine = pulled().engine
    with ledger.db.write() as session:
        yanks.yank_engine(session, engine.id, "no", "ann")
        yanks.yank_engine(session, engine.id, "never", "bob")
        assert catalog.engine(session, engine.id).yanked == "never"
        assert yanks.restore_engine(session, engine.id)
        assert not yanks.restore_engine(session, engine.id)
        assert catalog.engine(session, engine.id).yanked is None
    yank(ledger, 2)
    with ledger.db.write() as session:
        yanks.restore_version(session, "digits", 2)
    assert pulled().engine.id == engine.id


def test_what_does_not_exist_cannot_be_yanked(ledger, versions):
    with ledger.db.write() as session:
        with pytest.raises(NotFound, match="no version 3"):
            yanks.yank_version(session, "digits", 3, "no", "ann")
        with pytest.raises(NotFound, match="no engine 'none'"):
            yanks.yank_engine(session, "none", "no", "ann")


def test_a_pull_explains_why_it_passed_each_other_engine_over(ledger, versions, pulled):
    ledger.submit(source={"digest": DATA, "format": "onnx"}, precisions=["bf16"])
    ledger.run_all(doubts=["it guesses"])
    best = pulled(explain=True)
    whys = {one.precision: one.why for one in best.passed_over}
    assert best.engine.precision not in whys
    assert whys["bf16"] == "it failed a gate: it guesses"
    assert len(whys) == 2
    asked = pulled(precision="fp32", explain=True)
    assert {one.precision: one.why for one in asked.passed_over} == {
        "fp16": "precision fp32 was asked for",
        "bf16": "precision fp32 was asked for",
    }
    with ledger.db.write() as session:
        yanks.yank_engine(session, asked.engine.id, "no", "ann")
    whys = {one.precision: one.why for one in pulled(explain=True).passed_over}
    assert whys["fp32"] == "it was yanked: no"
    assert pulled().passed_over is None
