"""What the rules keep and let go, and who says so."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from farm.daemon import gc, keeper
from farm.daemon.keeper import Keeper
from farm.database.base import now
from farm.database.tables import AuditRow, Build, EngineRow
from farm.keeping import retention
from farm.keeping.pulled import Pulled
from farm.registry import aliases, catalog
from farm.registry.aliases import By
from farm.schemas.aliases import PromoteRequest
from farm.settings import Settings
from farm.specs.retention import Retention
from farm.store.local import LocalStore

ME = By(who="ann")
OLD = timedelta(days=100)


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def versions(ledger):
    """Five versions of ``digits``, all old."""
    for number in range(5):
        ledger.submit(source=ledger.upload(number))
        ledger.run_all()
    _age(ledger)


def _age(ledger):
    with ledger.db.write() as session:
        session.execute(update(EngineRow).values(created_at=now() - OLD))
        session.execute(update(Build).values(finished_at=now() - OLD))


def promote(ledger, *numbers):
    with ledger.db.write() as session:
        for number in numbers:
            request = PromoteRequest(version=number)
            aliases.promote(session, "digits", "prod", request, ME, dry_run=False)


def served(ledger) -> list[int]:
    with ledger.db.read() as session:
        return sorted(one.version for one in catalog.engines(session, "digits"))


def retire(ledger, store, default=Retention(), **options):
    return keeper.retire(ledger.db, store, default, **options)


def test_by_default_everything_is_kept(ledger, store, versions):
    assert Settings().retention.is_off
    assert retire(ledger, store).items == []
    assert served(ledger) == [1, 2, 3, 4, 5]


def test_aliases_their_history_and_the_newest_keep_their_engines_the_others_go(
    ledger, store, versions
):
    promote(ledger, 1, 2, 3)
    rule = Retention(newest=1, history=1, engines_days=90)
    with ledger.db.read() as session:
        kept = retention.view(session, "digits", rule).kept
    assert [(one.version, one.why) for one in kept] == [
        (2, ["prod named it"]),
        (3, ["prod names it"]),
        (5, ["among the 1 newest"]),
    ]
    told = retire(ledger, store, rule, dry_run=True)
    assert served(ledger) == [1, 2, 3, 4, 5]
    done = retire(ledger, store, rule)
    assert [one.deletion.what for one in done.items] == [
        "engines of digits@1",
        "engines of digits@4",
    ]
    assert {one.why for one in done.items} == {"not pulled for 90 days"}
    assert told.freed_bytes == done.freed_bytes == 2 * 14
    assert served(ledger) == [2, 3, 5]
    with ledger.db.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action == "delete")).all()
    assert [(row.who, row.object, row.details["why"]) for row in rows] == [
        ("the farm", f"engines of digits@{number}", "retention: not pulled for 90 days")
        for number in (1, 4)
    ]
    assert retire(ledger, store, rule).items == []


def test_an_engine_that_was_pulled_lately_stays(ledger, store, versions):
    pulled = Pulled(ledger.db)
    with ledger.db.read() as session:
        first = next(one for one in catalog.engines(session, "digits") if one.version == 1)
    pulled.note(first.id)
    pulled.note("00000000deleted0")
    pulled.write()
    retire(ledger, store, Retention(newest=0, engines_days=90))
    assert served(ledger) == [1]
    pulled.note(first.id)  # within the hour: nothing to write
    pulled.write()


def test_intermediates_go_after_the_last_build_whatever_the_version(ledger, store, versions):
    promote(ledger, 5)
    ledger.submit(source=ledger.upload(9))
    ledger.run_all()
    rule = Retention(intermediates_days=14)
    done = retire(ledger, store, rule)
    assert [one.deletion.what for one in done.items] == [
        f"intermediates of digits@{number}" for number in range(1, 6)
    ]
    assert served(ledger) == [1, 2, 3, 4, 5, 6]
    assert retire(ledger, store, rule).items == []


def test_a_version_that_is_being_built_is_left_alone(ledger, store, versions):
    ledger.submit(source={"digest": f"sha256:{0:064x}", "format": "onnx"}, precisions=["fp32"])
    retire(ledger, store, Retention(newest=0, engines_days=1, intermediates_days=1))
    assert served(ledger) == [1]


def test_a_models_own_rule_goes_before_the_farms(ledger, store, versions):
    with ledger.db.write() as session:
        assert retention.put(session, "DIGITS", Retention(newest=4, engines_days=1), "ann")
        assert retention.put(session, "digits", Retention(newest=4, engines_days=1), "bob") is None
    with ledger.db.read() as session:
        view = retention.view(session, "digits", Retention())
    assert (view.model, view.is_default, view.set_by) == ("digits", False, "ann")
    retire(ledger, store, Retention(newest=0, engines_days=0))
    assert served(ledger) == [2, 3, 4, 5]
    with ledger.db.write() as session:
        assert retention.reset(session, "digits")
        assert retention.reset(session, "digits") is None
    retire(ledger, store, Retention())
    assert served(ledger) == [2, 3, 4, 5]


def test_a_round_of_the_keeper_applies_the_rules_and_collects_what_is_unused(
    ledger, store, versions, tmp_path, monkeypatch
):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda *_, **how: collected.append(how) or _Nothing())
    settings = Settings(retention=Retention(newest=2, engines_days=1), unused_after_s=60)
    Keeper(ledger.db, store, Pulled(ledger.db), settings).round()
    assert served(ledger) == [4, 5]
    assert collected == [{"older_than_s": 60}]
    never = Settings(unused_after_s=0)
    Keeper(ledger.db, store, Pulled(ledger.db), never).round()
    assert len(collected) == 1


class _Nothing:
    removed_total = uploads = 0


def test_the_rule_reaches_the_farms_other_processes():
    rule = Retention(engines_days=90, newest=2)
    settings = Settings(retention=rule)
    assert Retention.model_validate_json(settings.environment()["FARM_RETENTION"]) == rule
