"""What a stage raises that nobody foresaw, from the stage to the child to whoever reads its log."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from farm import stages
from farm.errors import StageFailed, StageFault
from farm.reports.accuracy import Accuracy
from farm.reports.metrics import Metrics, Timed
from farm.specs.runtime import Target
from farm.stages import BuildParams, CastParams, JobKind
from tests import strange_models as strange
from workers.runner.child import Child
from workers.runner.child_events import Line
from workers.runner.inside import Link
from workers.stages import base, cast, export
from workers.stages.base import Stage, StageRequest, StageResult, run, run_request

ADA = Target(runtime="tensorrt-rtx", gpu="sm_89")
MARK = "with this in FILE\n"


def request(folder: Path) -> StageRequest:
    """To build what isn't there."""
    (folder / "work").mkdir()
    params = BuildParams(target=ADA, compute_capability="sm_89", precision="int8")
    return StageRequest(
        kind=JobKind.BUILD,
        params=params.model_dump(mode="json"),
        inputs={},  # a request without its input is what no stage expects
        workdir=folder / "work",
    )


def in_child(asked: StageRequest, _link: Link) -> object:
    return run_request(asked, lambda _phase, _share: None)


def test_a_fault_arrives_as_the_farms_own_and_the_log_holds_what_repeats_it(tmp_path):
    asked = request(tmp_path)
    printed = []
    with Child(in_child, asked, timeout_s=120) as child:
        printed = [happening.text for happening in child.events() if isinstance(happening, Line)]
        with pytest.raises(StageFault) as caught:
            child.result()
    assert caught.value.detail.startswith(
        "build in int8 for tensorrt-rtx:sm_89: KeyError: <Role.TYPED: 'typed'>"
    )
    assert "report it" in caught.value.hint
    log = "".join(printed)
    assert "Traceback" in log
    line = log.partition(MARK)[2].splitlines()[0]
    assert StageRequest.model_validate(json.loads(line)) == asked


def test_what_the_log_holds_repeats_the_fault_by_hand(tmp_path, capsys):
    from workers.stages.__main__ import main

    with pytest.raises(StageFault) as caught:
        run_request(request(tmp_path), lambda _phase, _share: None)
    file = tmp_path / "request.json"
    file.write_text(capsys.readouterr().out.partition(MARK)[2].splitlines()[0])
    assert main([str(file)]) == 1
    assert f"error: {caught.value.detail}" in capsys.readouterr().err


def test_a_failure_that_a_stage_foresaw_prints_no_traceback(tmp_path, capsys):
    source = tmp_path / "source.onnx"
    source.write_bytes(b"")
    stage = Stage(
        kind=JobKind.CAST,
        params=CastParams(precision="fp16"),
        inputs={"onnx": source},
        workdir=tmp_path,
        progress=lambda _phase, _share: None,
    )
    with pytest.raises(StageFailed, match="the file is empty"):
        run(stage)
    assert "Traceback" not in capsys.readouterr().out


def test_parameters_that_this_worker_does_not_know_ask_for_one_version_of_the_farm(tmp_path):
    asked = request(tmp_path)
    asked.params["shiny"] = True
    with pytest.raises(StageFailed, match="doesn't understand the build job's request") as caught:
        run_request(asked, lambda _phase, _share: None)
    assert "same version" in caught.value.hint


@pytest.mark.parametrize(
    "err", [KeyError("w"), RecursionError("too deep"), AssertionError(), TypeError("'NoneType'")]
)
@pytest.mark.parametrize("module", [export, cast])
def test_whatever_a_stage_raises_it_ends_with_a_class_and_a_hint(
    module, err, tmp_path, monkeypatch
):
    def broken(_stage):
        raise err

    monkeypatch.setattr(module, "run", broken)
    source = tmp_path / "source.onnx"
    onnx.save(strange.no_weights(), str(source))
    kind = JobKind(module.__name__.rpartition(".")[2])
    stage = Stage(
        kind=kind,
        params=CastParams(precision="fp16"),
        inputs={"onnx": source},
        workdir=tmp_path,
        progress=lambda _phase, _share: None,
    )
    with pytest.raises(StageFault) as caught:
        run(stage)
    assert type(err).__name__ in caught.value.detail
    assert caught.value.detail.startswith(f"{kind} in fp16: ")


def test_pages_that_a_library_gives_for_a_reason_are_cut_in_what_is_kept(tmp_path, monkeypatch):
    reason = "CUDA error: " + "no kernel image is available\t" * 120
    metrics = Metrics(eager=Timed(reason=reason))
    said = stages.MeasureFacts(accuracy=Accuracy(), metrics=metrics, metrics_reason=None)
    monkeypatch.setattr(base, "run", lambda _stage: StageResult(outputs={}, facts=said))
    found = run_request(request(tmp_path), lambda _phase, _share: None)["facts"]
    stages.check_facts(JobKind.MEASURE, found)
    kept = found["metrics"]["eager"]["reason"]
    assert reason.startswith(kept.removesuffix("…"))
    assert len(kept) == 2000
