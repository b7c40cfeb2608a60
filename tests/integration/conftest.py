"""What every stage that a test runs is held to."""

from __future__ import annotations

import json

import pytest

from farm.reports import facts
from farm.schemas import LayerReport
from workers import stages
from workers.sandbox import messages
from workers.stages import Stage, StageResult


@pytest.fixture(autouse=True)
def _stages_say_what_a_worker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = stages.run

    def checked(stage: Stage) -> StageResult:
        result = run(stage)
        _, said = messages._parsed(json.dumps(["result", dict(result.facts)]).encode())
        facts.check(stage.kind, said)
        if "layers" in result.outputs:
            LayerReport.model_validate_json(result.outputs["layers"].read_bytes(), strict=True)
        return result

    monkeypatch.setattr(stages, "run", checked)
