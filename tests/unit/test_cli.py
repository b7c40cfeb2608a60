"""The command line: what it prints, in words and as JSON, and its exit codes."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from farm.cli import app, exits, options, show, watch
from farm.client import Build, Farm
from farm.errors import InvalidRequest
from farm.installed import parts
from tests import stub_farm
from tests.stub_farm import BUILD, StubFarm, rtx_plan

Run = Callable[..., Result]


@pytest.fixture
def stub() -> Iterator[StubFarm]:
    with stub_farm.running() as farm:
        yield farm


@pytest.fixture
def run(stub: StubFarm, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FARM_URL", stub.url)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "digits.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("digits/archive_format", "pt2")
    return path


def test_options_of_the_builder_are_submitted_and_unknown_ones_are_told(
    run: Run, stub: StubFarm, model: Path
) -> None:
    given = ("--option", "tf32=false", "--option", "builder_optimization_level=5")
    result = run("submit", model, "--gpu", "sm_89", *given)
    assert result.exit_code == exits.OK, result.output
    sent = stub.submitted[-1]["options"]
    assert (sent["tf32"], sent["builder_optimization_level"]) == (False, 5)
    unknown = run("submit", model, "--gpu", "sm_89", "--option", "turbo=on")
    assert unknown.exit_code == exits.USAGE
    assert "builder_optimization_level" in unknown.stderr
    wrong = run("submit", model, "--gpu", "sm_89", "--option", "builder_optimization_level=9")
    assert wrong.exit_code == exits.USAGE


def test_a_pruning_is_submitted_and_an_unknown_one_is_told(
    run: Run, stub: StubFarm, model: Path
) -> None:
    result = run("submit", model, "--gpu", "sm_89", "--prune", "l1:0.5")
    assert result.exit_code == exits.OK, result.output
    assert stub.submitted[-1]["prune"] == {"method": "l1-unstructured", "amount": 0.5}
    unknown = run("submit", model, "--gpu", "sm_89", "--prune", "magic")
    assert unknown.exit_code == exits.USAGE
    assert "2:4" in unknown.stderr


def test_a_trtexec_command_becomes_a_submission(run: Run) -> None:
    command = "trtexec --onnx=m.onnx --fp16 --noTF32 --iterations=10"
    result = run("import-trtexec", command)
    assert result.stdout.splitlines()[0] == (
        "farm submit m.onnx --precision fp16 --option tf32=false --gpu …"
    )
    assert "without --iterations" in result.stdout
    found = json.loads(run("import-trtexec", command, "--json").stdout)
    assert (found["source"], found["precisions"], found["options"]) == (
        "m.onnx",
        ["fp16"],
        {"tf32": False},
    )
    assert run("import-trtexec", "trtexec --useDLACore=0 --onnx=m.onnx").exit_code == exits.USAGE


def test_inspect_shows_the_types_and_the_layers_of_an_engine(run: Run, stub: StubFarm) -> None:
    image = {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [64, 1, 8, 8]}
    spec = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
    row = stub.add(rtx_plan(), inputs=[spec], profiles=[{"image": image}])
    result = run("inspect", row["id"])
    assert result.exit_code == exits.OK, result.output
    assert re.search(r"input +image +float32 +batch×1×8×8 +1x1x8x8:8x1x8x8:64x1x8x8", result.stdout)
    assert "2 convolutions and matrix products, 4 billion" in result.stdout
    assert re.search(r"int8 +1 +97\.0 %", result.stdout)
    assert "not in int8: Gemm head (pooled isn't)" in result.stdout
    assert re.search(r"40 +CONVOLUTION +– +half \?×10 +– +layer 39", result.stdout)
    assert f"… 10 more: farm inspect {row['id']} --all" in result.stdout
    everything = run("inspect", row["id"], "--all").stdout
    assert "layer 49" in everything
    assert "more:" not in everything
    shown = json.loads(run("inspect", row["id"], "--json").stdout)
    assert [one["name"] for one in shown["products"]] == ["c1", "head"]
    assert len(shown["layers"]) == 50


def test_inspect_shows_what_the_engine_itself_says(
    run: Run, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"taken": True, "revision": 3, "entries_before": 120, "misses": 4}
    row = stub.add(rtx_plan(), peak_memory_bytes=2_000_000_000, timing_cache=cache)
    product = stub_farm.LAYERS["products"][0]
    told = {
        "source": "the engine, by TensorRT's inspector",
        "compute": stub_farm.LAYERS["compute"] | {"source": "inspector", "found": 1},
        "products": [product | {"type": "fp16", "typed": "int8", "layer": "c1 + relu"}],
        "kinds": {"CaskConvolution": 50, "Reformat": 2},
        "fusions": {"CaskConvolution": 48},
        "operators": 120,
        "weights": {"int8": {"parameters": 25_000_000, "bytes": 25_000_000}},
        "memory": {
            "context_bytes": 8_000_000,
            "context_bytes_by_profile": [4_000_000, 8_000_000],
            "weights_bytes": None,
            "streamable_weights_bytes": 0,
            "aux_streams": 1,
            "constants": {"int8": 25_000_000, "half": 2_000},
        },
    }
    for name, value in told.items():
        monkeypatch.setitem(stub_farm.LAYERS, name, value)
    shown = run("inspect", row["id"]).stdout
    assert "as the inspector says: 1 of 1 found in it" in shown
    assert "constants in the engine: 25.0 MB int8, 2.0 kB half" in shown
    assert "timing cache: revision 3 of 120 entries; 4 more were timed" in shown
    assert "in fp16, and typed int8: Conv c1" in shown
    assert "GPU memory: 8.0 MB for each execution context; by profile 4.0 MB, 8.0 MB" in shown
    assert "its build took 2.0 GB of the host's memory at most" in shown
    assert "of 120 operators in the typed graph: 50 CaskConvolution, 2 Reformat" in shown
    assert "fused of several operators: 48 CaskConvolution" in shown
    assert re.search(r"int8 +25,000,000 +25\.0 MB", shown)


def test_engines_say_what_they_compute_in_and_whether_it_was_worth_it(
    run: Run, stub: StubFarm
) -> None:
    against = {"engine": "x", "precision": "fp16", "size_ratio": 0.52, "latency_ratio": 0.61}
    drops = {"task_drop": 0.002, "agreement_drop": 0.001}
    stub.add(rtx_plan(), compute=stub_farm.LAYERS["compute"], against=against | drops)
    shown = run("engines", "digits").stdout
    assert "int8 97 %, fp16 3 % (typed graph)" in shown
    assert "fp16: 0.52× size, 0.61× p50, task -0.2 %" in shown


def test_other_judgements_of_an_engine_are_listed_beneath_it(run: Run, stub: StubFarm) -> None:
    task = {"metric": "top1", "source": 0.9, "engine": 0.88, "drop": 0.02}
    other = {
        "engine": "E2",
        "data": "evaluation",
        "labelled": True,
        "samples": 50,
        "state": "ready",
        "doubts": [],
        "accuracy": {
            "cosine_mean": 0.97,
            "top1_agreement": 0.96,
            "task": task,
            "samples": 50,
            "data": "evaluation",
        },
        "build": "B2",
        "created_at": "2026-07-01T10:00:00Z",
    }
    row = stub.add(rtx_plan(), judgements=[other])
    lines = run("engines", "digits").stdout.splitlines()
    [at] = [n for n, line in enumerate(lines) if row["id"] in line]
    assert re.search(r"└ E2 +ready +96\.0 % +0\.9700 .*50 evaluation", lines[at + 1])


def test_submit_says_what_was_chosen_and_what_comes_next(run: Run, model: Path) -> None:
    result = run("submit", model, "--gpu", "rtx-4090", "--precision", "int8")
    assert result.exit_code == exits.OK, result.output
    assert f"build {BUILD} of digits v1" in result.stdout
    assert re.search(r"rtx-4090 +tensorrt-rtx:sm_89 +int8 +first of tensorrt", result.stdout)
    assert "2 jobs, 1 of them reused" in result.stdout
    assert f"farm watch {BUILD}\n" in result.stdout
    assert "farm pull digits --gpu sm_89 -o engines\n" in result.stdout


def test_submit_takes_lists_by_commas_and_by_repeating(
    run: Run, stub: StubFarm, model: Path
) -> None:
    words = "--gpu sm_89,rtx-5090 --gpu cpu --precision fp16,fp32 --label team=vision --label x=a=b"
    profiles = "--profile image=1x3:8x3:64x3 --profile mask=1x8"
    result = run("submit", model, *words.split(), *profiles.split(), "--name", "d", "--json")
    assert result.exit_code == exits.OK, result.output
    sent = stub.submitted[0]
    assert sent["model"] == "d"
    assert sent["targets"] == ["sm_89", "rtx-5090", "cpu"]
    assert sent["precisions"] == ["fp16", "fp32"]
    assert sent["labels"] == {"team": "vision", "x": "a=b"}
    image = {"min": [1, 3], "opt": [8, 3], "max": [64, 3]}
    assert sent["profiles"] == [
        {"image": image, "mask": {"min": [1, 8], "opt": [1, 8], "max": [1, 8]}}
    ]
    assert json.loads(result.stdout)["id"] == BUILD


def test_inputs_that_are_fixed_are_submitted_with_their_values(
    run: Run, stub: StubFarm, model: Path
) -> None:
    given = ("--fix", "sr=16000", "--fix", "size=[640, 480]", "--fix", "on=true")
    result = run("submit", model, "--gpu", "sm_89", *given)
    assert result.exit_code == exits.OK, result.output
    assert stub.submitted[-1]["fixed_inputs"] == {"sr": 16000, "size": [640, 480], "on": True}
    wrong = run("submit", model, "--gpu", "sm_89", "--fix", "sr=fast")
    assert wrong.exit_code == exits.USAGE
    assert "write NAME=VALUE" in wrong.stderr


def test_submit_waits_and_prints_one_document(run: Run, model: Path) -> None:
    result = run("submit", model, "--gpu", "sm_89", "--wait", "--json")
    assert result.exit_code == exits.OK
    assert json.loads(result.stdout)["state"] == "succeeded"


def test_submit_without_a_gpu_says_how_to_name_one(run: Run, model: Path) -> None:
    result = run("submit", model)
    assert result.exit_code == exits.USAGE
    assert result.stderr.startswith("error: no GPU given\nhint: say which: --gpu sm_89")


def test_a_pickle_is_refused_with_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(b"\x80\x04")
    result = run("submit", tmp_path / "m.pth", "--gpu", "sm_89")
    assert result.exit_code == exits.USAGE
    assert "torch.export.save" in result.stderr


def test_a_profile_that_is_not_one_is_explained() -> None:
    for text in ("image", "image=1x2:3", "=1x2", "image=axb"):
        with pytest.raises(InvalidRequest) as caught:
            options.profiles([text])
        assert "INPUT=MIN:OPT:MAX" in str(caught.value.hint)


def test_a_profiles_input_may_have_a_colon_in_its_name() -> None:
    assert options.profiles(["input:0=1:2:3"])[0]["input:0"]["max"] == [3]


def test_a_label_that_is_not_one_is_explained() -> None:
    with pytest.raises(InvalidRequest, match="'team' isn't a label"):
        options.labels(["team"])


def test_watch_prints_a_line_a_change(run: Run) -> None:
    result = run("watch", BUILD)
    assert result.exit_code == exits.OK
    lines = [line.partition("  ")[2] for line in result.stdout.splitlines()[1:7]]
    assert lines[:5] == [
        f"build {BUILD}  queued",
        "build digits:int8@sm_89  running (on w1)",
        "build digits:int8@sm_89  compile",
        "build digits:int8@sm_89  succeeded",
        f"build {BUILD}  succeeded",
    ]
    assert f"build {BUILD} succeeded after 1 min 05 s: 1 of 1 engines" in result.stdout


def test_watch_prints_events_as_lines_of_json(run: Run) -> None:
    result = run("watch", BUILD, "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 2, 3, 4, 5, 6, 7]


def test_watching_a_build_that_fails_tells_the_cause_and_exits_1(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = stub_farm.failed_build()
    result = run("watch", BUILD)
    assert result.exit_code == exits.FAILED
    assert result.stderr == "error: calibrate digits: no samples [for image]\nhint: add samples\n"
    assert "farm retry" not in result.stdout  # it would fail again


def test_watching_a_build_whose_worker_failed_says_how_to_run_it_again(
    run: Run, stub: StubFarm
) -> None:
    stub.builds[BUILD] = failed = stub_farm.failed_build()
    failed["jobs"][0]["error"] |= {"code": "child-timed-out"}
    result = run("watch", BUILD)
    assert result.exit_code == exits.FAILED
    assert f"farm retry {BUILD}" in result.stdout


def test_watching_a_build_that_fails_as_json_ends_with_a_problem(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = stub_farm.failed_build()
    result = run("watch", BUILD, "--json")
    assert result.exit_code == exits.FAILED
    assert json.loads(result.stderr)["code"] == "build-failed"


DOUBT = "the class is the source's in 19.0% (98% is the gate) over 64 random samples"


def test_watching_a_build_with_a_doubtful_engine_says_why_and_exits_5(
    run: Run, stub: StubFarm
) -> None:
    doubtful = stub.builds[BUILD]["engines"][0] | {"doubts": [DOUBT]}
    stub.builds[BUILD] |= {"engines_doubtful": 1, "engines": [doubtful]}
    result = run("watch", BUILD)
    assert result.exit_code == exits.DOUBTFUL
    assert "1 of 1 engines, 1 of them doubtful" in result.stdout
    assert f"doubtful: int8@tensorrt-rtx:sm_89: {DOUBT}" in result.stderr
    assert run("watch", BUILD, "--json").exit_code == exits.DOUBTFUL


def test_a_doubtful_engine_and_what_it_was_judged_on_show_in_the_list(
    run: Run, stub: StubFarm
) -> None:
    accuracy = {"samples": 64, "data": "random", "equal": 0.19, "equal_interval": [0.1, 0.3]}
    stub.add(rtx_plan(), state="doubtful", doubts=[DOUBT], accuracy=accuracy)
    shown = run("engines", "digits").stdout
    assert re.search(r"19\.0 % \(10\.0–30\.0\) .* 64 random ", shown)
    assert f"doubtful: 01m7y8mbznssegkq (int8@sm_89): {DOUBT}" in shown


def test_watching_a_cancelled_build_exits_1(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = stub_farm.build("cancelled")
    assert run("watch", BUILD).exit_code == exits.FAILED


def _interrupt(self: Build, *, after: int = 0) -> Any:
    raise KeyboardInterrupt


def test_ctrl_c_stops_watching_and_says_how_to_resume(
    run: Run, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Build, "events", _interrupt)
    result = run("watch", BUILD)
    assert result.exit_code == exits.INTERRUPTED
    assert f"build {BUILD} goes on. Resume: farm watch {BUILD}\n" in result.stderr
    assert not stub.asked("POST", f"/v1/builds/{BUILD}/cancel")


def test_what_to_type_next_names_the_farm_that_was_given(
    run: Run, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARM_URL")
    monkeypatch.setattr(Build, "events", _interrupt)
    result = run("watch", BUILD, "--url", stub.url)
    assert f"Resume: farm watch {BUILD} --url {stub.url}\n" in result.stderr


def test_on_a_terminal_watch_shows_the_jobs_in_place(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=120, height=40, markup=False)
    monkeypatch.setattr(show, "console", lambda: screen)
    with Farm(stub.url) as farm:
        watch._live(farm.build(BUILD))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"2 +build digits:int8@sm_89 +succeeded +host-cpu +1 min 05 s", text)
    assert "engines 1/1" in text


def test_on_a_terminal_watch_tells_when_the_farm_is_lost(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(self: Build, *, after: int = 0) -> Any:
        raise InvalidRequest("lost")

    monkeypatch.setattr(Build, "events", lose)
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(show, "console", lambda: screen)
    with Farm(stub.url) as farm, pytest.raises(InvalidRequest, match="lost"):
        watch._live(farm.build(BUILD))
    assert not [t for t in threading.enumerate() if t.name == "watch"]


def test_a_build_of_many_jobs_shows_those_that_matter_on_a_small_terminal() -> None:
    view = stub_farm.build()
    view["jobs"] = [stub_farm.job(n, f"build {n}") for n in range(50)]
    view["jobs"][40]["state"] = "running"
    from farm.schemas.builds import BuildView

    table = watch._jobs_grid(BuildView.model_validate(view).jobs, room=3)
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    assert len(out.getvalue().splitlines()) == 4
    assert "build 40" in out.getvalue()


def test_status_shows_jobs_and_engines(run: Run) -> None:
    result = run("status", BUILD)
    assert result.exit_code == exits.OK
    assert re.search(r"1 +export digits +succeeded +cached", result.stdout)
    assert "01m7y8mbznssegkq" in result.stdout
    assert "labels: team=vision" in result.stdout


def test_status_of_a_failed_build_shows_brackets_as_they_are(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = stub_farm.failed_build()
    result = run("status", BUILD)
    assert "calibrate digits failed: no samples [for image]" in result.stdout
    assert f"farm logs {BUILD} --job 1" in result.stdout


def test_a_build_that_is_not_there_exits_3(run: Run) -> None:
    result = run("status", "06NOPE")
    assert result.exit_code == exits.NOT_FOUND
    expected = "error: there is no build '06NOPE'\nhint: `farm builds` lists them\n"
    assert result.stderr == expected


def test_an_error_as_json_is_a_problem_on_stderr(run: Run) -> None:
    result = run("status", "06NOPE", "--json")
    assert result.stdout == ""
    assert json.loads(result.stderr) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "code": "not-found",
        "detail": "there is no build '06NOPE'",
        "hint": "`farm builds` lists them",
    }


def test_a_farm_out_of_reach_exits_4(run: Run) -> None:
    result = run("builds", "--url", "http://127.0.0.1:9")
    assert result.exit_code == exits.UNAVAILABLE
    assert "farm up" in result.stderr


def test_an_unknown_option_exits_2(run: Run) -> None:
    assert run("status", BUILD, "--nonsense").exit_code == exits.USAGE


def test_logs_are_printed_as_they_are(run: Run) -> None:
    assert run("logs", BUILD).stdout == "=== build digits\ntactic 7\n"
    assert json.loads(run("logs", BUILD, "--json").stdout)["text"].endswith("tactic 7\n")


def test_logs_are_followed(run: Run) -> None:
    assert run("logs", BUILD, "--follow").stdout == "=== build digits:int8@sm_89\ntactic 7\n"
    assert run("logs", BUILD, "-f", "--job", "2").stdout == "tactic 7\n"


def test_cancel_and_retry_say_what_became_of_the_build(run: Run, stub: StubFarm) -> None:
    stub.builds[BUILD] = stub_farm.build("running")
    assert run("cancel", BUILD).stdout == f"build {BUILD} cancelled\n"
    assert run("cancel", BUILD).stdout == f"build {BUILD} had ended before: cancelled\n"
    assert f"farm watch {BUILD}" in run("retry", BUILD).stdout


def test_explain_says_what_differs(run: Run) -> None:
    assert "differs from job 1: method entropy → max" in run("explain", BUILD).stdout
    assert json.loads(run("explain", BUILD, "--json").stdout)["jobs"][0]["nearest"] == 1


def test_builds_are_listed(run: Run) -> None:
    result = run("builds", "--model", "digits", "--state", "succeeded")
    assert re.search(rf"{BUILD} +digits v1 +succeeded +1/1 +int8 +rtx-4090", result.stdout)
    assert [one["id"] for one in json.loads(run("builds", "--json").stdout)] == [BUILD]


def test_engines_show_accuracy_and_say_where_nothing_was_measured(run: Run, stub: StubFarm) -> None:
    stub.add(rtx_plan())
    timed = {"latency_ms": {"p50": 0.1234, "p99": 0.2}, "speed_up": 3.456}
    stub.add(b"x", id="E2", gpu="cpu", runtime="onnxruntime", metrics=timed)
    rows = run("engines", "digits").stdout.splitlines()
    assert re.split(r" {2,}", rows[1].rstrip()) == [
        "01m7y8mbznssegkq",
        "v1",
        "tensorrt-rtx:sm_89",
        "int8",
        "300.0 kB",
        "99.8 % (98.8–100.0)",
        "0.9993",
        "98.2 % (source 98.4 %)",
        "450 evaluation",
        "typed ONNX",
        *"––––",
    ]
    assert re.search(r"0\.123 ms +3\.46× +– +–$", rows[2].rstrip())


def test_speed_shows_an_engine_beside_pytorch_and_what_to_think_of_the_figures(
    run: Run, stub: StubFarm
) -> None:
    def facts(p50: float, **more: object) -> dict[str, object]:
        parts = {part: {"p50": 0.25} for part in ("h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")}
        latency = dict.fromkeys(("p90", "p95", "p99"), 9.0) | {"p50": p50}
        return {"latency_ms": latency, **parts, "samples_per_s": 8000.4, **more}

    clocks = {name: {"median": 1980} for name in ("sm_clock_mhz", "power_w", "temperature_c")}
    metrics = facts(0.75) | {
        "batch": 8,
        "cuda_graph": facts(0.5),
        "eager": facts(3.0),
        "eager_autocast": facts(2.0, autocast="float16"),
        "compiled": {"reason": "no C compiler", "autocast": "float16"},
        "throughput": [{"batch": 64, "samples_per_s": None, "reason": "out of memory"}],
        "gpu": {**clocks, "mj_per_sample": 12.3},
        "memory": {"engine_bytes": 52_000_000},
        "warnings": ["the compute time varies by 9.1%"],
        "settings": {"device": "NVIDIA H200"},
    }
    row = stub.add(b"x", gpu="h200", runtime="onnxruntime", metrics=metrics)
    shown = run("speed", row["id"]).stdout
    assert "batches of 8 on NVIDIA H200, 1980 MHz, 1980 W" in shown
    assert "12.3 mJ a sample, 52.0 MB" in shown
    assert re.search(r"^engine +0\.750 +9\.000 +9\.000 +9\.000( +0\.250){4} +8000 *$", shown, re.M)
    assert re.search(r"^engine, CUDA graph +0\.500", shown, re.M)
    assert re.search(r"^PyTorch, float16 +2\.000", shown, re.M)
    assert "PyTorch, torch.compile, float16: no figures: no C compiler" in shown
    assert re.search(r"^64 +– +– +out of memory", shown, re.M)
    assert "warning: the compute time varies" in shown
    assert json.loads(run("speed", row["id"], "--json").stdout)["metrics"] == metrics


def test_speed_says_why_an_engine_was_not_measured(run: Run, stub: StubFarm) -> None:
    row = stub.add(rtx_plan(), metrics=None, metrics_reason="no such GPU here")
    assert "not measured: no such GPU here" in run("speed", row["id"]).stdout


def test_a_pruned_engine_is_listed_as_one_beside_its_unpruned_twin(
    run: Run, stub: StubFarm
) -> None:
    against = {
        "engine": "E1", "precision": "fp16", "size_ratio": 1.0, "latency_ratio": None,
        "task_drop": 0.012, "agreement_drop": None,
    }  # fmt: skip
    stub.add(rtx_plan(), precision="fp16", prune="2:4", against=against)
    row = run("engines", "digits").stdout.splitlines()[1]
    assert "fp16, pruned 2:4" in row
    assert "unpruned fp16: 1.00× size, task -1.2 %" in row


def test_an_engine_without_figures_is_shown_with_dashes(run: Run, stub: StubFarm) -> None:
    stub.add(rtx_plan(), accuracy={"cosine_mean": 1.0, "top1_agreement": None, "task": None})
    assert re.search(r"– +1\.0000 +– +– +– +–", run("engines", "digits").stdout)


def test_engines_of_an_unknown_model_name_those_that_are_there(run: Run) -> None:
    result = run("engines", "nope")
    assert result.exit_code == exits.NOT_FOUND
    assert "hint: the models are digits" in result.stderr


def test_models_and_their_versions_are_listed(run: Run) -> None:
    assert re.search(r"digits +v1 +0", run("models").stdout)
    assert "sha256:" + "a" * 64 in run("models", "digits").stdout
    assert json.loads(run("models", "--json").stdout)[0]["name"] == "digits"


def test_workers_are_listed(run: Run, stub: StubFarm) -> None:
    assert "farm worker" in run("workers").stdout
    stub.workers = [
        {
            "name": "host-cpu",
            "host": "host",
            "online": True,
            "gpu": None,
            "gpu_uuid": None,
            "tags": ["cpu"],
            "queues": ["cpu"],
            "runtimes": {"onnxruntime": "1.31.0"},
            "toolchain": {},
            "job": 2,
            "job_title": "build digits:int8@sm_89",
            "started_at": stub_farm.NOW,
            "last_seen_at": stub_farm.NOW,
        }
    ]
    assert re.search(
        r"host-cpu +online +CPU +cpu +onnxruntime 1\.31\.0 +2 build", run("workers").stdout
    )


def test_a_plugin_library_is_added_with_its_signature(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    library, signature = tmp_path / "libfoo.so", tmp_path / "libfoo.so.sig"
    library.write_bytes(b"\x7fELF...")
    signature.write_bytes(bytes(64))
    shown = run("plugins", "add", str(library), "--signature", str(signature)).stdout
    [added] = stub.plugins
    assert (added["name"], base64.b64decode(added["signature"])) == ("libfoo.so", bytes(64))
    assert added["digest"] in stub.blobs
    assert f"--option plugins={added['digest']}" in shown
    assert re.search(r"libfoo\.so +sha256:[0-9a-f]{64} +7 B +K{43}=", run("plugins", "list").stdout)


def test_timing_caches_are_listed_with_their_worth(run: Run, stub: StubFarm) -> None:
    assert "the first build with tensorrt" in run("timing-caches").stdout
    stub.timing_caches = [
        {
            "gpu": "NVIDIA H200",
            "compute_capability": "sm_90",
            "tensorrt": "11.4.0.106",
            "cuda": "13",
            "digest": "sha256:" + "a" * 64,
            "bytes": 4096,
            "revision": 3,
            "entries": None,
            "builds": 4,
            "hits": 1,
            "hit_rate": 0.25,
            "updated_at": stub_farm.NOW,
        }
    ]
    assert re.search(
        r"NVIDIA H200 +tensorrt 11\.4\.0\.106, cuda 13, sm_90 +4\.1 kB +– +4 +25\.0 %",
        run("timing-caches").stdout,
    )


def test_targets_are_listed_with_why_and_by_product(run: Run, stub: StubFarm) -> None:
    stub.targets = [
        {
            "target": f"tensorrt-rtx:{tag}",
            "runtime": "tensorrt-rtx",
            "gpu": tag,
            "compute_capability": tag,
            "products": products,
            "status": "buildable",
            "why": "1 worker online",
            "precisions": ["fp16", "int8"],
        }
        for tag, products in (("sm_89", ["rtx-4090"]), ("sm_120", ["rtx-5090"]))
    ]
    assert len(run("targets").stdout.splitlines()) == 3
    shown = run("targets", "--gpu", "rtx-5090").stdout
    assert "tensorrt-rtx:sm_120  buildable" in shown
    assert "sm_89" not in shown
    assert run("targets", "--gpu", "rtx-9999").exit_code == exits.USAGE


def _subcommands() -> dict[str, Any]:
    import typer

    commands: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if inner is None:
            commands[name] = command
        else:
            commands |= {f"{name} {sub}": one for sub, one in inner.items()}
    return commands


@pytest.mark.parametrize("name", _subcommands())
def test_every_command_has_json_and_an_example_that_parses(name: str) -> None:
    command = _subcommands()[name]
    text = command.epilog.removeprefix("Example: ")
    words = shlex.split(text)
    assert words[: 1 + len(name.split())] == ["farm", *name.split()]
    command.make_context(name, words[1 + len(name.split()) :])
    assert "--json" in {opt for param in command.params for opt in param.opts}


def test_help_tells_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").stdout.split())
    assert "0 ok · 1 the build failed" in text
    assert "130 Ctrl+C" in text


def test_worker_becomes_the_workers_process(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("sqlalchemy", reason="pip install 'engine-farm[worker]'")
    from farm.database.migrate import upgrade

    called: list[list[str]] = []
    paths: list[str] = []

    def become(path: str, words: list[str], environment: dict[str, str]) -> None:
        called.append([path, *words])
        paths.append(environment["PYTHONPATH"].split(os.pathsep)[0])

    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARM_DATABASE_URL", f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade()
    monkeypatch.setattr(os, "execve", become)
    run("worker", "--cpu-only", "--name", "bench")
    python = sys.executable
    assert called == [[python, python, "-P", "-m", "workers", "--cpu-only", "--name", "bench"]]
    assert paths == [str(parts())]


def test_python_m_farm_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "farm", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("engine-farm ")


def test_completion_offers_builds_and_tags_and_never_fails(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offered(words: str) -> str:
        shell = {"_FARM_COMPLETE": "complete_bash", "COMP_WORDS": words}
        shell["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        command = [sys.executable, "-m", "farm"]
        environment = {**os.environ, **shell}
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    monkeypatch.setenv("FARM_URL", stub.url)
    assert BUILD in offered("farm status 01")
    assert "digits" in offered("farm pull d")
    assert "sm_80,rtx-4090" in offered("farm submit m.pt2 --gpu sm_80,rtx-40")
    assert "bf16" in offered("farm submit m.pt2 --precision b")
    monkeypatch.setenv("FARM_URL", "http://127.0.0.1:9")
    assert offered("farm status 01").strip() == ""


def test_gc_says_what_it_would_free_and_how(run: Run, stub: StubFarm) -> None:
    result = run("gc", "--dry-run", "--older-than", "7d")
    assert result.exit_code == exits.OK, result.output
    assert "would remove 1 blob (52.4 MB) and 2 interrupted uploads (10 B)" in result.stdout
    assert "kept 14 blobs (734.0 MB)" in result.stdout
    assert "farm gc --older-than 7d" in result.stdout
    assert stub.collected == [{"dry_run": True, "older_than_s": 7 * 86400}]


def test_gc_refuses_a_duration_that_it_cannot_read(run: Run, stub: StubFarm) -> None:
    result = run("gc", "--older-than", "a week")
    assert result.exit_code == exits.USAGE
    assert "write a number and s, m, h or d: 24h" in result.output
    assert stub.collected == []


def test_gc_as_json_is_the_report(run: Run) -> None:
    result = run("gc", "--json")
    assert json.loads(result.stdout)["removed_total"] == 1
