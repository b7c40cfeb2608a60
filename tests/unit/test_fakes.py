"""The fakes that ship: what they give is what the farm and its client take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from farm.database.tables import EngineRow
from farm.errors import EngineBuildFailed
from farm.queue import jobs
from farm.queue.jobs import Output
from farm.reports.extent import TooMuch
from farm.reports.layers import LayerReport
from farm.schemas.builds import BuildView
from farm.schemas.engines import EngineView
from farm.schemas.events import Event
from farm.specs.roles import Role
from farm.stages import STAGES, JobKind
from farm.testing import documents
from farm.testing.stages import FakeStages
from farm.testing.store import MemoryStore


@pytest.mark.parametrize("kind", JobKind)
def test_a_fake_stage_makes_what_its_kind_must_and_nothing_that_it_may_not(
    kind: JobKind, tmp_path: Path
) -> None:
    made = FakeStages().run(kind, tmp_path)
    spec = STAGES[kind]
    assert set(spec.makes) <= set(made.outputs) <= {*spec.makes, *spec.may_make}
    assert all(path.stat().st_size for path in made.outputs.values())
    if Role.LAYERS in made.outputs:
        LayerReport.model_validate_json(made.outputs[Role.LAYERS].read_bytes(), strict=True)


def test_a_fake_stage_makes_the_same_of_the_same_and_other_bytes_of_other_parameters(
    tmp_path: Path,
) -> None:
    def engine(**params: str) -> bytes:
        return FakeStages().run(JobKind.BUILD, tmp_path, params).outputs[Role.ENGINE].read_bytes()

    assert engine(precision="fp16") == engine(precision="fp16") != engine(precision="int8")


def test_a_fake_stage_fails_as_it_was_told_and_says_nothing_that_no_stage_says(
    tmp_path: Path,
) -> None:
    stages = FakeStages(
        failures={JobKind.BUILD: EngineBuildFailed("no tactic")},
        facts={JobKind.EXPORT: {"opset": "many"}},
    )
    with pytest.raises(EngineBuildFailed, match="no tactic"):
        stages.run(JobKind.BUILD, tmp_path)
    with pytest.raises(TooMuch):
        stages.run(JobKind.EXPORT, tmp_path)
    assert stages.ran == [JobKind.BUILD, JobKind.EXPORT]


def test_a_build_is_run_to_its_engine_by_fakes_alone(ledger, tmp_path: Path) -> None:
    stages, store = FakeStages(), MemoryStore(tmp_path / "copies")
    build = ledger.submit()
    while queued := ledger.queued():
        claim = ledger.claim(queued[0])
        made = stages.run(JobKind(claim.kind), tmp_path, claim.params)
        kept = {role: store.take(path) for role, path in made.outputs.items()}
        outputs = {role: Output(digest=one.digest, bytes=one.bytes) for role, one in kept.items()}
        with ledger.db.write() as session:
            jobs.succeed(
                session, claim.job_id, claim.attempt, outputs=outputs, facts=dict(made.facts)
            )
    view = ledger.view(build)
    assert view.state == "succeeded"
    with ledger.db.read() as session:
        engine = session.get_one(EngineRow, view.engines[0].engine)
    assert b"".join(store.read(engine.digest)).startswith(b"a fake engine")


def test_what_the_stub_farm_answers_is_of_the_contracts_shape() -> None:
    engine = EngineView.model_validate(documents.engine(b"plan"))
    assert engine.accuracy is not None
    for build in (documents.build(), documents.build("running"), documents.failed_build()):
        BuildView.model_validate(build)
    for event in documents.EVENTS:
        Event.model_validate(event)
    LayerReport.model_validate(documents.LAYERS)


def test_the_fakes_import_no_framework_and_no_worker() -> None:
    code = (
        "import sys, farm.testing.stages, farm.testing.store, farm.testing.stub_farm\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'workers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
