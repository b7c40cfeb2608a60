"""Engines on the command line: what they are, how fast, and how right."""

from __future__ import annotations

import json
import re

import pytest

from farm.cli import exits
from farm.testing import documents
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run

DOUBT = "the class is the source's in 19.0% (98% is the gate) over 64 random samples"


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


def test_inspect_shows_the_noise_of_an_engine_and_what_kept_its_accuracy(
    run: Run, stub: StubFarm
) -> None:
    tried = [
        {"what": "plain", "drop": 0.25, "int8_share": 1.0, "predicted_time": 0.41},
        {"what": "plain, 1 of 7 layers in floats", "int8_share": 0.9, "kept": True},
    ]
    tried[1]["latency_ratio"] = 0.723
    search = {
        "max_latency_ratio": 0.8,
        "latency_ratio": 0.723,
        "metric": "f1",
        "max_drop": 0.01,
        "drop": 0.004,
        "int8_share": 0.9,
        "tried": tried,
    }
    search |= {"budget_s": 600, "spent_s": 31.4, "samples": 48, "held_out": 16}
    stub.quantization = {
        "snr_db": {"relu_3": 31.25, "pooled": 9.0},
        "left_in_float": {"light head": ["/head/conv"]},
        "search": search,
    }
    shown = run("inspect", stub.add(rtx_plan())["id"]).stdout
    assert "left in floats, light head: /head/conv\n" in shown
    assert (
        "f1 may drop by 0.01 and drops by 0.0040, with 90% of the multiplications in int8, and takes 0.72 of "
        "floats' time on a CPU of 0.8 allowed; 2 ways" in shown
    )
    assert re.search(r"0\.2500 +100% +0\.41 +plain *\n", shown)
    assert re.search(r"broken +90% +0\.72 +plain, 1 of 7 layers in floats \(chosen\)", shown)
    assert re.search(r"9\.0 dB +pooled\n31\.2 dB +relu_3", shown)


def test_inspect_shows_how_to_run_an_engine_and_what_was_tried(run: Run, stub: StubFarm) -> None:
    nhwc = {"prefer_nhwc": "1", "use_tf32": "1"}
    tried = [
        {
            "options": {"use_tf32": "1"},
            "fused_attention": False,
            "p50_ms": 0.786,
            "cuda_graph": True,
        },
        {"options": {"use_tf32": "1"}, "fused_attention": True, "reason": "its outputs differ"},
        {"options": nhwc, "fused_attention": False, "p50_ms": 0.567, "cuda_graph": False},
    ]
    provider = {"options": nhwc, "fused_attention": 0, "batch": 1, "tried": tried}
    shown = run("inspect", stub.add(rtx_plan(), provider=provider)["id"]).stdout
    assert "runs with prefer_nhwc=1, use_tf32=1\n" in shown
    assert "tried use_tf32=1: 0.786 ms in a CUDA graph\n" in shown
    assert "tried use_tf32=1 and fused attention: its outputs differ\n" in shown
    assert "tried prefer_nhwc=1, use_tf32=1: 0.567 ms\n" in shown


def test_inspect_shows_what_the_engine_itself_says(
    run: Run, stub: StubFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"taken": True, "revision": 3, "entries_before": 120, "misses": 4}
    row = stub.add(rtx_plan(), peak_memory_bytes=2_000_000_000, timing_cache=cache)
    product = documents.LAYERS["products"][0]
    told = {
        "source": "the engine, by TensorRT's inspector",
        "compute": documents.LAYERS["compute"] | {"source": "inspector", "found": 1},
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
        monkeypatch.setitem(documents.LAYERS, name, value)
    shown = run("inspect", row["id"]).stdout
    assert "according to the inspector: 1 of 1 found in it" in shown
    assert "constants in the engine: 25.0 MB int8, 2.0 kB half" in shown
    assert "timing cache: revision 3 with 120 entries; 4 more were timed" in shown
    assert "in fp16, and typed int8: Conv c1" in shown
    assert "GPU memory: 8.0 MB for each execution context; by profile 4.0 MB, 8.0 MB" in shown
    assert "peak host memory of the build: 2.0 GB" in shown
    assert "120 operators in the typed graph: 50 CaskConvolution, 2 Reformat" in shown
    assert "fused layers: 48 CaskConvolution" in shown
    assert re.search(r"int8 +25,000,000 +25\.0 MB", shown)


def test_engines_say_what_they_compute_in_and_whether_it_was_worth_it(
    run: Run, stub: StubFarm
) -> None:
    against = {"engine": "x", "precision": "fp16", "size_ratio": 0.52, "latency_ratio": 0.61}
    drops = {"task_drop": 0.002, "agreement_drop": 0.001}
    stub.add(rtx_plan(), compute=documents.LAYERS["compute"], against=against | drops)
    shown = run("engines", "digits", "--wide").stdout
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
    lines = run("engines", "digits", "--wide").stdout.splitlines()
    [at] = [n for n, line in enumerate(lines) if row["id"] in line]
    assert re.search(r"└ E2 +ready +96\.0 % +88\.0 % .*0\.9700 +50 evaluation", lines[at + 1])


def test_a_doubtful_engine_and_what_it_was_judged_on_show_in_the_list(
    run: Run, stub: StubFarm
) -> None:
    accuracy = {"samples": 64, "data": "random", "equal": 0.19, "equal_interval": [0.1, 0.3]}
    stub.add(rtx_plan(), state="doubtful", doubts=[DOUBT], accuracy=accuracy)
    shown = run("engines", "digits", "--wide").stdout
    assert re.search(r"19\.0 % \(10\.0–30\.0\) .* 64 random ", shown)
    assert f"doubtful: 01m7y8mbznssegkq (int8@sm_89): {DOUBT}" in shown


def test_engines_show_what_matters_first_within_80_columns(run: Run, stub: StubFarm) -> None:
    timed = {"latency_ms": {"p50": 0.1234, "p99": 0.2}, "speed_up": 3.456}
    stub.add(rtx_plan(), metrics=timed)
    lines = run("engines", "digits").stdout.splitlines()
    assert [re.split(r" {2,}", line.rstrip()) for line in lines] == [
        ["id", "version", "target", "precision", "p50", "agreement"],
        ["01m7y8mbznssegkq", "v1", "tensorrt-rtx:sm_89", "int8", "0.123 ms", "99.8 %"],
    ]
    assert max(map(len, lines)) <= 80


def test_engines_show_accuracy_and_say_where_nothing_was_measured(run: Run, stub: StubFarm) -> None:
    stub.add(rtx_plan())
    timed = {"latency_ms": {"p50": 0.1234, "p99": 0.2}, "speed_up": 3.456}
    stub.add(b"x", id="E2", gpu="cpu", runtime="onnxruntime", metrics=timed)
    rows = run("engines", "digits", "--wide").stdout.splitlines()
    assert re.split(r" {2,}", rows[1].rstrip()) == [
        "01m7y8mbznssegkq",
        "v1",
        "tensorrt-rtx:sm_89",
        "int8",
        "–",
        "99.8 % (98.8–100.0)",
        "–",
        "300.0 kB",
        "98.2 % (source 98.4 %)",
        *"––",
        "0.9993",
        "450 evaluation",
        "typed-onnx",
        "–",
    ]
    assert re.search(r"0\.123 ms +99\.8 % \S+ +3\.46× +1 B +", rows[2])


def test_speed_shows_an_engine_beside_pytorch_and_what_to_think_of_the_figures(
    run: Run, stub: StubFarm
) -> None:
    def facts(p50: float, **more: object) -> dict[str, object]:
        parts = {part: {"p50": 0.25} for part in ("h2d_ms", "compute_ms", "d2h_ms")}
        parts["enqueue_ms"] = {"p50": more.pop("enqueue_ms", 0.05)}
        latency = dict.fromkeys(("p90", "p95", "p99"), 9.0) | {"p50": p50}
        return {"latency_ms": latency, **parts, "samples_per_s": 8000.4, **more}

    clocks = {name: {"median": 1980} for name in ("sm_clock_mhz", "power_w", "temperature_c")}
    metrics = facts(0.75) | {
        "batch": 8,
        "cuda_graph": facts(0.5, warnings=["only 20 queries were timed"]),
        "eager": facts(3.0, precision="fp32"),
        "eager_typed": facts(2.0, precision="fp16", enqueue_ms=0.24),
        "compiled": {"reason": "no C compiler", "precision": "fp16"},
        "compiled_cuda_graph": facts(0.6, precision="fp16", channels_last=True),
        "peers_precision": "fp16",
        "peers_age_s": 90,
        "speed_up": None,
        "speed_up_reason": "PyTorch eager is host-bound",
        "speed_up_over_compiled_with_cuda_graph": 1.2,
        "speed_up_over_best": 1.2,
        "best_of_pytorch": "compiled_cuda_graph",
        "throughput": [{"batch": 64, "samples_per_s": None, "reason": "out of memory"}],
        "gpu": {**clocks, "mj_per_sample": 12.3},
        "memory": {"engine_bytes": 52_000_000},
        "warnings": ["the compute time varies by 9.1%"],
        "settings": {"device": "NVIDIA H200"},
    }
    row = stub.add(b"x", gpu="h200", runtime="onnxruntime", metrics=metrics)
    shown = run("speed", row["id"]).stdout
    assert "batches of 8 on NVIDIA H200, 1980 MHz, 1980 W" in shown
    assert "12.3 mJ per sample, 52.0 MB" in shown
    row_of_engine = r"^engine +0\.750 +9\.000 +9\.000 +9\.000( +0\.250){3} +0\.050 +8000 *$"
    assert re.search(row_of_engine, shown, re.M)
    assert re.search(r"^engine, CUDA graph +0\.500", shown, re.M)
    assert re.search(r"^PyTorch, fp32 +3\.000", shown, re.M)
    assert re.search(r"^PyTorch, fp16 \* +2\.000", shown, re.M)
    assert "PyTorch was timed 1 min 30 s before, beside another engine" in shown
    assert "* host-bound: the GPU waits for the host" in shown
    assert re.search(r"^PyTorch, torch.compile, fp16, NHWC, CUDA graph +0\.600", shown, re.M)
    assert "PyTorch, torch.compile, fp16: not measured: no C compiler" in shown
    assert "no speed-up over PyTorch eager in fp16: PyTorch eager is host-bound" in shown
    assert "1.20× over PyTorch compiled in fp16, both with a CUDA graph" in shown
    assert (
        "1.20× over the best of PyTorch in fp16, the engine at its best "
        "(PyTorch compiled, with a CUDA graph)" in shown
    )
    assert "warning (engine, CUDA graph): only 20 queries were timed" in shown
    assert re.search(r"^64 +– +– +out of memory", shown, re.M)
    assert "warning: the compute time varies" in shown
    assert json.loads(run("speed", row["id"], "--json").stdout)["metrics"] == metrics


def test_speed_shows_what_earlier_releases_recorded(run: Run, stub: StubFarm) -> None:
    def facts(p50: float, **more: object) -> dict[str, object]:
        return {"latency_ms": {"p50": p50}, **more}

    metrics = facts(2.0, eager=facts(4.0), eager_autocast=facts(3.0, autocast="float16"))
    metrics |= {"compiled": facts(2.5, autocast="float16"), "speed_up": 2.0, "batch": 8}
    metrics |= {"speed_up_over_compiled": 1.25, "gpu": {}, "settings": {"device": "NVIDIA H200"}}
    row = stub.add(b"x", gpu="h200", runtime="onnxruntime", metrics=metrics)
    shown = run("speed", row["id"]).stdout
    assert re.search(r"^PyTorch +4\.000", shown, re.M)
    assert re.search(r"^PyTorch, float16 +3\.000", shown, re.M)
    assert re.search(r"^PyTorch, torch.compile, float16 +2\.500", shown, re.M)
    # Of an fp16 engine over the source in fp32.
    assert "2.00×" not in shown
    assert "no speed-ups: an earlier release measured it" in shown
    assert json.loads(run("speed", row["id"], "--json").stdout)["metrics"] == metrics


def test_the_list_shows_a_gpu_engine_at_its_best_beside_the_best_of_pytorch(
    run: Run, stub: StubFarm
) -> None:
    timed = {"latency_ms": {"p50": 0.9}, "cuda_graph": {"latency_ms": {"p50": 0.5}}}
    timed |= {"speed_up": 9.0, "speed_up_over_best": 0.8, "best_of_pytorch": "compiled", "gpu": {}}
    stub.add(b"x", gpu="h200", runtime="onnxruntime", metrics=timed)
    assert re.search(r"0\.5 ms +99\.8 % \S+ +0\.80×", run("engines", "digits", "--wide").stdout)
    unknown = timed | {"speed_up_over_best": None, "best_of_pytorch": None}
    stub.add(b"x", id="E2", gpu="h200", runtime="onnxruntime", metrics=unknown)
    [row] = [
        line for line in run("engines", "digits", "--wide").stdout.splitlines() if "E2" in line
    ]
    assert re.search(r"0\.5 ms +99\.8 % \S+ +–", row)


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
    row = run("engines", "digits", "--wide").stdout.splitlines()[1]
    assert "fp16, pruned 2:4" in row
    assert "unpruned fp16: 1.00× size, task -1.2 %" in row


def test_an_engine_without_figures_is_shown_with_dashes(run: Run, stub: StubFarm) -> None:
    stub.add(rtx_plan(), accuracy={"cosine_mean": 1.0, "top1_agreement": None, "task": None})
    assert re.search(
        r"int8 +– +– +– +\S+ kB +– +– +– +1\.0000 +– +–", run("engines", "digits", "--wide").stdout
    )


def test_engines_of_an_unknown_model_name_those_that_are_there(run: Run) -> None:
    result = run("engines", "nope")
    assert result.exit_code == exits.NOT_FOUND
    assert "hint: the models are digits" in result.stderr


def test_models_and_their_versions_are_listed(run: Run) -> None:
    assert re.search(r"digits +v1 +0", run("models").stdout)
    assert "sha256:" + "a" * 64 in run("models", "digits", "--wide").stdout
    assert json.loads(run("models", "--json").stdout)[0]["name"] == "digits"


def test_an_empty_list_does_not_point_at_the_command_that_was_just_run(
    run: Run, stub: StubFarm
) -> None:
    assert "farm builds --model digits\n" in run("engines", "digits").stdout
    assert "list all: farm engines digits\n" in run("engines", "digits", "--gpu", "cpu").stdout
    stub.builds.clear()
    assert "submit one: farm submit" in run("builds").stdout
    assert (
        run("builds", "--state", "failed").stdout == "no matching builds; list all: farm builds\n"
    )
