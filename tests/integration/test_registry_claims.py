"""What the registry claims of its engines: ratios of what was measured alike, and one engine once."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from farm.database.tables import Artifact, EngineRow
from farm.registry import catalog, judgements, latencies, models, ranking, uses
from farm.registry.match import best_match
from farm.reports.accuracy import Accuracy
from farm.reports.metrics import Metrics
from tests.ledger import DATA, LABELLED

CALIBRATION = {"digest": DATA}
SETTINGS = {"device": "cpu", "cpu": "EPYC", "threads": 2, "torch": "2.13.0"}


def timed(p50_ms, *, batch=8, **more):
    given = {"settings": SETTINGS, "others_cpu_share": 0.0} | more
    return {"latency_ms": {"p50": p50_ms}, "batch": batch} | given


def build(ledger, **request):
    build_id = ledger.submit(**request)
    ledger.run_all()
    return {one.precision: one.engine for one in ledger.view(build_id).engines}


def read(kept):
    return kept and Metrics.model_validate(kept, strict=True)


def record(ledger, engine_id, *, size=None, **columns):
    """Have an engine measured so."""
    with ledger.db.write() as session:
        if size is not None:
            digest = f"sha256:{size:064x}"
            session.merge(Artifact(digest=digest, bytes=size))
            session.flush()
            columns["digest"] = digest
        session.execute(update(EngineRow).where(EngineRow.id == engine_id).values(**columns))


def rows(ledger, **asked):
    with ledger.db.read() as session:
        return catalog.engines(session, "digits", **asked)


def pull(ledger, **asked):
    with ledger.db.read() as session:
        return best_match(session, "digits", "sm_89", **asked)


# Ratios.


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (None, timed(2.0), "it wasn't measured"),
        (timed(1.0), None, "the other engine: it wasn't measured"),
        (timed(1.0, others_cpu_share=0.45), timed(2.0), "other processes used 45% of the CPU"),
        (timed(1.0, speed_up_reason="it was noisy"), timed(2.0), "it was noisy"),
        (timed(1.0), timed(2.0, warnings=["the GPU's clocks were held down"]), "clocks"),
        (timed(1.0), timed(2.0, batch=1), "different batch"),
        (timed(1.0), timed(2.0, settings=SETTINGS | {"threads": 8}), "different threads"),
        (timed(1.0), timed(2.0, settings=SETTINGS | {"cpu": "Xeon"}), "different cpu"),
    ],
)
def test_latencies_that_say_nothing_of_their_engines_have_no_ratio(left, right, words):
    value, reason = latencies.ratio(*map(read, (left, right)))
    assert value is None
    assert words in reason


def on_gpu(p50_ms, *, graph=None, uuid="GPU-1", mhz=1980, driver="580.1", of_graph=None, **more):
    """Of a card; with the figures of a CUDA graph, if given."""
    seen = {"driver": driver, "sm_clock_mhz": {"median": mhz}, "other_processes": 0}
    alike = {"warnings": [], "host_bound": False, "gpu": seen}
    measured = {"latency_ms": {"p50": graph}} | alike | (of_graph or {})
    given = {
        "settings": {"device": "NVIDIA H100 80GB HBM3", "uuid": uuid, "tf32": True},
        "cuda_graph": measured if graph else {"reason": "not captured"},
    }
    return timed(p50_ms, **given | alike | more)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (on_gpu(1.0, host_bound=True), on_gpu(2.0), "host-bound"),
        (on_gpu(3.0, graph=1.0, of_graph={"host_bound": True}), on_gpu(2.0), "host-bound"),
        (on_gpu(3.0, graph=1.0, of_graph={"warnings": ["it varies"]}), on_gpu(2.0), "it varies"),
        (on_gpu(1.0, gpu={"other_processes": 1}), on_gpu(2.0), "1 other processes"),
        (on_gpu(1.0), on_gpu(2.0, driver="590.2"), "different driver"),
        (
            on_gpu(1.0),
            on_gpu(2.0, uuid="GPU-2", mhz=1410),
            "two cards, at SM clocks of 1980 and 1410 MHz",
        ),
        (on_gpu(1.0), on_gpu(2.0, uuid="GPU-2", mhz=None), "the clocks of one are unknown"),
        # Earlier releases kept the warnings of all figures together, and no mark of host-bound ones.
        (
            timed(
                3.0,
                warnings=["the host takes long"],
                cuda_graph={"latency_ms": {"p50": 1.0}},
                gpu={},
            ),
            timed(2.0),
            "the host takes long",
        ),
        (
            timed(1.0, gpu={}, enqueue_ms={"p50": 0.9}, compute_ms={"p50": 0.8}),
            timed(2.0),
            "host-bound",
        ),
    ],
)
def test_figures_of_a_gpu_that_say_nothing_of_their_engines_have_no_ratio(left, right, words):
    value, reason = latencies.ratio(*map(read, (left, right)))
    assert value is None
    assert words in reason


def test_a_gpu_engine_is_compared_at_its_best_whatever_was_seen_of_its_other_figure():
    left = on_gpu(3.0, graph=1.0, host_bound=True, warnings=["the host takes long"])
    left |= {"speed_up": None, "speed_up_reason": "the engine is host-bound"}
    assert latencies.p50_ms(read(left)) == 1.0
    assert latencies.ratio(read(left), read(on_gpu(2.0))) == (0.5, None)
    slower = on_gpu(1.0, graph=1.5, of_graph={"warnings": ["it varies"]})
    assert latencies.ratio(read(slower), read(on_gpu(2.0, graph=4.0))) == (0.5, None)


def test_two_cards_of_one_product_and_driver_are_comparable_at_like_clocks():
    other = on_gpu(2.0, uuid="GPU-2", mhz=1965)
    assert latencies.ratio(read(on_gpu(1.0)), read(other)) == (0.5, None)


def test_latencies_that_were_measured_alike_have_a_ratio():
    beside = timed(2.0, settings=SETTINGS | {"precision": "fp16", "torch": "2.12.0"})
    assert latencies.ratio(read(timed(1.0)), read(beside)) == (0.5, None)


def test_an_int8_engine_has_no_latency_ratio_from_a_busy_machine_and_it_says_why(ledger):
    made = build(ledger, precisions=["fp16", "int8"], calibration=CALIBRATION)
    record(ledger, made["fp16"], metrics=timed(2.0))
    record(ledger, made["int8"], metrics=timed(1.0, others_cpu_share=0.6))
    against = {one.precision: one.against for one in rows(ledger)}["int8"]
    assert against.latency_ratio is None
    assert "60% of the CPU" in against.latency_reason
    record(ledger, made["int8"], metrics=timed(1.0))
    against = {one.precision: one.against for one in rows(ledger)}["int8"]
    assert (against.latency_ratio, against.latency_reason) == (0.5, None)


def test_drops_are_of_the_same_data_alone(ledger):
    made = build(ledger, precisions=["fp16", "int8"], calibration=CALIBRATION)

    def judged(name, source, engine, samples=100):
        task = {"metric": "top1", "source": source, "engine": engine, "drop": source - engine}
        accuracy = {
            "data": "evaluation",
            "samples": samples,
            "top1_agreement": engine,
            "task": task,
        }
        record(ledger, made[name], accuracy=accuracy)

    judged("fp16", 0.9, 0.89)
    judged("int8", 0.9, 0.85)
    against = {one.precision: one.against for one in rows(ledger)}["int8"]
    assert (against.task_drop, against.agreement_drop) == (0.04, 0.04)
    judged("int8", 0.7, 0.65, samples=20)
    against = {one.precision: one.against for one in rows(ledger)}["int8"]
    assert (against.task_drop, against.agreement_drop) == (None, None)


def test_lists_models_manifests_pulls_and_blobs_tell_the_same_of_an_engine(ledger):
    made = build(ledger, precisions=["fp16", "int8"], calibration=CALIBRATION)
    record(ledger, made["fp16"], metrics=timed(2.0), size=1000)
    record(ledger, made["int8"], metrics=timed(1.0), size=1700)
    with ledger.db.read() as session:
        shown = [
            next(one for one in catalog.engines(session, "digits") if one.precision == "int8"),
            next(one for one in models.model(session, "digits").engines if one.precision == "int8"),
            catalog.engine(session, made["int8"]),
            best_match(session, "digits", "sm_89").engine,
            *uses.uses(session, catalog.engine(session, made["int8"]).digest).engines,
        ]
    assert shown == [shown[0]] * 5
    told = shown[0]
    assert (told.id, told.against.latency_ratio, told.against.size_ratio) == (
        made["int8"],
        0.5,
        1.7,
    )
    assert told.quantization is not None


# What a pull takes.


def test_a_pull_takes_the_fastest_that_was_measured_and_says_by_how_much(ledger):
    made = build(ledger, precisions=["fp16", "int8"], calibration=CALIBRATION)
    record(ledger, made["fp16"], metrics=timed(1.0), size=2000)
    record(ledger, made["int8"], metrics=timed(1.5), size=1000)
    match = pull(ledger)
    assert match.engine.precision == "fp16"
    assert "fp16 is the fastest of fp16, int8: p50 1 ms against 1.5 ms, at batch 8" in match.why
    assert "EPYC" in match.why
    assert pull(ledger, precision="int8").why.endswith("int8 as requested; runtime tensorrt-rtx")


def test_a_pull_of_what_was_not_measured_takes_the_smallest_and_never_says_so_of_a_larger_one(
    ledger,
):
    made = build(ledger, precisions=["fp16", "int8"], calibration=CALIBRATION)
    record(ledger, made["fp16"], size=1000)
    record(ledger, made["int8"], size=1700)
    match = pull(ledger)
    assert match.engine.precision == "fp16"
    assert "fp16 is the smallest of fp16, int8: 1,000 bytes against 1,700" in match.why
    assert "it wasn't measured" in match.why
    assert "compact" not in match.why
    record(ledger, made["fp16"], metrics=timed(1.0, others_cpu_share=0.9), size=3000)
    record(ledger, made["int8"], metrics=timed(9.0))
    match = pull(ledger)
    assert match.engine.precision == "int8"
    assert "other processes used 90% of the CPU" in match.why


def test_the_only_engine_is_called_so(ledger):
    build(ledger)
    assert "fp16 is the only one; runtime tensorrt-rtx" in pull(ledger).why


def test_a_precision_that_nobody_has_listed_can_be_pulled(ledger):
    made = build(ledger, precisions=["fp16", "int8"], calibration=CALIBRATION)
    with ledger.db.read() as session:
        found = catalog.engine(session, made["fp16"])
    strange = found.model_copy(update={"precision": "int4", "runtime": "novel", "bytes": 1})
    ranked = ranking.rank([found, strange], "sm_89")
    assert ranked.best.runtime == "tensorrt-rtx"
    assert ranking.rank([strange], "sm_89").best.precision == "int4"
    assert "only one" in ranking.reason(ranked)


# Twins.

TASK = {"metric": "top1", "source": 0.9, "engine": 0.88, "drop": 0.02}


def judged_three_times(ledger):
    """One engine: judged by labels, then on calibration data, then on random data."""
    labelled = build(
        ledger,
        precisions=["int8"],
        calibration=CALIBRATION,
        evaluation={"digest": LABELLED, "metric": "top1"},
    )["int8"]
    unlabelled = build(
        ledger, precisions=["int8"], calibration=CALIBRATION, evaluation={"digest": DATA}
    )["int8"]
    none = build(ledger, precisions=["int8"], calibration=CALIBRATION)["int8"]
    record(ledger, labelled, accuracy={"data": "evaluation", "samples": 50, "task": TASK})
    record(ledger, unlabelled, accuracy={"data": "evaluation", "samples": 9, "task": None})
    record(ledger, none, accuracy={"data": "calibration", "samples": 64, "task": None})
    return labelled, unlabelled, none


def test_an_engine_that_was_judged_again_is_listed_once_by_its_best_founded_judgement(ledger):
    labelled, unlabelled, none = judged_three_times(ledger)
    assert len({labelled, unlabelled, none}) == 3
    [row] = rows(ledger)
    assert row.id == labelled
    assert [(one.engine, one.data, one.labelled, one.samples) for one in row.judgements] == [
        (unlabelled, "evaluation", False, 9),
        (none, "calibration", False, 64),
    ]
    assert row.judgements[0].build != row.build
    match = pull(ledger)
    assert (match.engine.id, len(match.engine.judgements)) == (labelled, 2)
    with ledger.db.read() as session:
        [version] = models.model(session, "digits").versions
        assert version.engines == 1
        assert [one.id for one in models.model(session, "digits").engines] == [labelled]
        assert models.models(session)[0].engines == 1


def test_each_row_is_still_found_by_its_id_with_the_others_beneath(ledger):
    ids = judged_three_times(ledger)
    with ledger.db.read() as session:
        for one in ids:
            found = catalog.engine(session, one)
            assert found.id == one
            assert {other.engine for other in found.judgements} == set(ids) - {one}


def test_of_equally_founded_judgements_the_newest_speaks(ledger):
    first = build(ledger, evaluation={"digest": DATA})["fp16"]
    second = build(ledger, evaluation={"digest": LABELLED})["fp16"]
    for one in (first, second):
        record(ledger, one, accuracy={"data": "evaluation", "samples": 5, "task": None})
    assert [one.id for one in rows(ledger)] == [second]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"data": "evaluation", "task": TASK}, {"data": "evaluation"}),
        ({"data": "evaluation"}, {"data": "calibration"}),
        ({"data": "held-out"}, {"data": "random"}),
        ({"data": "calibration"}, {"data": "random"}),
        ({"data": "random"}, {}),
    ],
)
def test_judgements_are_as_good_as_their_data(better, worse):
    ranks = [judgements.foundation(Accuracy.model_validate(one)) for one in (better, worse)]
    assert ranks[0] < ranks[1]


def test_pages_hold_each_engine_once_also_when_it_is_judged_meanwhile(ledger):
    targets = ["sm_80", "sm_86", "sm_89", "sm_120"]
    build(ledger, targets=targets)
    first = rows(ledger, limit=2)
    build(ledger, targets=targets, evaluation={"digest": DATA})
    for one in rows(ledger):
        for other in one.judgements:
            record(ledger, other.engine, accuracy={"data": "evaluation", "samples": 5})
    rest = rows(ledger, before=first[-1].id, limit=2)
    assert {one.gpu for one in [*first, *rest]} == set(targets)
    assert rows(ledger, before=rest[-1].id) == []
    again = rows(ledger, limit=2)
    assert [one.gpu for one in again] == [one.gpu for one in first]
    assert {one.gpu for one in rows(ledger, before=again[-1].id)} == {one.gpu for one in rest}
    assert all(one.accuracy.data == "evaluation" for one in again)


def test_the_same_source_under_two_names_is_two_engines(ledger):
    build(ledger)
    build(ledger, model="other")
    assert (len(rows(ledger)), rows(ledger)[0].judgements) == (1, [])


def test_engines_of_other_calibration_data_are_others(ledger):
    build(ledger, precisions=["int8"], calibration=CALIBRATION)
    build(ledger, precisions=["int8"], calibration={"digest": LABELLED})
    assert [len(one.judgements) for one in rows(ledger)] == [0, 0]


def test_rows_of_before_are_one_engine_where_one_job_has_built_them(ledger):
    first = build(ledger, precisions=["int8"], calibration=CALIBRATION)["int8"]
    second = build(ledger, model="other")["fp16"]
    record(ledger, first, description={"inputs": [], "outputs": [], "profiles": []})
    assert [(one.id, one.judgements) for one in rows(ledger)] == [(first, [])]
    assert second != first
