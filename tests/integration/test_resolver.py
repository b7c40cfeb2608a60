"""A pull on a whole registry: what SQL finds holds all that the pure rules allow, and the machine counts."""

from __future__ import annotations

import itertools

import pytest

from farm.errors import NotFound
from farm.registry import catalog, names
from farm.registry.fits import Where
from farm.registry.match import best_match
from farm.specs.machines import Machine
from farm.specs.reach import reach
from tests.integration.test_registry_claims import build, pull, record, rows

TAGS = ("a10", "a40", "sm_86", "l4", "h100", "h100-1g.10gb", "gh200", "jetson-orin", "t4", "cpu")
LEVELS = ("none", "ampere_plus", "same_compute_capability")


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx", "aotinductor"])
def test_sql_finds_every_engine_that_serves_a_gpu(ledger, runtime):
    made = build(ledger, precisions=["fp16"])["fp16"]
    for gpu, level in itertools.product(TAGS, LEVELS):
        options = {"options": {"hardware_compatibility_level": level}}
        described = {"inputs": [], "outputs": [], "profiles": []} | options
        toolchain = {"instruction-set": "x86-64-v3"} if runtime == "aotinductor" else {}
        columns = {"gpu": gpu, "runtime": runtime, "toolchain": toolchain}
        record(ledger, made, description=described, **columns)
        with ledger.db.read() as session:
            model = names.named(session, "digits")
            [view] = catalog.find(session, model, limit=10)
            for tag in TAGS:
                found = catalog.find(session, model, gpu=tag, limit=10)
                if reach(view, tag) is not None:
                    assert found == [view], (gpu, level, tag)
                elif not found or reach(found[0], tag) is None:
                    with pytest.raises(NotFound):
                        best_match(session, "digits", tag)


@pytest.fixture
def two(ledger):
    """Engines of one version by two releases of TensorRT-RTX, the newer one measured to be faster."""
    made = build(ledger, precisions=["fp16", "fp32"])
    record(ledger, made["fp16"], runtime_version="1.3.0", size=10)
    record(ledger, made["fp32"], runtime_version="1.2.0", size=20)
    return made


def test_what_cant_run_on_the_machine_is_passed_over_with_the_reason(ledger, two):
    assert pull(ledger).engine.precision == "fp16"
    found = pull(ledger, where=Where(machine=Machine.of(["tensorrt-rtx=1.2.0"])), explain=True)
    assert found.engine.precision == "fp32"
    assert [(one.engine, one.why) for one in found.passed_over] == [
        (two["fp16"], "it needs tensorrt-rtx 1.3.0, and the machine has 1.2.0")
    ]


def test_a_machine_on_which_nothing_runs_is_told_what_to_install(ledger, two):
    with pytest.raises(
        NotFound, match=r"needs tensorrt-rtx 1\.\d\.0, and the machine has 1.4.0"
    ) as told:
        pull(ledger, where=Where(machine=Machine.of(["tensorrt-rtx=1.4.0"])))
    assert "install that there, or build the model again" in told.value.hint
    with pytest.raises(
        NotFound, match=r"fp32 by tensorrt-rtx \(sm_89\): it needs tensorrt-rtx 1.2.0"
    ):
        pull(ledger, precision="fp32", where=Where(machine=Machine.of(["tensorrt-rtx=1.3.0"])))


def test_one_error_says_what_keeps_each_engine_from_a_machine_and_from_triton(ledger):
    made = build(ledger, precisions=["fp16", "fp32"])
    record(ledger, made["fp16"], runtime="tensorrt", runtime_version="10.9.0")
    record(ledger, made["fp32"], runtime="tensorrt", runtime_version="10.13.3")
    where = Where(machine=Machine.of(["tensorrt=10.9.0"]), triton="25.10")
    with pytest.raises(NotFound, match=r"runs on the machine and Triton 25\.10 loads") as told:
        pull(ledger, where=where)
    of_machine = "it needs tensorrt 10.13.3, and the machine has 10.9.0"
    of_triton = "Triton 25.10: it needs tensorrt 10.9.0, and the machine has 10.13.3"
    assert f"fp16 by tensorrt (sm_89): {of_triton}" in told.value.detail
    assert f"fp32 by tensorrt (sm_89): {of_machine}" in told.value.detail
    assert "install that there" in told.value.hint


def test_a_portable_engine_is_pulled_where_nothing_closer_is(ledger):
    made = build(ledger, precisions=["fp16", "fp32"])
    options = {"options": {"hardware_compatibility_level": "ampere_plus"}}
    described = {"inputs": [], "outputs": [], "profiles": []} | options
    record(ledger, made["fp16"], runtime="tensorrt", gpu="a10", description=described)
    record(ledger, made["fp32"], runtime="tensorrt", gpu="l40s")
    with ledger.db.read() as session:
        close = best_match(session, "digits", "l40s", explain=True)
        far = best_match(session, "digits", "l4", explain=True)
    assert close.engine.id == made["fp32"]
    assert [one.why for one in close.passed_over] == [
        "it was built for a10, and there are engines for l40s itself"
    ]
    assert far.engine.id == made["fp16"]
    assert far.why.startswith("built on a10 to run on l4 too, which costs speed")
    assert {one.id for one in rows(ledger, gpu="l4")} == {made["fp16"]}
