"""A model at a glance: what its versions have, what prod lacks, and that it fits a narrow terminal."""

from __future__ import annotations

import pytest

from farm.builds import views
from farm.cli import overview as command
from farm.registry import aliases, labels, overview, yanks
from farm.registry.aliases import By
from farm.schemas.aliases import PromoteRequest
from farm.schemas.labels import DescriptionChanges
from farm.schemas.models import ModelDetail
from tests.integration.test_aliases import measured

ME = By(who="ann")


@pytest.fixture
def shown(ledger):
    def one() -> ModelDetail:
        with ledger.db.read() as session:
            found = overview.overview(session, "DIGITS")
            running = views.builds(session, model=found.name, live=True)
        return found.model_copy(update={"running": running})

    return one


@pytest.fixture
def promote(ledger):
    def one(version):
        with ledger.db.write() as session:
            request = PromoteRequest(version=version)
            aliases.promote(session, "digits", "prod", request, ME, dry_run=False)

    return one


def test_the_matrix_has_each_versions_verdict_by_gpu_and_precision(ledger, shown):
    ledger.submit(targets=["sm_75", "sm_89"])
    ledger.run_all()
    ledger.submit(source=ledger.upload(7), targets=["sm_89"], precisions=["fp32", "fp16"])
    ledger.run_all(doubts=["its error is 0.9"])
    found = [
        (row.gpu, row.precision, [(one.version, one.verdict) for one in row.cells])
        for row in shown().matrix
    ]
    assert found == [
        ("sm_75", "fp16", [(1, "passed")]),
        ("sm_89", "fp16", [(1, "passed"), (2, "doubtful")]),
        ("sm_89", "fp32", [(2, "doubtful")]),
    ]


def test_a_yanked_engine_is_shown_as_such_unless_another_passed(ledger, shown):
    ledger.submit()
    ledger.run_all()
    [row] = shown().matrix
    with ledger.db.write() as session:
        yanks.yank_engine(session, row.cells[0].engines[0], "slow", "ann")
    [cell] = shown().matrix[0].cells
    assert cell.verdict == "yanked"
    ledger.submit(targets=["tensorrt:sm_89"])
    ledger.run_all()
    [cell] = shown().matrix[0].cells
    assert (cell.verdict, len(cell.engines)) == ("passed", 1)


def test_what_is_missing_is_told_by_the_newest_build(ledger, shown):
    build = ledger.submit(targets=["sm_75", "sm_89"])
    [version] = shown().versions
    assert (version.complete, version.missing) == (False, [f"build {build} is queued"])
    assert [one.id for one in shown().running] == [build]
    ledger.run_all(doubts=["its error is 0.9"])
    [version] = shown().versions
    assert version.missing == ["sm_75: fp16 doubtful", "sm_89: fp16 doubtful"]
    other = ledger.submit(source=ledger.upload(7))
    ledger.cancel(other)
    assert shown().versions[1].missing == [f"sm_89: fp16 build {other} cancelled"]
    assert shown().running == []
    ledger.submit(source=ledger.upload(8))
    ledger.run_all()
    assert (shown().versions[2].complete, shown().versions[2].missing) == (True, [])


def test_a_complete_version_whose_engines_still_wait_says_so(ledger, shown, capsys):
    ledger.submit(targets=["sm_89"])
    ledger.run_all()
    more = ledger.submit(targets=["sm_75"])
    [version] = shown().versions
    assert (version.complete, version.missing) == (True, [f"build {more} is running"])
    command._print(shown(), whole=True)
    printed = capsys.readouterr().out
    assert "yes, and building" in printed
    assert f"v1: building: build {more} is running" in printed
    ledger.run_all()
    [version] = shown().versions
    assert (version.complete, version.missing) == (True, [])


def test_what_prod_lacks_beside_the_newest_is_told(ledger, shown, promote):
    ledger.submit(targets=["sm_89"])
    ledger.run_all()
    assert shown().prod_lacks is None
    promote(1)
    ledger.submit(source=ledger.upload(7), targets=["sm_75", "sm_89"])
    ledger.run_all()
    measured(ledger, 1, "sm_89", p50=2.0)
    measured(ledger, 2, "sm_89", p50=1.0)
    lacks = shown().prod_lacks
    assert (lacks.version, lacks.newest, lacks.targets) == (1, 2, ["sm_75 fp16"])
    assert [(one.gpu, one.latency_ratio) for one in lacks.better] == [("sm_89", 0.5)]
    promote(2)
    assert shown().prod_lacks is None


def test_a_version_that_no_pull_takes_is_none_that_prod_lacks(ledger, shown, promote):
    ledger.submit()
    ledger.run_all()
    promote(1)
    ledger.submit(source=ledger.upload(7), targets=["sm_75"])
    ledger.run_all()
    with ledger.db.write() as session:
        yanks.yank_version(session, "digits", 2, "it guesses", "ann")
    assert shown().prod_lacks is None


def test_of_many_versions_the_newest_and_those_with_an_alias_are_shown_in_detail(
    ledger, shown, promote
):
    ledger.submit()
    ledger.run_all()
    promote(1)
    for number in range(25):
        ledger.submit(source=ledger.upload(number + 100))
    found = shown()
    assert len(found.versions) == 26
    assert found.detailed == [1, *range(7, 27)]
    assert [one.version for one in found.versions if one.complete is None] == list(range(2, 7))


def test_the_table_fits_into_80_columns(ledger, shown, promote, capsys):
    precisions = ["fp32", "fp16"]
    for number in range(12):
        ledger.submit(source=ledger.upload(number + 100), precisions=precisions)
        ledger.run_all()
    promote(1)
    with ledger.db.write() as session:
        changes = DescriptionChanges(
            labels={"k" * 60: "v" * 190, "team": "vision"}, note="a word " * 100
        )
        labels.describe_version(session, "digits", 12, changes)
        labels.describe_model(session, "digits", changes)
    ledger.submit(targets=["sm_75"])
    command._print(shown(), whole=True)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= command.WIDTH
    assert "prod → v1" in said
    assert "v12" in said
    assert "team=vision" in said
    assert "… and of v" in said
    assert "is queued: 0 of 1 engine" in said
    command._print(command._only(shown(), 12), whole=False)
    said = capsys.readouterr().out
    assert "v11" not in said
    assert "gives nothing" in said
