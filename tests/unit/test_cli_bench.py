"""Benches on the command line and in Python: a file or a model, one table, one winner."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from farm.cli import exits
from farm.client import Farm
from farm.errors import InvalidRequest, NotFound
from farm.testing import documents
from farm.testing.documents import BENCH, BUILD
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run


def test_a_file_is_submitted_followed_and_shown_as_a_table_with_its_winner(
    run: Run, stub: StubFarm, model: Path
) -> None:
    left_out = BENCH["left_out"]
    stub.coming = [documents.build(bench={"goal": "latency", "batch": 8}, left_out=left_out)]
    result = run("bench", model, "--gpu", "h100", "--goal", "latency", "--batch", 8)
    assert result.exit_code == exits.OK, result.output
    [sent] = stub.submitted
    assert sent["bench"] == {"goal": "latency", "batch": 8, "wait_for_workers": False}
    assert (sent["precisions"], sent["targets"]) == ([], ["h100"])
    out = result.stdout
    assert "left out: tensorrt:h100 in fp32, fp16: no online worker can build it" in out
    assert out.count("left out:") == 1
    assert "build digits:int8@sm_89  running (on w1)" in out
    assert "digits v1 for h100, ranked by latency at batch 8" in out
    assert re.search(r"\* +aotinductor:sm_90 +fp16 +ready +0\.412 ms +99\.8 % +40120 *\n", out)
    assert re.search(r"2 +onnxruntime:h100 +fp16 +ready +0\.655 ms", out)
    assert "onnxruntime:h100 bf16: other processes used 41% of the CPU" in out
    assert re.search(r"fp8 +doubtful", out)
    assert "aotinductor:sm_90 fp8: its error is 0.9\n" in out
    assert "aotinductor:sm_90 int8: no kernel [for c1]\n" in out
    assert "at line 7" not in out
    assert "best: fp16 by aotinductor is the fastest" in out
    assert "farm pull digits --gpu h100 --version 1\n" in out


def test_a_model_that_the_farm_has_is_benched_with_what_is_given(run: Run, stub: StubFarm) -> None:
    result = run(
        "bench", "digits", "--gpu", "h100", "--precision", "fp16,int8", "--all", "--version", 1,
        "--profile", "image=1x3:8x3:64x3", "--label", "team=vision",
    )  # fmt: skip
    assert result.exit_code == exits.OK, result.output
    assert stub.submitted == []
    assert stub.benched == [
        {
            "wait_for_workers": True,
            "targets": ["h100"],
            "version": 1,
            "precisions": ["fp16", "int8"],
            "profiles": [{"image": {"min": [1, 3], "opt": [8, 3], "max": [64, 3]}}],
            "priority": 5,
            "labels": {"team": "vision"},
        }
    ]


def test_no_build_only_shows(run: Run, stub: StubFarm) -> None:
    result = run("bench", "digits", "--gpu", "h100", "--no-build", "--goal", "throughput")
    assert result.exit_code == exits.OK, result.output
    assert (stub.submitted, stub.benched) == ([], [])
    assert stub.asked("GET", "/v1/models/digits/bench?gpu=h100&goal=throughput")
    assert "left out: tensorrt:h100" in result.stdout


def test_a_winner_by_a_goal_that_pulls_do_not_follow_is_pulled_by_its_names(
    run: Run, stub: StubFarm
) -> None:
    stub.bench["goal"] = {"aim": "throughput", "batch": None, "followed": False}
    out = run("bench", "digits", "--gpu", "h100", "--no-build").stdout
    assert "ranked by throughput at any batch (pulls follow another goal)" in out
    assert "--version 1 --runtime aotinductor --precision fp16" in out


def test_json_is_one_document_with_the_build(run: Run, stub: StubFarm) -> None:
    result = run("bench", "digits", "--gpu", "h100", "--json")
    document = json.loads(result.stdout)
    assert (document["build"], document["winner"]) == (BUILD, BENCH["winner"])
    assert [row["precision"] for row in document["rows"]] == ["fp16", "fp16", "bf16", "fp8", "int8"]
    shown = json.loads(run("bench", "digits", "--gpu", "h100", "--no-build", "--json").stdout)
    assert shown["build"] is None


@pytest.mark.parametrize(
    ("rows", "code"),
    [(BENCH["rows"][3:4], exits.DOUBTFUL), (BENCH["rows"][4:], exits.FAILED), ([], exits.FAILED)],
)
def test_a_bench_without_a_winner_has_an_exit_code(
    run: Run, stub: StubFarm, rows: list[dict[str, object]], code: int
) -> None:
    stub.bench |= {"rows": rows, "winner": None, "why": "no engine passed its gates"}
    result = run("bench", "digits", "--gpu", "h100")
    assert result.exit_code == code
    assert "no engine passed its gates" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["digits"], exits.USAGE, "no GPU given"),
        (["nothing", "--gpu", "h100"], exits.NOT_FOUND, "there is no model 'nothing'"),
        (["lost.pt2", "--gpu", "h100", "--name", "x"], exits.USAGE, "there is no file lost.pt2"),
        (["digits", "--gpu", "h100", "--fix", "sr=1"], exits.USAGE, "keeps its fixed inputs"),
        (
            ["digits", "--gpu", "h100", "--goal", "speed"],
            exits.USAGE,
            "goal: takes latency or throughput, not 'speed'",
        ),
    ],
)
def test_what_cannot_be_benched_is_an_error(
    run: Run, words: list[str], code: int, said: str
) -> None:
    result = run("bench", *words)
    assert result.exit_code == code
    assert said in result.stderr


def test_a_files_version_and_no_build_are_errors(run: Run, model: Path, stub: StubFarm) -> None:
    for words, said in ((["--version", 1], "omit --version"), (["--no-build"], "model's name")):
        result = run("bench", model, "--gpu", "h100", *words)
        assert result.exit_code == exits.USAGE
        assert said in result.stderr
    assert stub.submitted == []


def test_python_benches_a_file_and_returns_the_table(
    farm: Farm, stub: StubFarm, model: Path
) -> None:
    found = farm.bench(model, "h100", goal="throughput", name="my-digits")
    assert found.winner == BENCH["winner"]
    assert stub.submitted[0]["model"] == "my-digits"
    assert stub.asked("GET", "/v1/models/digits/bench?gpu=h100&version=1")


def test_python_returns_the_table_though_some_engines_failed(farm: Farm, stub: StubFarm) -> None:
    stub.coming = [documents.failed_build()]
    assert farm.bench("digits", "h100").rows[-1].error is not None


def test_python_shows_without_building(farm: Farm, stub: StubFarm) -> None:
    assert farm.bench("digits", "h100", build=False, goal="latency").version == 1
    assert stub.benched == []
    with pytest.raises(NotFound):
        farm.bench("nothing", "h100", build=False)


def test_python_refuses_an_unknown_goal_before_anything_is_sent(
    farm: Farm, stub: StubFarm, model: Path
) -> None:
    for what in (model, "digits"):
        with pytest.raises(InvalidRequest, match="goal"):
            farm.bench(what, "h100", goal="speed")
    assert (stub.submitted, stub.benched) == ([], [])


def test_the_wide_table_has_every_figure_and_note_in_its_row(run: Run) -> None:
    out = run("bench", "digits", "--gpu", "h100", "--no-build", "--wide").stdout
    assert re.search(
        r"\* +aotinductor:sm_90 +fp16 +ready +0\.412 ms \(batch 8, CUDA graph\) +99\.8 % "
        r"+40120 \(batch 64\) +51\.2 MB +1\.07×",
        out,
    )
    assert re.search(r"int8 +failed.*no kernel \[for c1\]", out)
