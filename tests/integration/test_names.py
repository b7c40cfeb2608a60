"""Models by name in the database: any case finds them, and no two differ in case alone."""

import threading

import pytest
from alembic import command
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from farm.builds import views
from farm.database.tables import Model
from farm.errors import NameAmbiguous, NotFound
from farm.registry import aliases, bench, catalog, compare, models, names, yanks
from farm.registry.match import best_match
from farm.schemas.aliases import PromoteRequest
from farm.specs.references import Reference
from tests.integration.test_schema import run

PAIR = ("ResNet", "resnet")


def stored(ledger) -> list[tuple[str, str | None]]:
    with ledger.db.read() as session:
        rows = session.execute(select(Model.name, Model.folded).order_by(Model.id))
        return [tuple(row) for row in rows]


@pytest.fixture
def old(ledger):
    """A database in which an older farm kept two names that differ in case alone, and one that doesn't."""
    run(ledger.db, command.downgrade, "0015")
    with ledger.db.engine.begin() as connection:
        for name in (*PAIR, "BERT"):
            connection.execute(
                text("INSERT INTO models (name, created_at) VALUES (:name, '2026-01-01 00:00:00')"),
                {"name": name},
            )
    run(ledger.db, command.upgrade, "head")
    return ledger


def test_a_submission_in_another_case_is_a_version_of_the_model_that_there_is(ledger):
    first = ledger.view(ledger.submit(model="ResNet50"))
    again = ledger.view(ledger.submit(model="resnet50"))
    other = ledger.view(ledger.submit(model="RESNET50", source=ledger.upload(7)))
    assert [(one.model, one.version) for one in (first, again, other)] == [
        ("ResNet50", 1),
        ("ResNet50", 1),
        ("ResNet50", 2),
    ]
    assert stored(ledger) == [("ResNet50", "resnet50")]


def test_jobs_bear_the_models_own_name_in_whatever_case_it_was_submitted(ledger):
    ledger.submit(model="Bert")
    later = ledger.view(ledger.submit(model="BERT", source=ledger.upload(7)))
    assert {job.title.split()[1].split(":")[0] for job in later.jobs} == {"Bert"}


def test_a_retry_keeps_a_build_with_the_model_that_it_was_submitted_to(ledger):
    ledger.submit(model="Bert", source=ledger.upload(7))
    build = ledger.submit(model="bert")
    ledger.cancel(build)
    ledger.retry(build)
    assert (ledger.view(build).model, ledger.view(build).version) == ("Bert", 2)
    assert {job.title.split()[1].split(":")[0] for job in ledger.view(build).jobs} == {"Bert"}


def test_every_question_about_a_model_finds_it_in_any_case(ledger):
    ledger.submit(model="ResNet50")
    ledger.run_all()
    with ledger.db.read() as session:
        assert models.model(session, "RESNET50").name == "ResNet50"
        assert [one.model for one in catalog.engines(session, "resnet50")] == ["ResNet50"]
        assert best_match(session, "resNet50", "sm_89", version=1).engine.model == "ResNet50"
        assert best_match(session, "resNet50", "sm_89").engine.model == "ResNet50"
        assert bench.bench(session, "resnet50", "sm_89").model == "ResNet50"
        assert [one.model for one in views.builds(session, model="RESNET50")] == ["ResNet50"]


def test_an_alias_is_the_models_in_whatever_case_it_was_promoted(ledger):
    ledger.submit(model="Bert")
    ledger.run_all()
    me = aliases.By(who="me")
    with ledger.db.write() as session:
        request = PromoteRequest(version=1)
        aliases.promote(session, "BERT", "prod", request, me, dry_run=False)
    with ledger.db.write() as session:
        for name in ("Bert", "bert"):
            found = aliases.one(session, name, "prod")
            assert (found.model, found.version) == ("Bert", 1)
            assert best_match(session, name, "sm_89", alias="prod").engine.model == "Bert"
        assert len(aliases.history(session, "bErt", "prod", limit=9)) == 1
        both = Reference(version=1), Reference(alias="prod")
        assert compare.compared(session, "bERT", *both).model == "Bert"
        yanks.yank_version(session, "BERT", 1, "it is wrong", "me")
        assert models.model(session, "bert").versions[0].yanked == "it is wrong"
        assert aliases.delete(session, "BERT", "prod", me) == "Bert"


def test_first_submissions_at_once_in_different_cases_make_one_model(ledger):
    """Real threads on a real database race over a name that nobody has taken."""
    made, errors = [], []
    sources = [ledger.upload(number) for number in range(12)]
    start = threading.Barrier(len(sources))

    def client(number: int) -> None:
        name = "".join(
            letter.upper() if number >> at & 1 else letter for at, letter in enumerate("bert")
        )
        start.wait()
        for _ in range(20):
            try:
                made.append(ledger.submit(model=name, source=sources[number]))
                return
            except IntegrityError:  # a lost race over a unique row; the API tries again too
                continue
            except Exception as err:
                errors.append(err)
                return

    threads = [threading.Thread(target=client, args=(one,)) for one in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    [(name, folded)] = stored(ledger)
    assert folded == "bert"
    views = [ledger.view(build) for build in made]
    assert {one.model for one in views} == {name}
    assert sorted(one.version for one in views) == list(range(1, 13))


def test_a_second_transaction_cannot_take_a_name_in_another_case(ledger):
    with ledger.db.write() as session:
        names.named_or_new(session, "Bert")
    with pytest.raises(IntegrityError), ledger.db.write() as session:
        session.add(Model(name="BERT", folded="bert"))


def test_an_older_pair_keeps_both_names_and_each_is_found_by_its_own(old):
    assert stored(old) == [("ResNet", None), ("resnet", None), ("BERT", "bert")]
    for name in PAIR:
        with old.db.read() as session:
            assert names.named(session, name).name == name
        assert old.view(old.submit(model=name)).model == name


def test_a_name_that_may_be_either_of_an_older_pair_is_an_error_that_names_both(old):
    with old.db.read() as session, pytest.raises(NameAmbiguous) as caught:
        names.named(session, "RESNET")
    assert "'RESNET' may be any of ResNet, resnet" in caught.value.detail
    assert caught.value.hint == "write it exactly: ResNet"
    with pytest.raises(NameAmbiguous):
        old.submit(model="RESNET")
    assert len(stored(old)) == 3


def test_an_older_name_of_its_own_is_found_in_any_case(old):
    assert old.view(old.submit(model="Bert")).model == "BERT"


def test_what_is_left_of_an_older_pair_is_found_in_any_case_and_not_made_twice(old):
    with old.db.write() as session:
        session.delete(session.scalars(select(Model).where(Model.name == "resnet")).one())
    assert old.view(old.submit(model="RESNET")).model == "ResNet"
    assert [name for name, _ in stored(old)] == ["ResNet", "BERT"]


def test_a_name_that_nobody_has_is_told_with_those_there_are(old):
    with old.db.read() as session, pytest.raises(NotFound) as caught:
        names.named(session, "vgg")
    assert caught.value.hint == "the models are BERT, ResNet, resnet"
