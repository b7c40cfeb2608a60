"""Whatever is submitted, published, yanked, named, deleted and collected, in whatever order: the store has
what live rows need, and a collection leaves nothing else."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete as delete_rows
from sqlalchemy import select

from farm.daemon import gc, keeper
from farm.database.base import Base
from farm.database.tables import (
    Artifact,
    Build,
    EngineRow,
    Job,
    Version,
    Yank,
)
from farm.errors import Conflict, FarmError, InvalidModel, NotFound
from farm.keeping import deletion
from farm.registry import aliases, yanks
from farm.registry.aliases import By
from farm.schemas.aliases import PromoteRequest
from farm.schemas.deletion import Deletion
from farm.specs.states import BUILD_ENDED, JobState
from farm.store import artifacts
from farm.store.local import LocalStore
from farm.trust.callers import THE_FARM
from tests.ledger import Ledger

KEPT = {"workers", "alembic_version", "audit"}  #: the last is only ever added to
MODELS = ("digits", "twin")
ME = By(who="ann")
pick = st.integers(min_value=0, max_value=2**16)
REQUESTS = (
    {},
    {"precisions": ["fp32", "fp16"]},
    {"targets": ["sm_86", "sm_89"]},
    {"precisions": ["int8"], "calibration": "data"},
    {"evaluation": "labelled"},
)


def machine(ledger: Ledger, store: LocalStore, folder) -> type[RuleBasedStateMachine]:
    class Farm(RuleBasedStateMachine):
        """Clients, workers, and those who tidy up."""

        def __init__(self) -> None:
            super().__init__()
            _wipe(ledger, store)

        def _put(self, content: str) -> str:
            file = folder / "new"
            file.write_text(content)
            stored = store.take(file)
            with ledger.db.write() as session:
                artifacts.remember(session, stored.digest, size=stored.bytes)
            return stored.digest

        @rule(model=st.sampled_from(MODELS), source=pick, which=st.sampled_from(REQUESTS))
        def submit(self, model: str, source: int, which: dict) -> None:
            given = {
                name: {"digest": self._put(value)} if isinstance(value, str) else value
                for name, value in which.items()
            }
            digest = self._put(f"source {source % 3}")
            ledger.submit(model=model, source={"digest": digest, "format": "onnx"}, **given)

        @rule(content=st.sampled_from(["source 0", "data", "nobody's", "cast"]))
        def upload(self, content: str) -> None:
            self._put(content)

        @rule(n=pick, fails=st.booleans())
        def run_one(self, n: int, fails: bool) -> None:
            if queue := ledger.queued():
                claim = ledger.claim(queue[n % len(queue)])
                assert all(map(store.has, claim.inputs.values())), "an input is missing"
                if fails:
                    ledger.fail(claim, InvalidModel("no operator Foo"))
                else:
                    self._succeed(claim)

        @rule()
        def run_all(self) -> None:
            while queue := ledger.queued():
                claim = ledger.claim(queue[0])
                assert all(map(store.has, claim.inputs.values())), "an input is missing"
                self._succeed(claim)

        def _succeed(self, claim) -> None:
            # Some jobs make the same bytes as others.
            same = claim.kind if claim.kind in ("cast", "measure") else f"{claim.kind} {claim.key}"
            ledger.succeed(claim, digest=self._put(same))

        @rule(n=pick)
        def cancel(self, n: int) -> None:
            if build := _one(ledger, select(Build.id), n):
                ledger.cancel(build)

        @rule(n=pick)
        def retry(self, n: int) -> None:
            if build := _one(ledger, select(Build.id), n):
                _try(lambda: ledger.retry(build))

        @rule(model=st.sampled_from(MODELS), number=st.integers(1, 4), which=st.booleans())
        def promote(self, model: str, number: int, which: bool) -> None:
            def go() -> None:
                request = PromoteRequest(version=number, partial=True)
                with ledger.db.write() as session:
                    alias = "prod" if which else "canary"
                    aliases.promote(session, model, alias, request, ME, dry_run=False)

            _try(go)

        @rule(model=st.sampled_from(MODELS), which=st.booleans())
        def let_an_alias_go(self, model: str, which: bool) -> None:
            def go() -> None:
                with ledger.db.write() as session:
                    aliases.delete(session, model, "prod" if which else "canary", ME)

            _try(go)

        @rule(n=pick)
        def yank(self, n: int) -> None:
            if engine := _one(ledger, select(EngineRow.id), n):
                with ledger.db.write() as session:
                    yanks.yank_engine(session, engine, "slow", "ann")

        @rule(n=pick)
        def delete_an_engine(self, n: int) -> None:
            if engine := _one(ledger, select(EngineRow.id), n):
                self._delete(lambda session, **how: deletion.engine(session, engine, **how))

        @rule(model=st.sampled_from(MODELS), number=st.integers(1, 4))
        def delete_a_version(self, model: str, number: int) -> None:
            self._delete(lambda session, **how: deletion.version(session, model, number, **how))

        @rule(model=st.sampled_from(MODELS))
        def delete_a_model(self, model: str) -> None:
            self._delete(lambda session, **how: deletion.model(session, model, **how))

        @rule(model=st.sampled_from(MODELS))
        def delete_what_lies_between(self, model: str) -> None:
            self._delete(lambda session, **how: deletion.intermediates(session, model, **how))

        @rule(n=pick)
        def delete_an_upload(self, n: int) -> None:
            if digest := _one(ledger, select(Artifact.digest), n):
                _try(lambda: keeper.delete_upload(ledger.db, store, digest, THE_FARM))

        def _delete(self, work) -> None:
            before = _needed(ledger)
            told = _try(lambda: self._deleted(partial(work, dry_run=True)))
            assert _needed(ledger) == before, "a dry run changed something"
            done = _try(lambda: self._deleted(work))
            assert (told is None or told.refused != []) == (done is None)
            if done is not None:
                gone = {file.digest for file in done.files}
                assert gone == {file.digest for file in told.files}
                assert gone.isdisjoint(_files(store)), "not all of it left the disk"

        def _deleted(self, work) -> Deletion:
            return keeper.delete(ledger.db, store, work, THE_FARM)

        @rule()
        def collect(self) -> None:
            gc.collect(ledger.db, store, older_than_s=0)
            assert _files(store) == _needed(ledger), "a collection left what nothing needs"

        @invariant()
        def what_is_needed_is_there(self) -> None:
            needed = _needed(ledger)
            assert needed <= _files(store)
            with ledger.db.read() as session:
                assert needed <= set(session.scalars(select(Artifact.digest)))
                numbers = session.execute(select(Version.model_id, Version.number)).all()
                assert len(numbers) == len(set(numbers)), "a number was given twice"

        def teardown(self) -> None:
            """Once everything is deleted, nothing is left, whatever happened before."""
            for model, which in itertools.product(MODELS, (True, False)):
                self.let_an_alias_go(model, which)
            self.run_all()
            with ledger.db.read() as session:
                live = session.scalars(select(Build.id).where(Build.state.not_in(BUILD_ENDED)))
                assert live.all() == []
            for model in MODELS:
                self.delete_a_model(model)
            self.collect()
            assert _files(store) == set()
            with ledger.db.read() as session:
                for table in (Artifact, EngineRow, Yank):
                    assert session.scalars(select(table)).all() == []

    return Farm


def _try(work):
    """What somebody asks for may be refused; the farm has no bug then."""
    try:
        return work()
    except (Conflict, NotFound):
        return None
    except FarmError as err:
        raise AssertionError(err.detail) from err


def _one(ledger, statement, n):
    with ledger.db.read() as session:
        found = sorted(session.scalars(statement))
    return found[n % len(found)] if found else None


def _needed(ledger) -> set[str]:
    """What live rows need, said without the declarations that the farm reads."""
    with ledger.db.read() as session:
        kept = {
            one.id: one
            for one in session.scalars(select(Version).where(Version.deleted_at.is_(None)))
        }
        needed = {one.source_digest for one in kept.values()}
        for build in session.scalars(select(Build)):
            if build.version_id in kept:
                for role in ("source", "calibration", "evaluation"):
                    needed |= {(build.request.get(role) or {}).get("digest")}
        for job in session.scalars(select(Job)):
            if job.state == JobState.SUCCEEDED:
                needed |= set(job.outputs.values())
            elif job.state in ("waiting", "queued", "running"):
                needed |= {one for one in job.recipe["inputs"].values() if "#" not in one}
        needed |= set(session.scalars(select(EngineRow.digest)))
    return needed - {None}


def _files(store) -> set[str]:
    return {file.digest for file in store.blobs()}


def _wipe(ledger, store) -> None:
    with ledger.db.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name not in KEPT:
                session.execute(delete_rows(table))
    for file in list(store.blobs()):
        store.place(file.digest).unlink()


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.heavy)])
def test_the_store_has_what_is_needed_and_a_collection_leaves_nothing_else(
    examples, ledger, tmp_path
):
    run_state_machine_as_test(
        machine(ledger, LocalStore(tmp_path / "store"), tmp_path),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
