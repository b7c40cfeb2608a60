"""Quantised engines on the command line: the gate's figures, a line on each, and pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from farm.cli import exits
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run

ACCURACY = {
    "data": "evaluation",
    "samples": 450,
    "top1_agreement": 0.985,
    "top1_interval": [0.971, 0.993],
    "task": {
        "metric": "top1",
        "source": 0.978,
        "engine": 0.973,
        "drop": 0.005,
        "drop_interval": [-0.002, 0.013],
    },
}
BRIEF = {
    "method": "auto",
    "samples": 512,
    "share": 0.967,
    "worst_snr_db": 9.04,
    "worst_tensor": "/model/encoder/layers.11/attention/output/Add_output_0",
}
KNOWN: dict[str, Any] = {
    "method": "auto",
    "snr_db": {"pooled": 9.0, "relu_3": 31.25},
    "histograms": {
        "tensors": [
            {"tensor": "pooled", "largest": 8.0, "range": 4.0, "method": "mse"},
            {"tensor": "relu_3", "largest": 2.0},
        ]
    },
}


def test_a_models_quantised_engines_show_the_gates_figures_within_80_columns(
    run: Run, stub: StubFarm
) -> None:
    row = stub.add(rtx_plan(), accuracy=ACCURACY, quantization=BRIEF)
    shown = run("show", "digits").stdout
    lines = [one.rstrip() for one in shown.splitlines()]
    at = lines.index(f"v1 int8 for tensorrt-rtx:sm_89: passed, {row['id']}")
    assert lines[at + 1 : at + 4] == [
        "  top1 97.3 % (source 97.8 %), drop -0.2 to 1.3 points",
        "  agreement 98.5 % (97.1–99.3), judged on 450 evaluation samples",
        "  97 % int8 by auto, 512 samples; worst layer 9.0 dB: …ntion/output/Add_output_0",
    ]
    assert max(map(len, lines)) <= 80
    told = json.loads(run("show", "digits", "--json").stdout)["engines"][0]
    assert told["quantization"]["worst_tensor"] == BRIEF["worst_tensor"]
    assert told["accuracy"]["task"]["drop_interval"] == [-0.002, 0.013]


@pytest.mark.parametrize(
    ("brief", "line"),
    [
        (
            {"method": "dynamic ranges", "share": 0.4, "reason": "not measured: at run time"},
            "40 % int8 by dynamic ranges; signal to noise not measured: at run time",
        ),
        ({}, "partly int8; signal to noise unknown"),
        (
            {"method": "as it came", "share": 1.0, "reason": "not measured: it came so"},
            "100 % int8, as it came; signal to noise not measured: it came so",
        ),
    ],
)
def test_what_was_not_measured_says_why(
    run: Run, stub: StubFarm, brief: dict[str, Any], line: str
) -> None:
    engine = stub.add(rtx_plan(), quantization=brief)["id"]
    assert f"{line}\n" in run("inspect", engine).stdout
    shown = " ".join(run("show", "digits").stdout.split())
    assert line in shown


def test_an_engine_that_is_not_quantised_has_no_line_on_it(run: Run, stub: StubFarm) -> None:
    stub.add(rtx_plan(), precision="fp16", accuracy=ACCURACY)
    assert "agreement" not in run("show", "digits").stdout


def test_inspect_shows_the_figures_the_ranges_and_all_of_it_as_json(
    run: Run, stub: StubFarm
) -> None:
    stub.quantization = KNOWN
    engine = stub.add(rtx_plan(), accuracy=ACCURACY, quantization=BRIEF)["id"]
    shown = run("inspect", engine).stdout
    assert "drop -0.2 to 1.3 points\n" in shown
    assert "agreement 98.5 % (97.1–99.3), judged on 450 evaluation samples\n" in shown
    assert "worst layer 9.0 dB: …ntion/output/Add_output_0\n" in shown
    assert re.search(r"9\.0 dB +pooled +4 by mse *\n31\.2 dB +relu_3 +in floats", shown)
    told = json.loads(run("inspect", engine, "--json").stdout)
    assert told["engine"]["accuracy"]["top1_interval"] == [0.971, 0.993]
    assert told["quantization"]["snr_db"] == KNOWN["snr_db"]
    assert len(told["layers"]) == 50


def test_inspect_says_why_there_are_no_ranges(run: Run, stub: StubFarm) -> None:
    stub.quantization = {"snr_db": {"a": 3.0}, "histograms_reason": "unknown: none were kept"}
    assert "ranges unknown: none were kept\n" in run("inspect", stub.add(rtx_plan())["id"]).stdout


def test_a_mean_cosine_has_its_interval(run: Run, stub: StubFarm) -> None:
    accuracy = {"cosine_mean": 0.9991, "cosine_interval": [0.9989, 0.9993], "samples": 8}
    shown = run("inspect", stub.add(rtx_plan(), accuracy=accuracy)["id"]).stdout
    assert "cosine 0.9991 (0.9989–0.9993), judged on 8 ? samples\n" in shown


def test_inspect_writes_a_picture(run: Run, stub: StubFarm, tmp_path: Path) -> None:
    stub.quantization = KNOWN
    engine, file = stub.add(rtx_plan())["id"], tmp_path / "int8.svg"
    assert run("inspect", engine, "--picture", file).stdout == f"{file}\n"
    assert file.read_text() == "<svg></svg>"
    told = run("inspect", engine, "--picture", file, "--tensor", "a b&c", "--json").stdout
    assert json.loads(told) == {"picture": str(file)}
    assert file.read_text() == "<svg>tensor=a+b%26c</svg>"


def test_a_picture_that_cannot_be_had_leaves_no_file(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    engine, file = stub.add(rtx_plan())["id"], tmp_path / "int8.svg"
    result = run("inspect", engine, "--picture", file)
    assert result.exit_code == exits.NOT_FOUND
    assert not file.exists()
    result = run("inspect", engine, "--tensor", "a")
    assert result.exit_code == exits.USAGE
    assert "pass --picture FILE.svg with it" in result.output
