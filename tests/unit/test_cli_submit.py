"""``farm submit`` and ``farm trtexec``: what is sent, and what is refused before anything is."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from farm.cli import exits, options
from farm.client import Build
from farm.errors import InvalidRequest
from farm.schemas.events import Event
from farm.specs.preprocess import PRESETS, Preprocess
from farm.testing import documents
from farm.testing.documents import BUILD
from farm.testing.stub_farm import StubFarm
from tests.arrays import npz
from tests.tars import tarred
from tests.unit.conftest import Run


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
    assert "in its own way: --iterations" in result.stdout
    found = json.loads(run("import-trtexec", command, "--json").stdout)
    assert (found["source"], found["precisions"], found["options"]) == (
        "m.onnx",
        ["fp16"],
        {"tf32": False},
    )
    assert run("import-trtexec", "trtexec --useDLACore=0 --onnx=m.onnx").exit_code == exits.USAGE


def test_submit_says_what_was_chosen_and_what_comes_next(
    run: Run, stub: StubFarm, model: Path
) -> None:
    stub.coming.append(documents.build("queued"))
    result = run("submit", model, "--gpu", "rtx-4090", "--precision", "int8")
    assert result.exit_code == exits.OK, result.output
    assert f"build {BUILD} of digits v1" in result.stdout
    assert re.search(r"rtx-4090 +tensorrt-rtx:sm_89 +int8 +first of tensorrt", result.stdout)
    assert "2 jobs, 1 of them reused" in result.stdout
    assert f"farm watch {BUILD}\n" in result.stdout
    assert "farm pull digits@1 --gpu sm_89 -o engines\n" in result.stdout


def test_a_submission_of_what_was_built_before_is_to_be_pulled_not_watched(
    run: Run, stub: StubFarm, model: Path
) -> None:
    said = run("submit", model, "--gpu", "rtx-4090", "--precision", "int8").stdout
    assert f"build {BUILD} of digits v1: succeeded\n" in said
    next_steps = [line.split() for line in said.splitlines() if line.startswith("  ")]
    assert next_steps == [
        f"on the page: {stub.url}/builds/{BUILD}".split(),
        f"why jobs ran: farm explain {BUILD}".split(),
        "to pull it: farm pull digits@1 --gpu sm_89 -o engines".split(),
    ]


def test_submit_warns_of_what_was_chosen_by_default_once(
    stub: StubFarm, run: Run, model: Path
) -> None:
    [want] = documents.build()["engines"]
    warned = want | {"asked": "t4", "warning": "tensorrt-rtx:sm_75 isn't for Triton"}
    stub.coming.append(documents.build("queued", engines=[warned, warned]))
    result = run("submit", model, "--gpu", "t4", "--precision", "int8")
    assert result.stderr.count("warning: tensorrt-rtx:sm_75 isn't for Triton\n") == 1


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


@pytest.mark.parametrize(
    ("words", "targets", "precisions"),
    [
        ("--target t4:fp16 --target h100:fp8,int8", ["t4:fp16", "h100:fp8,int8"], []),
        ("--gpu h100:fp8,int8,cpu --precision fp32", ["h100:fp8,int8", "cpu"], ["fp32"]),
        ("--gpu a100:fp16,int8 --gpu h100:fp8,int8", ["a100:fp16,int8", "h100:fp8,int8"], []),
        ("--gpu t4:int8,cpu", ["t4:int8", "cpu"], ["fp16"]),
    ],
)
def test_a_target_may_name_precisions_of_its_own(
    run: Run, stub: StubFarm, model: Path, words: str, targets: list[str], precisions: list[str]
) -> None:
    result = run("submit", model, *words.split())
    assert result.exit_code == exits.OK, result.output
    assert stub.submitted[0]["targets"] == targets
    assert stub.submitted[0]["precisions"] == precisions


def test_what_is_left_out_is_told_with_the_reason(run: Run, stub: StubFarm, model: Path) -> None:
    why = "sm_75 has no bf16, which needs sm_80 or later; use fp16"
    stub.builds[BUILD]["left_out"] = [
        {"target": "tensorrt-rtx:sm_75", "precisions": ["bf16", "fp8"], "why": why}
    ]
    result = run("submit", model, "--gpu", "t4", "--skip-unsupported")
    assert stub.submitted[0]["skip_unsupported"] is True
    assert f"left out: tensorrt-rtx:sm_75 in bf16, fp8: {why}\n" in result.stdout


def test_a_wait_ends_with_its_timeout_and_the_build_goes_on(
    run: Run, stub: StubFarm, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def never(self: Build, *, after: int = 0) -> Iterator[Event]:
        over.wait()
        return iter(())

    monkeypatch.setattr(Build, "events", never)
    try:
        for more in ((), ("--json",)):
            result = run("submit", model, "--gpu", "t4", "--wait", "--timeout", "0s", *more)
            assert result.exit_code == exits.TIMED_OUT
            assert f"build {BUILD} hadn't ended after 0s; it continues" in result.stderr
            assert f"farm watch {BUILD}" in result.stderr
        assert json.loads(result.stdout)["id"] == BUILD
        assert json.loads(result.stderr)["code"] == "wait-timed-out"
        assert run("watch", BUILD, "--timeout", "0s").exit_code == exits.TIMED_OUT
    finally:
        over.set()
    assert not stub.asked("POST", f"/v1/builds/{BUILD}/cancel")


def test_a_timeout_needs_a_wait_and_a_duration(run: Run, stub: StubFarm, model: Path) -> None:
    alone = run("submit", model, "--gpu", "t4", "--timeout", "30m")
    assert (alone.exit_code, "add --wait" in alone.stderr) == (exits.USAGE, True)
    wrong = run("submit", model, "--gpu", "t4", "--wait", "--timeout", "soon")
    assert (wrong.exit_code, "'soon' isn't a duration" in wrong.stderr) == (exits.USAGE, True)
    assert not stub.submitted


def test_inputs_that_are_fixed_are_submitted_with_their_values(
    run: Run, stub: StubFarm, model: Path
) -> None:
    given = ("--fix", "sr=16000", "--fix", "size=[640, 480]", "--fix", "on=true")
    result = run("submit", model, "--gpu", "sm_89", *given)
    assert result.exit_code == exits.OK, result.output
    assert stub.submitted[-1]["fixed_inputs"] == {"sr": 16000, "size": [640, 480], "on": True}
    wrong = run("submit", model, "--gpu", "sm_89", "--fix", "sr=fast")
    assert wrong.exit_code == exits.USAGE
    assert "use NAME=VALUE" in wrong.stderr


def test_submit_waits_and_prints_one_document(run: Run, model: Path) -> None:
    result = run("submit", model, "--gpu", "sm_89", "--wait", "--json")
    assert result.exit_code == exits.OK
    assert json.loads(result.stdout)["state"] == "succeeded"


def test_submit_without_a_gpu_says_how_to_name_one(run: Run, model: Path) -> None:
    result = run("submit", model)
    assert result.exit_code == exits.USAGE
    assert result.stderr.startswith("error: no GPU given\nhint: pass one: --gpu sm_89")


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


def test_images_are_submitted_with_what_is_done_to_them(
    run: Run, stub: StubFarm, model: Path, tmp_path: Path
) -> None:
    images = tarred(tmp_path / "images.tar", {"1.png": b"an image"})
    arrays = npz(tmp_path / "labelled.npz", image=("<f4", (4, 3)), label=("<i8", (4,)))
    files = {"how.json": '{"resize": [32, 32], "std": 0.5}'}
    if find_spec("yaml"):  # which not every client has
        files["how.yaml"] = "resize: [32, 32]\nstd: 0.5\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    data = ["--calibration", str(images), "--evaluation", str(arrays)]
    asked = ["ImageNet", *(str(tmp_path / name) for name in files)]
    for how in asked:
        done = run("submit", str(model), "--gpu", "sm_89", *data, "--preprocess", how)
        assert done.exit_code == 0, done.output
    given = [one["calibration"]["preprocess"] for one in stub.submitted]
    assert given[0] == PRESETS["imagenet"].model_dump(mode="json")
    written = Preprocess(resize=(32, 32), std=(0.5,)).model_dump(mode="json")
    assert given[1:] == [written] * len(files)
    assert {one["evaluation"]["preprocess"] for one in stub.submitted} == {None}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("imagnet", "'imagnet' is neither a preset nor a file"),
        ("{resize: 3", "can't be read"),
        ("[3]", "holds no fields"),
        ('{"resise": 3}', "resise"),
        ('{"std": 0}', "std is divided by, so it can't be 0"),
        ('{"mean": [1, 2]}', "mean has 2 values, but rgb has 3 channels"),
        ('{"dtype": "uint8", "scale": 1}', "leave them out for the dtype uint8"),
        ('{"dtype": "float16", "scale": 1000}', "give values that float16 can't hold"),
        ('{"layout": "nhw"}', "it takes channels gray"),
    ],
)
def test_a_preprocess_that_is_none_is_explained(
    run: Run, model: Path, tmp_path: Path, how: str, told: str
) -> None:
    images = tarred(tmp_path / "images.tar", {"1.png": b"an image"})
    if how[0] in "{[":
        (tmp_path / "how.json").write_text(how)
        how = str(tmp_path / "how.json")
    done = run(
        "submit", str(model), "--gpu", "sm_89", "--calibration", str(images), "--preprocess", how
    )
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


def test_images_need_a_preprocess_and_a_preprocess_images(
    run: Run, model: Path, tmp_path: Path
) -> None:
    images = tarred(tmp_path / "images.tar", {"1.png": b"an image"})
    arrays = npz(tmp_path / "arrays.npz", image=("<f4", (4, 3)))
    submit = ["submit", str(model), "--gpu", "sm_89"]
    without = run(*submit, "--calibration", str(images))
    assert without.exit_code == 2
    assert "add preprocess (--preprocess imagenet" in " ".join(without.output.split())
    for data in ([], ["--calibration", str(arrays)]):
        done = run(*submit, *data, "--preprocess", "imagenet")
        assert done.exit_code == 2
        assert "preprocess is for images" in " ".join(done.output.split())


def test_a_calibration_cache_is_told_by_its_first_line(
    run: Run, stub: StubFarm, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "calibration.cache"
    submit = ["submit", str(model), "--gpu", "sm_89", "--calibration", str(cache)]
    cache.write_text("TRT-8501-EntropyCalibration2\nimage: 3c010a14\n")
    done = run(*submit)
    assert done.exit_code == 0, done.output
    assert [one["calibration"]["format"] for one in stub.submitted] == ["tensorrt-cache"]
    cache.write_text("TRT-8501-EntropyCalibration2\nimage: x\n")
    done = run(*submit)
    assert done.exit_code == 2
    assert "line 2 isn't a tensor's name and its scale" in " ".join(done.output.split())
