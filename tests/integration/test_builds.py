"""Builds and jobs in the database: single flight, leases, cancel, retry."""

import threading

import pytest
from sqlalchemy import func, select

from farm.builds import attach, views
from farm.database.tables import EngineRow, Event, Job
from farm.errors import (
    CastFailed,
    ChildDied,
    ChildOutOfMemory,
    Conflict,
    InvalidModel,
    LeaseLost,
    NotFound,
)
from farm.queue import jobs, leases
from farm.registry import catalog, models, names
from farm.registry.match import best_match
from farm.specs.gates import GateSet, QuantizedGates
from tests.ledger import DATA, SOURCE, TOOLCHAIN


def test_a_build_runs_its_jobs_in_order_and_publishes_its_engines(ledger):
    build = ledger.submit(targets=["sm_89", "cpu"])
    assert ledger.view(build).state == "queued"
    order = ledger.run_all()
    assert order[:2] == ["export digits", "cast digits:fp16"]
    view = ledger.view(build)
    assert view.state == "succeeded"
    assert view.engines_done == view.engines_total == 2
    assert all(engine.engine for engine in view.engines)


def test_an_engine_is_published_only_when_it_is_built_and_measured(ledger):
    build = ledger.submit()
    for title in ("export", "cast", "build"):
        claim = ledger.claim_next()
        assert claim.kind == title
        ledger.succeed(claim)
    assert ledger.view(build).engines_done == 0
    ledger.run_all()
    assert ledger.view(build).engines_done == 1


def test_the_same_work_submitted_twice_runs_once_and_serves_both(ledger):
    first, second = ledger.submit(), ledger.submit(priority=9, labels={"who": "else"})
    assert {job.reuse for job in ledger.view(second).jobs} == {"joined"}
    assert len(ledger.run_all()) == 4
    assert ledger.view(first).state == ledger.view(second).state == "succeeded"
    assert ledger.view(first).engines[0].engine == ledger.view(second).engines[0].engine


def test_work_that_is_done_is_taken_from_the_registry_at_once(ledger):
    ledger.submit()
    ledger.run_all()
    again = ledger.view(ledger.submit())
    assert again.state == "succeeded"
    assert {job.reuse for job in again.jobs} == {"cached"}
    assert ledger.queued() == []


def test_a_build_for_more_targets_runs_only_what_is_new(ledger):
    ledger.submit(targets=["sm_86"])
    ledger.run_all()
    ledger.submit(targets=["sm_86", "sm_89"])
    assert ledger.run_all() == ["build digits:fp16@sm_89"]


def test_the_same_source_under_another_name_runs_nothing_and_has_engines_of_its_own(ledger):
    ledger.submit()
    ledger.run_all()
    build = ledger.view(ledger.submit(model="other"))
    assert build.state == "succeeded"
    with ledger.db.read() as session:
        assert best_match(session, "other", "sm_89").engine.model == "other"


def test_a_version_grows_with_each_new_source_and_not_with_the_same(ledger):
    assert ledger.view(ledger.submit()).version == 1
    assert ledger.view(ledger.submit()).version == 1
    assert ledger.view(ledger.submit(source={"digest": DATA, "format": "onnx"})).version == 2


def test_a_version_is_a_source_with_what_is_fixed_in_it(ledger):
    plain = ledger.submit()
    wide = ledger.submit(fixed_inputs={"sr": 16000})
    narrow = ledger.submit(fixed_inputs={"sr": 8000})
    again = ledger.submit(fixed_inputs={"sr": 16000}, priority=9)
    assert [ledger.view(b).version for b in (plain, wide, narrow, again)] == [1, 2, 3, 2]
    assert ledger.view(narrow).fixed_inputs == {"sr": 8000}
    assert {job.reuse for job in ledger.view(again).jobs} == {"joined"}
    assert {job.reuse for job in ledger.view(narrow).jobs} == {"ran"}
    ledger.run_all()
    with ledger.db.read() as session:
        detail = models.model(session, "digits")
        fixed = {v.version: v.fixed_inputs for v in detail.versions}
        engine = best_match(session, "digits", "sm_89", version=2).engine
    assert fixed == {1: {}, 2: {"sr": 16000}, 3: {"sr": 8000}}
    assert engine.fixed_inputs == {"sr": 16000}


def test_a_version_of_weights_is_of_one_architecture(ledger):
    def weights(layers):
        config = {"num_hidden_layers": layers}
        named = {"library": "transformers", "name": "BertModel", "config": config}
        return {"digest": SOURCE, "format": "safetensors", "architecture": named}

    numbers = [ledger.view(ledger.submit(source=weights(n))).version for n in (2, 4, 2)]
    assert numbers == [1, 2, 1]


def test_many_clients_at_once_start_each_job_once(ledger):
    """Real threads on a real database race over the same keys."""
    made, errors = [], []

    def client():
        for _ in range(20):
            try:
                made.append(ledger.submit())
                return
            except Exception as err:  # a lost race over a unique row; the API tries again too
                if "unique" not in str(err).lower():
                    errors.append(err)
                    return

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(made) == 12
    with ledger.db.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 4
    ledger.run_all()
    assert {ledger.view(build).state for build in made} == {"succeeded"}


def test_an_idempotency_key_gives_the_first_answer_again(ledger):
    first = ledger.submit(idempotency_key="k")
    assert ledger.submit(idempotency_key="k") == first
    with pytest.raises(Conflict):
        ledger.submit(idempotency_key="k", targets=["sm_86"])


def test_a_blob_that_was_never_uploaded_is_named(ledger):
    with pytest.raises(NotFound, match="calibration sha256:fff"):
        ledger.submit(precisions=["int8"], calibration={"digest": "sha256:" + "f" * 64})


def test_a_refused_submission_leaves_nothing_behind(ledger):
    with pytest.raises(NotFound):
        ledger.submit(model="never", source={"digest": "sha256:" + "f" * 64, "format": "onnx"})
    with ledger.db.read() as session, pytest.raises(NotFound):
        names.named(session, "never")


def test_a_job_is_claimed_once(ledger):
    ledger.submit()
    job = ledger.queued()[0]
    assert ledger.claim(job, owner="one") is not None
    assert ledger.claim(job, owner="two") is None


def test_a_failure_fails_what_waits_for_it_and_says_why_and_what_to_do(ledger):
    build = ledger.submit(targets=["sm_89", "cpu"])
    ledger.fail(ledger.claim_next(), InvalidModel("no operator Foo", hint="replace Foo"))
    view = ledger.view(build)
    assert view.state == "failed"
    assert view.error.detail == "export digits: no operator Foo"
    assert view.error.hint == "replace Foo"
    waiting = [job for job in view.jobs if job.kind != "export"]
    assert {job.error.code for job in waiting} == {"input-failed"}
    assert all("export digits failed: no operator Foo" in job.error.detail for job in waiting)


def test_a_failed_engine_does_not_keep_the_others_from_being_built(ledger):
    build = ledger.submit(targets=["sm_86", "sm_89"])
    while queue := ledger.queued():
        claim = ledger.claim(queue[0])
        if claim.title == "build digits:fp16@sm_89":
            ledger.fail(claim, InvalidModel("not this one"))
        else:
            ledger.succeed(claim)
    view = ledger.view(build)
    assert (view.state, view.engines_done) == ("failed", 1)


def test_a_failure_is_not_cached(ledger):
    first = ledger.submit()
    ledger.fail(ledger.claim_next(), InvalidModel("bad luck"))
    second = ledger.submit()
    assert {job.reuse for job in ledger.view(second).jobs} == {"ran"}
    ledger.run_all()
    assert ledger.view(second).state == "succeeded"
    assert ledger.view(first).state == "failed"


def test_a_retry_runs_what_failed_as_a_new_attempt_and_keeps_the_rest(ledger):
    build = ledger.submit()
    ledger.succeed(ledger.claim_next())
    ledger.fail(ledger.claim_next(), ChildOutOfMemory())
    ledger.retry(build)
    assert [(job.kind, job.attempt) for job in ledger.queued()] == [("cast", 2)]
    ledger.run_all()
    assert ledger.view(build).state == "succeeded"
    ledger.retry(build)
    assert ledger.view(build).state == "succeeded"


def test_a_retry_that_would_only_fail_again_is_refused_with_what_to_change(ledger):
    build = ledger.submit()
    ledger.fail(ledger.claim_next(), InvalidModel("no operator Foo", hint="export it without Foo"))
    with pytest.raises(
        Conflict, match="would fail again: export digits: no operator Foo"
    ) as caught:
        ledger.retry(build)
    assert caught.value.hint.startswith("export it without Foo; or ")
    assert "--force" in caught.value.hint
    assert ledger.view(build).state == "failed"
    ledger.retry(build, force=True)
    assert [(job.kind, job.attempt) for job in ledger.queued()] == [("export", 2)]


def test_a_retry_is_taken_if_anything_that_failed_may_pass(ledger):
    build = ledger.submit(targets=["sm_89", "cpu"], precisions=["fp16", "fp32"])
    ledger.succeed(ledger.claim_next())
    failed = [ledger.claim_next(), ledger.claim_next()]
    ledger.fail(failed[0], CastFailed("a constant is too large"))
    ledger.fail(failed[1], ChildDied())
    ledger.run_all()
    assert ledger.view(build).state == "failed"
    ledger.retry(build)
    assert ledger.view(build).state in ("queued", "running")


def test_a_retry_is_taken_if_the_tools_have_changed(ledger):
    build = ledger.submit()
    ledger.fail(ledger.claim_next(), InvalidModel("torch can't read it"))
    ledger.worker(toolchain=TOOLCHAIN | {"onnx": "99.0"})
    ledger.retry(build)
    assert ledger.view(build).state == "queued"


def test_cancel_ends_what_nobody_else_wants(ledger):
    alone = ledger.submit(targets=["sm_86"])
    ledger.cancel(alone)
    ledger.cancel(alone)
    assert set(ledger.states(alone).values()) == {"cancelled"}
    assert ledger.queued() == []


def test_cancel_keeps_what_another_build_wants(ledger):
    mine, theirs = ledger.submit(targets=["sm_86"]), ledger.submit(targets=["sm_89"])
    ledger.cancel(mine)
    assert ledger.view(mine).state == "cancelled"
    ledger.run_all()
    assert ledger.view(theirs).state == "succeeded"
    assert ledger.states(mine)["build digits:fp16@sm_86"] == "cancelled"


def test_a_running_job_is_asked_to_end_and_lives_on_when_a_build_joins_it(ledger):
    build = ledger.submit()
    claim = ledger.claim_next()
    ledger.cancel(build)
    with ledger.db.read() as session:
        assert jobs.wants_cancel(session, claim.job_id, claim.attempt)
    joined = ledger.submit()
    with ledger.db.write() as session:
        jobs.end_cancelled(session, claim.job_id, claim.attempt)
    ledger.run_all()
    assert ledger.view(joined).state == "succeeded"


def test_a_silent_worker_loses_its_job_and_its_late_result_is_refused(ledger):
    build = ledger.submit()
    lost = ledger.claim_next(owner="silent")
    ledger.reap()
    assert [job.id for job in ledger.queued()] == [lost.job_id]
    with pytest.raises(LeaseLost):
        ledger.succeed(lost)
    with ledger.db.write() as session, pytest.raises(LeaseLost):
        leases.renew(session, lost.job_id, lost.attempt, lease_s=30)
    again = ledger.claim_next(owner="other")
    assert again.attempt == lost.attempt + 1
    ledger.succeed(again)
    ledger.run_all()
    assert ledger.view(build).state == "succeeded"


def test_a_job_whose_workers_keep_dying_fails_with_the_count(ledger):
    build = ledger.submit()
    for _ in range(3):
        ledger.claim_next(owner="dying")
        ledger.reap(max_attempts=3)
    view = ledger.view(build)
    assert view.state == "failed"
    assert "dying" in view.error.detail
    assert "each of 3 attempts" in view.error.detail


def test_a_worker_that_shuts_down_gives_its_job_back_and_that_is_no_attempt(ledger):
    ledger.submit()
    for _ in range(5):
        claim = ledger.claim_next(owner="leaving")
        with ledger.db.write() as session:
            leases.release(session, "leaving", {claim.job_id: claim.attempt - 1})  # another's
            assert session.get_one(Job, claim.job_id).state == "running"
            leases.release(session, "leaving", {claim.job_id: claim.attempt})
    ledger.claim_next()
    ledger.reap(max_attempts=2)
    assert len(ledger.queued()) == 1


def test_every_change_of_state_is_an_event(ledger):
    build = ledger.submit()
    ledger.run_all()
    with ledger.db.read() as session:
        for job_id in ledger.jobs_of(build):
            states = session.scalars(
                select(Event.state)
                .where(Event.job_id == job_id, Event.kind == "job")
                .order_by(Event.id)
            ).all()
            assert [s for s in states if s != "waiting"] == ["queued", "running", "succeeded"]
        seen = session.scalars(
            select(Event.state).where(Event.build_id == build).order_by(Event.id)
        ).all()
    assert seen == ["queued", "running", "succeeded"]


def test_a_job_that_nobody_online_can_run_says_whom_it_waits_for(ledger):
    build = ledger.submit(targets=["tensorrt:h200"])
    while any(job.queue == "cpu" for job in ledger.queued()):
        ledger.succeed(ledger.claim(next(j for j in ledger.queued() if j.queue == "cpu")))
    waiting = next(job for job in ledger.view(build).jobs if job.kind == "build")
    assert waiting.state == "queued"
    assert "GPU h200 and tensorrt" in waiting.waits_for


def test_a_pull_takes_the_newest_version_and_says_why(ledger):
    ledger.submit(precisions=["fp16"], targets=["sm_89"])
    ledger.run_all()
    ledger.submit(source={"digest": DATA, "format": "onnx"}, targets=["sm_89"])
    ledger.run_all()
    with ledger.db.read() as session:
        match = best_match(session, "digits", "rtx-4090")
        assert match.engine.version == 2
        assert "compute capability of rtx-4090" in match.why
        assert best_match(session, "digits", "sm_89", version=1).engine.version == 1
        with pytest.raises(NotFound, match=r"no int8 engine for sm_89; there is fp16@sm_89"):
            best_match(session, "digits", "sm_89", precision="int8")


def test_a_doubtful_engine_is_pulled_only_where_it_is_asked_for(ledger):
    good = ledger.submit(source={"digest": DATA, "format": "onnx"})
    ledger.run_all()
    build = ledger.submit()
    ledger.run_all(doubts=["the class is the source's in 19.0%"])
    view = ledger.view(build)
    assert (view.state, view.engines_done, view.engines_doubtful) == ("succeeded", 1, 1)
    assert view.engines[0].doubts == ["the class is the source's in 19.0%"]
    assert ledger.view(good).engines_doubtful == 0
    with ledger.db.read() as session:
        listed = catalog.engines(session, "digits")
        assert [row.state for row in listed] == ["doubtful", "ready"]
        # The version before has a good one, which is served on.
        assert best_match(session, "digits", "sm_89").engine.version == 1
        taken = best_match(session, "digits", "sm_89", version=2, doubtful=True)
        assert taken.engine.state == "doubtful"
        assert "doubtful, as requested: the class" in taken.why
        with pytest.raises(
            NotFound, match=r"passed its gates; fp16 of version 2 is .* 19\.0%"
        ) as no:
            best_match(session, "digits", "sm_89", version=2)
        assert "--doubtful" in no.value.hint
        counted = {one.id: one.engines_doubtful for one in views.builds(session)}
        assert counted == {good: 0, build: 1}


def test_a_build_keeps_the_gates_that_it_was_submitted_with(ledger):
    farms = GateSet(quantized=QuantizedGates(agreement=0.7))
    build = ledger.submit(
        precisions=["int8", "fp16"],
        calibration={"digest": DATA},
        gates={"error": 0.5},
        held_to=farms,
    )
    gates = ledger.view(build).gates
    assert (gates.quantized.agreement, gates.quantized.error, gates.floats.error) == (0.7, 0.5, 0.5)
    with ledger.db.read() as session:
        measured = session.scalars(select(Job).where(Job.kind == "measure")).all()
        assert {job.recipe["params"]["gates"]["error"] for job in measured} == {0.5}
    keys = {job.key for job in ledger.view(build).jobs}
    ledger.cancel(build)
    ledger.retry(build)
    assert {job.key for job in ledger.view(build).jobs} == keys


MODULE = {"digest": SOURCE, "format": "pt2"}


def test_a_pruned_engine_is_never_handed_out_in_place_of_an_unpruned_one(ledger):
    def pull(**asked):
        with ledger.db.read() as session:
            found = best_match(session, "digits", "sm_89", **asked)
            return found.engine.precision, found.engine.prune, found.why

    sparse = {"method": "2:4"}
    ledger.submit(source=MODULE, precisions=["fp16"], prune=sparse)
    ledger.run_all()
    assert pull()[:2] == ("fp16", "2:4")
    assert "version 1 has no unpruned one" in pull()[2]
    with pytest.raises(NotFound, match=r"no unpruned .*fp16@sm_89 \(.*pruned 2:4\)"):
        pull(prune="none")
    ledger.submit(source=MODULE, precisions=["fp32"])
    ledger.run_all()
    assert pull()[:2] == ("fp32", None)
    assert pull(prune="2:4")[:2] == ("fp16", "2:4")
    assert "pruned 2:4 as requested" in pull(prune="2:4")[2]
    with pytest.raises(NotFound, match=r"no pruned l1:0\.5"):
        pull(prune="l1:0.50")


def test_a_pruned_engine_is_listed_beside_its_unpruned_twin(ledger):
    for prune in ({"method": "2:4"}, {"method": "l1-unstructured", "amount": 0.5}, None):
        ledger.submit(source=MODULE, precisions=["fp16"], prune=prune)
    ledger.run_all()
    with ledger.db.read() as session:
        views = catalog.engines(session, "digits")
        rows = {view.prune: view for view in views}
        assert rows.keys() == {"2:4", "l1:0.5", None}
        assert rows[None].against is None
        twin = rows[None].id
        assert {rows[name].against.engine for name in ("2:4", "l1:0.5")} == {twin}
        for name in ("2:4", "l1:0.5", "none"):
            [found] = catalog.engines(session, "digits", prune=name)
            assert str(found.prune or "none") == name


def test_engines_are_listed_newest_first_and_page_by_page(ledger):
    ledger.submit(targets=["sm_80", "sm_86", "sm_89"])
    ledger.run_all()
    with ledger.db.read() as session:
        first = catalog.engines(session, "digits", limit=2)
        rest = catalog.engines(session, "digits", before=first[-1].id)
        assert len({e.id for e in first + rest}) == 3
        assert session.scalar(select(func.count()).select_from(EngineRow)) == 3


def test_the_events_of_a_cached_build_start_with_its_own(ledger):
    from farm.builds import events

    ledger.submit()
    ledger.run_all()
    again = ledger.submit()
    with ledger.db.read() as session:
        found = events.since(session, again)
    assert [(e.kind, e.state) for e in found] == [("build", "queued"), ("build", "succeeded")]


def test_a_build_of_an_unknown_id_is_not_found(ledger):
    with ledger.db.read() as session, pytest.raises(NotFound):
        attach.state(session, "nope")
