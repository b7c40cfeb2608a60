"""A version with other inputs or outputs reaches nobody without a word."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from farm.database.tables import Version
from farm.errors import Conflict
from farm.formats.sources import Look
from farm.registry import aliases, models, yanks
from farm.registry.aliases import By
from farm.registry.match import best_match
from farm.reports.interfaces import Interface
from farm.schemas.aliases import PromoteRequest

ME = By(who="ann")


def ports(size: int) -> list[dict]:
    return [{"name": "image", "dtype": "float32", "shape": ["batch", 3, size, size]}]


def declared(size: int) -> Look:
    return Look(interface=Interface.model_validate({"inputs": ports(size), "outputs": []}))


def known(number: int) -> dict[str, str]:
    """A source that was uploaded before."""
    return {"digest": f"sha256:{number:064x}", "format": "pt2"}


DIFFERENCE = "input `image`: float32[?,3,224,224] → float32[?,3,256,256]"


@pytest.fixture
def onnx(ledger):
    """Submits an ONNX source that declares images of a size."""

    seen = set()

    def one(number, size, **more):
        source = known(number) | {"format": "onnx"} if number in seen else ledger.upload(number)
        seen.add(number)
        return ledger.submit(source=source, look=declared(size), **more)

    return one


@pytest.fixture
def program(ledger):
    """Builds a PyTorch source whose export tells images of a size."""
    seen = set()

    def one(number, size, **more):
        source = known(number) if number in seen else ledger.upload(number) | {"format": "pt2"}
        seen.add(number)
        build = ledger.submit(source=source, **more)
        ledger.run_all(inputs=ports(size))
        return build

    return one


@pytest.fixture
def promote(ledger):
    def one(version, alias="prod", dry_run=False, **more):
        request = PromoteRequest(version=version, **more)
        with ledger.db.write() as session:
            return aliases.promote(session, "digits", alias, request, ME, dry_run=dry_run)

    return one


def pulled(ledger) -> int:
    with ledger.db.read() as session:
        return best_match(session, "digits", "sm_89").engine.version


def changes(ledger) -> list[tuple[int, list[str] | None, bool]]:
    with ledger.db.read() as session:
        rows = session.execute(
            select(Version.number, Version.changes, Version.new_inputs).order_by(Version.number)
        )
        return [tuple(row) for row in rows]


def test_an_onnx_source_with_other_inputs_is_refused_at_once_and_leaves_no_version(ledger, onnx):
    onnx(7, 224)
    with pytest.raises(Conflict) as caught:
        onnx(8, 256)
    assert caught.value.detail == (f"its inputs or outputs aren't those of version 1: {DIFFERENCE}")
    assert "--new-inputs" in caught.value.hint
    assert ledger.view(onnx(8, 256, new_inputs=True)).version == 2
    assert changes(ledger) == [(1, None, False), (2, [DIFFERENCE], True)]


def test_a_source_with_the_same_inputs_needs_no_word(ledger, onnx):
    onnx(7, 224)
    assert ledger.view(onnx(8, 224)).version == 2


def test_an_input_that_is_fixed_is_no_longer_one(ledger, onnx):
    onnx(7, 224)
    with pytest.raises(Conflict, match="input `image` is missing"):
        onnx(7, 224, fixed_inputs={"image": 0.0})


def test_a_source_is_compared_with_the_newest_version_that_may_be_pulled(ledger, onnx):
    onnx(7, 224)
    onnx(8, 256, new_inputs=True)
    onnx(9, 256)
    with ledger.db.write() as session:
        for number in (2, 3):
            yanks.yank_version(session, "digits", number, "too large", "ann")
    onnx(10, 224)
    assert [number for number, differs, _ in changes(ledger) if differs] == [2]


def test_a_program_whose_export_tells_other_inputs_is_built_and_held_back(ledger, program):
    program(7, 224)
    build = program(8, 256)
    assert ledger.view(build).held_back == [DIFFERENCE]
    assert pulled(ledger) == 1
    with ledger.db.read() as session:
        assert best_match(session, "digits", "sm_89", version=2).engine.version == 2
        first, second = models.model(session, "digits").versions
    assert (first.held_back, second.held_back) == (False, True)
    assert second.changes == [DIFFERENCE]


def test_a_word_afterwards_lets_a_held_version_go_without_building_again(ledger, program):
    program(7, 224)
    program(8, 256)
    with pytest.raises(Conflict, match="aren't those of version 1"):
        program(8, 256)
    again = ledger.submit(source=known(8), new_inputs=True)
    assert ledger.queued() == []
    assert ledger.view(again).held_back == []
    assert pulled(ledger) == 2


def test_a_promotion_needs_the_word_too(ledger, program, promote):
    program(7, 224)
    promote(1)
    program(8, 256)
    for alias in ("prod", "canary"):
        with pytest.raises(Conflict) as caught:
            promote(2, alias)
        assert DIFFERENCE in caught.value.detail
        assert "--new-inputs" in caught.value.hint
    assert promote(2, dry_run=True, new_inputs=True).changes == [DIFFERENCE]
    assert changes(ledger)[1] == (2, [DIFFERENCE], False)
    assert promote(2, new_inputs=True).alias.version == 2
    assert pulled(ledger) == 2


def test_a_word_with_the_submission_counts_for_the_differences_it_was_given_for(
    ledger, program, promote
):
    program(7, 224)
    program(8, 256, new_inputs=True)
    program(9, 256)
    assert promote(1).changes == []
    assert promote(2).changes == [DIFFERENCE]
    promote(1, new_inputs=True)
    with pytest.raises(Conflict, match="256"):  # nobody said it of the third
        promote(3)


def test_a_version_that_was_held_back_is_none_to_compare_with(ledger, program):
    program(7, 224)
    program(8, 256)
    program(9, 224)
    assert [differs for _, differs, _ in changes(ledger)] == [None, [DIFFERENCE], None]
    assert pulled(ledger) == 3


def test_an_export_that_ends_late_is_compared_with_all_the_same(ledger):
    first = ledger.submit(source=ledger.upload(7) | {"format": "pt2"})
    ledger.submit(source=ledger.upload(8) | {"format": "pt2"})
    mine = set(ledger.jobs_of(first))
    [late] = [job for job in ledger.queued() if job.id in mine]
    [soon] = [job for job in ledger.queued() if job.id not in mine]
    ledger.succeed(ledger.claim(soon), inputs=ports(256))
    assert changes(ledger)[1][1] is None
    ledger.succeed(ledger.claim(late), inputs=ports(224))
    assert changes(ledger)[1] == (2, [DIFFERENCE], False)


def test_a_source_that_another_model_exported_is_known_at_once(ledger, program):
    program(7, 224, model="other")
    program(8, 256, model="digits")
    with pytest.raises(Conflict, match="aren't those of version 1"):
        ledger.submit(source=known(7))


def test_a_retry_of_a_held_version_needs_no_word(ledger, program):
    program(7, 224)
    build = ledger.submit(source=ledger.upload(8) | {"format": "pt2"}, targets=["sm_75", "sm_89"])
    ledger.succeed(ledger.claim_next(), inputs=ports(256))
    ledger.cancel(build)
    ledger.retry(build)
    assert ledger.view(build).held_back == [DIFFERENCE]


def test_a_version_that_no_export_tells_of_is_known_by_its_engine(ledger):
    build = ledger.submit(
        source=ledger.upload(7) | {"format": "pt2"},
        targets=["torchscript:cpu"],
        precisions=["fp32"],
    )
    assert "export" not in " ".join(ledger.states(build))
    ledger.run_all(inputs=ports(224))
    with ledger.db.read() as session:
        [version] = session.scalars(select(Version))
    assert Interface.read(version.interface).inputs[0].name == "image"
