"""What every stage that a test runs is held to; what this machine keeps a job from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from farm import stages
from farm.reports.layers import LayerReport
from farm.settings import Settings
from farm.stages import JobKind
from tests.stage_bench import Bench, Digits, staged_digits
from workers.clocks.host import Pace
from workers.runner import trial
from workers.runner.forks import processes
from workers.sandbox import Feature, Limits, Sandbox, messages
from workers.sandbox.features import Found
from workers.stages import base
from workers.stages.base import Stage, StageResult

# Where tests start children by themselves: each would import these anew, for a fifth of a second.
processes.set_forkserver_preload(["pytest", "tests.sandboxed", "workers.runner.inside"])

#: To time a model for a moment alone.
QUICK = Pace(warmup_s=0.01, duration_s=0.05, min_iterations=3, max_s=0.2, slice_s=0.02)


@pytest.fixture(autouse=True, scope="module")
def _stages_say_what_a_worker_takes_and_time_quickly() -> Iterator[None]:
    run = base.run

    def checked(stage: Stage) -> StageResult:
        if stage.kind is JobKind.MEASURE:
            patch.setattr("workers.measure.cpu.LATENCY_PACE", QUICK)
            patch.setattr("workers.measure.cpu.THROUGHPUT_PACE", QUICK)
        result = run(stage)
        _, said = messages._parsed(
            json.dumps(["result", result.facts.model_dump(mode="json")]).encode()
        )
        stages.check_facts(stage.kind, said)
        if "layers" in result.outputs:
            LayerReport.model_validate_json(result.outputs["layers"].read_bytes(), strict=True)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "run", checked)
        # A second thread for models this small only spins, and takes as much time again.
        patch.setattr("workers.backends.ort.cpu.cpu_threads", lambda: 1)
        yield


@pytest.fixture(scope="session")
def holds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Feature, Found]:
    """What this machine enforces, part by part."""
    found = trial.tried(Settings(home=tmp_path_factory.mktemp("trial")), is_gpu=False)
    return {one.feature: one for one in found}


@pytest.fixture
def needs(holds: Mapping[Feature, Found]) -> Callable[..., None]:
    """Skips a test of parts that this machine doesn't enforce."""

    def needs_(*features: Feature) -> None:
        for feature in features:
            if not holds[feature].enforced:
                pytest.skip(f"this machine doesn't enforce {feature}: {holds[feature].how}")

    return needs_


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return staged_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def box(tmp_path):
    """The sandbox of a job with an input, beside a blob that isn't its own."""
    store = tmp_path / "a store"
    workdir = tmp_path / "work"
    store.mkdir()
    workdir.mkdir()
    (store / "input").write_text("the job's own")
    (store / "other").write_text("somebody else's")
    limits = Limits.of_machine(workdir, slots=2, timeout_s=60)
    return Sandbox(workdir=workdir, reads=(store / "input",), limits=limits)
