"""``farm pull ENGINE_ID``: exactly one engine, and how to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.cli import exits, show
from farm.cli.pull_by_id import misfit
from farm.machine import gpus
from farm.machine.gpus import Gpu
from farm.schemas.engines import EngineView
from farm.specs.quoting import quoted
from farm.testing.documents import BUILD, rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run
from tests.unit.test_cli_pull import machine

ID = "01m7y8mbznssegkq"
CPU_ID = "01m7y8mbznssegkr"
UNKNOWN = "01m7y8mbzzzzzzzz"
NAME = "digits-v1-int8-sm_89.engine"
DOUBT = "the class is the source's in 19.0 %"


@pytest.fixture
def stub(stub: StubFarm) -> StubFarm:
    stub.add(rtx_plan())
    stub.add(b"onnx", id=CPU_ID, gpu="cpu", runtime="onnxruntime", runtime_version="1.31.1")
    return stub


@pytest.mark.parametrize("words", [[ID], ["--engine", ID]])
def test_an_id_pulls_that_engine_whatever_the_gpu_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    machine(monkeypatch, ("NVIDIA H200", (9, 0)))
    result = run("pull", *words, "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert (tmp_path / NAME).read_bytes() == rtx_plan()
    assert "  why: requested by its id\n" in result.stdout
    assert result.stderr == "note: it is for sm_89, and this machine has NVIDIA H200\n"


@pytest.mark.parametrize(
    ("there", "engine", "note"),
    [
        ([("NVIDIA GeForce RTX 4090", (8, 9))], ID, None),
        ([("NVIDIA H200", (9, 0)), ("NVIDIA L4", (8, 9))], ID, None),
        ([], ID, "it is for sm_89: found no NVIDIA GPU on this machine: Driver Not Loaded"),
        ([], CPU_ID, None),
    ],
)
def test_json_says_whether_it_is_for_this_machine(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: list[tuple[str, tuple[int, int]]],
    engine: str,
    note: str | None,
) -> None:
    machine(monkeypatch, *there)
    result = run("pull", engine, "-o", tmp_path, "--json")
    assert result.exit_code == exits.OK, result.output
    [pulled] = json.loads(result.stdout)
    assert (pulled["engine"]["id"], pulled["note"]) == (engine, note)
    assert Path(pulled["manifest"]).is_file()


@pytest.mark.parametrize(
    ("gpu", "note"),
    [
        ("sm_90", None),
        ("h200-1g.18gb", None),
        ("h200", "it is for h200, and this machine has NVIDIA H200 MIG 1g.18gb"),
    ],
)
def test_a_slice_takes_its_own_engines_and_its_compute_capabilitys(
    stub: StubFarm, monkeypatch: pytest.MonkeyPatch, gpu: str, note: str | None
) -> None:
    part = Gpu(
        uuid="MIG-1",
        name="NVIDIA H200 MIG 1g.18gb",
        compute_capability="sm_90",
        memory_bytes=18 << 30,
        is_slice=True,
    )
    monkeypatch.setattr(gpus, "look", lambda: [part])
    engine = EngineView.model_validate(stub.add(b"plan", gpu=gpu, runtime="tensorrt"))
    assert misfit(engine) == note


@pytest.mark.parametrize(
    "option",
    [
        ["--gpu", "sm_89"],
        ["--precision", "int8"],
        ["--runtime", "tensorrt-rtx"],
        ["--version", "1"],
        ["--prune", "none"],
        ["--all-targets"],
    ],
)
def test_options_that_choose_are_refused_beside_an_id(
    run: Run, tmp_path: Path, option: list[str]
) -> None:
    result = run("pull", ID, *option, "-o", tmp_path)
    assert result.exit_code == exits.USAGE
    assert f"an engine's id says which engines are pulled: it doesn't go with {option[0]}" in (
        result.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_doubtful_engine_is_pulled_by_its_id_only_if_it_is_accepted(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.add(rtx_plan(), state="doubtful", doubts=[DOUBT])
    refused = run("pull", ID, "-o", tmp_path)
    assert refused.exit_code == exits.NOT_FOUND
    assert f"engine {ID} (int8 of digits v1 for tensorrt-rtx:sm_89) is doubtful: {DOUBT}" in (
        refused.stderr
    )
    assert "--doubtful" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    accepted = run("pull", ID, "--doubtful", "-o", tmp_path)
    assert accepted.exit_code == exits.OK, accepted.output
    assert f"doubtful, as requested: {DOUBT}" in accepted.stdout


def test_a_model_comes_before_an_engine_and_a_note_says_so(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.model = stub.engines[CPU_ID][0]["model"] = ID
    result = run("pull", ID, "--gpu", "cpu", "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".onnx", ".json"]
    assert result.stderr == (
        f"note: {ID} is a model; the engine with this id: farm pull --engine {ID}\n"
    )
    assert run("pull", "--engine", ID, "-o", tmp_path).exit_code == exits.OK
    assert (tmp_path / NAME).is_file()


def test_a_model_whose_name_only_looks_like_an_id_is_pulled_without_a_note(
    run: Run, stub: StubFarm, tmp_path: Path
) -> None:
    stub.model = stub.engines[CPU_ID][0]["model"] = "resnet50resnet50"
    result = run("pull", stub.model, "--gpu", "cpu", "-o", tmp_path)
    assert (result.exit_code, result.stderr) == (exits.OK, "")


def test_what_is_neither_a_model_nor_an_engine_exits_3(run: Run) -> None:
    result = run("pull", UNKNOWN)
    assert result.exit_code == exits.NOT_FOUND
    assert f"there is neither a model nor an engine '{UNKNOWN}'" in result.stderr
    assert "farm models" in result.stderr
    assert run("pull", "--engine", UNKNOWN).exit_code == exits.NOT_FOUND


def test_a_builds_id_is_answered_with_how_to_pull_a_build(run: Run) -> None:
    result = run("pull", BUILD)
    assert result.exit_code == exits.NOT_FOUND
    assert f"it is a build's id: farm pull --build {BUILD}" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to pull is named"),
        (["digits", "--engine", ID], "MODEL and --engine name different things"),
        (["--engine", ID, "--build", BUILD], "--engine and --build name different things"),
        (["--build", BUILD, "--all-targets"], "--all-targets doesn't go with --build"),
        (["digits", "--all-targets", "--gpu", "cpu"], "it doesn't go with --gpu"),
        (["--build", BUILD, "--gpu", "cpu"], "it doesn't go with --gpu"),
    ],
)
def test_a_pull_of_nothing_or_of_several_things_is_refused(
    run: Run, words: list[str], said: str
) -> None:
    result = run("pull", *words)
    assert result.exit_code == exits.USAGE
    assert said in result.stderr
    assert "hint: " in result.stderr


# How to run it.


def test_on_a_terminal_a_pull_prints_how_to_run_the_engine_where_it_lies(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "on_terminal", lambda: True)
    result = run("pull", CPU_ID, "-o", tmp_path)
    path = tmp_path / "digits-v1-int8-cpu.onnx"
    _, _, shown = result.stdout.partition("To run it in Python (")
    said, _, source = shown.partition(":\n\n")
    assert said.replace("\n", "") == f"{path}.json says it too)"
    compile(source, "load", "exec")
    where = quoted(str(path))
    assert f"onnxruntime.InferenceSession({where}, providers=providers)" in source
    manifest = json.loads(Path(f"{path}.json").read_text())
    assert manifest["load"].strip().replace(quoted(path.name), where) == source.strip()


def test_several_engines_are_told_where_each_says_how_to_run_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "on_terminal", lambda: True)
    result = run("pull", "digits", "--gpu", "sm_89,cpu", "-o", tmp_path)
    assert f"load in its manifest, as in {tmp_path / NAME}.json" in result.stdout
    assert "import" not in result.stdout


def test_off_a_terminal_a_pull_does_not_say_how_to_run_it(run: Run, tmp_path: Path) -> None:
    assert "import" not in run("pull", CPU_ID, "-o", tmp_path).stdout
    [pulled] = json.loads(run("pull", CPU_ID, "-o", tmp_path, "--json").stdout)
    assert quoted(pulled["path"]) in pulled["load"]


def test_a_quiet_pull_prints_the_path_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "on_terminal", lambda: True)
    assert run("pull", CPU_ID, "-q", "-o", tmp_path).stdout == (
        f"{tmp_path / 'digits-v1-int8-cpu.onnx'}\n"
    )


def test_an_earlier_farms_manifest_says_nothing_about_running_and_that_is_fine(
    run: Run, stub: StubFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "on_terminal", lambda: True)
    stub.load = False
    result = run("pull", CPU_ID, "-o", tmp_path)
    assert result.exit_code == exits.OK, result.output
    assert "To run it" not in result.stdout
