"""``farm sync``: what is in the folder, and what Triton is told, when."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm.cli import exits
from farm.client import Farm
from farm.client.sync import Sync, Synced, Wish
from farm.client.triton import locked
from farm.client.triton_server import TritonServer
from farm.errors import (
    Conflict,
    DigestMismatch,
    FarmError,
    InvalidRequest,
    TritonLoadFailed,
    TritonUnsupported,
    Unavailable,
)
from farm.testing.documents import rtx_plan
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run

TENSORS: dict[str, Any] = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
}
T4: dict[str, Any] = {"gpu": "t4", "runtime": "tensorrt", "precision": "fp16", **TENSORS}


@dataclass
class FakeTriton:
    """Loads what the repository's config names, as Triton does in its explicit mode."""

    repository: Path
    refuses: str | None = None
    is_down: bool = False
    ready: set[str] = field(default_factory=set)
    loads: int = 0
    #: The versions in the folder at each load.
    there: list[set[str]] = field(default_factory=list)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if self.is_down:
            raise httpx2.ConnectError("refused")
        path = request.url.path
        assert "authorization" not in request.headers
        if path.endswith("/ready"):
            return httpx2.Response(200 if path.split("/")[5] in self.ready else 400)
        assert path == "/v2/repository/models/digits/load"
        self.loads += 1
        self.there.append(versions(self.repository))
        if self.refuses is not None:
            return httpx2.Response(400, json={"error": self.refuses})
        config = (self.repository / "digits/config.pbtxt").read_text()
        self.ready = {config.partition("versions: [")[2].partition("]")[0]}
        return httpx2.Response(200)

    @property
    def server(self) -> TritonServer:
        return TritonServer("http://triton:8000", transport=httpx2.MockTransport(self.answer))


def versions(repository: Path) -> set[str]:
    return {path.name for path in (repository / "digits").iterdir() if path.is_dir()}


def contents(repository: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file() and not path.name.startswith(".farm")
    }


Once = Callable[..., Synced]


@pytest.fixture
def triton(tmp_path: Path) -> FakeTriton:
    return FakeTriton(tmp_path / "models")


@pytest.fixture
def once(farm: Farm, triton: FakeTriton) -> Once:
    def once_(*gpus: str, told: bool = True, **more: Any) -> Synced:
        wish = Wish(model="digits", gpus=gpus or ["t4"], **more)
        return Sync(farm.http, wish, triton.repository, triton.server if told else None).once()

    return once_


@pytest.fixture
def stub(stub: StubFarm) -> StubFarm:
    stub.add(b"one", id="E1", **T4)
    return stub


def test_a_first_look_writes_the_model_and_loads_it(triton: FakeTriton, once: Once) -> None:
    made = once()
    assert (made.version, made.before, made.changed, made.loaded) == (1, None, True, True)
    assert made.engines == ["E1"]
    assert set(contents(triton.repository)) == {
        "digits/config.pbtxt",
        "digits/1/E1.plan",
        "digits/1/E1.plan.json",
    }
    assert triton.ready == {"1"}


def test_a_second_look_changes_nothing(triton: FakeTriton, once: Once) -> None:
    once()
    made = once()
    assert (made.changed, made.loaded, made.removed, triton.loads) == (False, False, [], 1)


def test_the_old_version_goes_once_the_new_one_is_loaded(
    stub: StubFarm, triton: FakeTriton, once: Once
) -> None:
    once()
    stub.add(b"two", id="E2", **T4 | {"version": 2})
    made = once()
    assert (made.version, made.before, made.removed) == (2, 1, ["1"])
    assert triton.there == [{"1"}, {"1", "2"}]
    assert versions(triton.repository) == {"2"}
    del stub.engines["E2"]
    back = once()
    assert (back.version, back.before) == (1, 2)
    assert versions(triton.repository) == {"1"}


def test_another_engine_of_the_same_version_is_loaded_beside_the_first(
    stub: StubFarm, triton: FakeTriton, once: Once
) -> None:
    once()
    stub.engines["E1"][0]["yanked"] = "slow"
    stub.add(b"better", id="E2", **T4)
    made = once()
    assert (made.changed, made.loaded, made.engines) == (True, True, ["E2"])
    assert made.removed == ["1/E1.plan", "1/E1.plan.json"]
    assert (
        'default_model_filename: "E2.plan"'
        in contents(triton.repository)["digits/config.pbtxt"].decode()
    )


@pytest.mark.parametrize("version", [1, 2], ids=["another engine", "another version"])
def test_what_triton_refuses_leaves_the_folder_as_it_was(
    stub: StubFarm, triton: FakeTriton, once: Once, version: int
) -> None:
    once()
    before = contents(triton.repository)
    stub.engines["E1"][0]["yanked"] = "slow"
    stub.add(b"worse", id="E2", **T4 | {"version": version})
    triton.refuses = "load failed for model 'digits': no\x1b[31m memory;\n"
    with pytest.raises(TritonLoadFailed, match=r"no.*memory") as refused:
        once()
    assert "\x1b" not in refused.value.detail
    assert contents(triton.repository) == before
    assert triton.ready == {"1"}
    triton.refuses = None
    assert once().engines == ["E2"]


def test_a_first_model_that_triton_refuses_leaves_nothing(triton: FakeTriton, once: Once) -> None:
    triton.refuses = "no"
    with pytest.raises(TritonLoadFailed):
        once()
    assert contents(triton.repository) == {}


def test_a_triton_that_answers_nothing_is_asked_again_and_nothing_is_removed(
    stub: StubFarm, triton: FakeTriton, once: Once
) -> None:
    once()
    stub.add(b"two", id="E2", **T4 | {"version": 2})
    triton.is_down = True
    with pytest.raises(Unavailable, match="can't be reached"):
        once()
    assert versions(triton.repository) == {"1", "2"}
    triton.is_down = False
    made = once()
    assert (made.version, made.changed, made.loaded, made.removed) == (2, False, True, ["1"])


def test_a_version_that_was_never_finished_goes_too(triton: FakeTriton, once: Once) -> None:
    with locked(triton.repository / "digits") as left:
        for name in (".9.partial", "9", "notes", "9a"):
            (left / name).mkdir()
    assert once().removed == [".9.partial", "9"]
    assert versions(triton.repository) == {"1", "9a", "notes"}


def test_a_triton_that_was_restarted_is_told_again(triton: FakeTriton, once: Once) -> None:
    once()
    triton.ready = set()
    assert once().loaded
    assert triton.ready == {"1"}


def test_without_a_server_the_version_before_stays_for_one_that_polls(
    stub: StubFarm, triton: FakeTriton, once: Once
) -> None:
    once(told=False)
    for number in (2, 3):
        stub.add(b"x" * number, id=f"E{number}", **T4 | {"version": number})
        made = once(told=False)
        assert (made.changed, made.loaded) == (True, False)
    assert versions(triton.repository) == {"2", "3"}
    assert made.removed == ["1"]
    assert once(told=False).removed == []
    assert triton.loads == 0


def test_a_triton_that_is_not_in_explicit_mode_is_said_how_to_be(
    triton: FakeTriton, once: Once
) -> None:
    triton.refuses = "explicit model load / unload is not allowed if polling is enabled"
    with pytest.raises(TritonLoadFailed) as refused:
        once()
    assert "--model-control-mode=explicit" in str(refused.value.hint)


def test_several_gpus_are_served_by_one_model(
    stub: StubFarm, triton: FakeTriton, once: Once
) -> None:
    stub.add(b"two", id="E2", **T4 | {"gpu": "l4"})
    assert once("t4", "l4").engines == ["E1", "E2"]
    assert b"cc_model_filenames" in contents(triton.repository)["digits/config.pbtxt"]


def test_engines_that_cannot_be_one_model_are_refused(stub: StubFarm, once: Once) -> None:
    stub.add(b"onnx", id="E2", **T4 | {"gpu": "cpu", "runtime": "onnxruntime"})
    with pytest.raises(InvalidRequest, match="can't serve all of these") as refused:
        once("t4", "cpu")
    assert "a repository for each GPU" in str(refused.value.hint)


def test_an_engine_that_triton_never_loads_is_refused(stub: StubFarm, once: Once) -> None:
    stub.add(rtx_plan(), id="E2")
    with pytest.raises(TritonUnsupported, match="TensorRT-RTX"):
        once("sm_89")


@pytest.mark.parametrize("name", ["config.pbtxt", "3/model.onnx"])
def test_somebody_elses_model_is_left_alone(
    triton: FakeTriton, once: Once, farm: Farm, name: str
) -> None:
    theirs = triton.repository / "digits" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    for _ in range(2):  # the first look leaves nothing that the second takes for its own
        with pytest.raises(Conflict, match="isn't the farm's"):
            once()
        with pytest.raises(Conflict, match="isn't the farm's"):
            farm.pull_triton([farm.match("digits", "t4")], triton.repository)
    assert contents(triton.repository) == {f"digits/{name}": b"theirs"}


def test_what_was_written_before_a_crash_is_taken_for_ones_own(
    triton: FakeTriton, once: Once
) -> None:
    once()
    (triton.repository / "digits/config.pbtxt").unlink()
    assert once().changed
    assert "digits/config.pbtxt" in contents(triton.repository)


def test_another_model_than_the_one_asked_for_is_not_touched(
    stub: StubFarm, triton: FakeTriton, once: Once
) -> None:
    once()
    before = contents(triton.repository)
    stub.model = stub.engines["E1"][0]["model"] = "cats"
    with pytest.raises(FarmError):
        once()
    stub.model = "digits"  # it answers for digits with an engine of cats
    with pytest.raises(DigestMismatch, match="whose model is cats, not digits"):
        once()
    assert contents(triton.repository) == before


def test_two_keepers_of_a_model_are_one_too_many(triton: FakeTriton, once: Once) -> None:
    with locked(triton.repository / "digits"), pytest.raises(Conflict, match="farm sync"):
        once()


def test_a_bucket_is_refused(run: Run) -> None:
    result = run("sync", "digits@prod", "--repository", "s3://models", "--gpu", "t4")
    assert result.exit_code == exits.USAGE
    assert "folders alone" in result.stderr


def test_the_command_says_what_it_did(stub: StubFarm, run: Run, tmp_path: Path) -> None:
    words = ("sync", "digits", "--repository", tmp_path / "models", "--gpu", "t4")
    made = json.loads(run(*words, "--json").stdout)
    assert (made["name"], made["version"], made["changed"]) == ("digits", 1, True)
    assert run(*words).stdout == "digits is v1\n"
    stub.add(b"two", id="E2", **T4 | {"version": 2})
    assert run(*words).stdout.startswith("digits is now v2, before v1: E2\n")


def test_a_triton_that_is_away_is_its_own_exit_code(run: Run, tmp_path: Path) -> None:
    words = ("sync", "digits", "--repository", tmp_path / "models", "--gpu", "t4")
    result = run(*words, "--triton-url", "http://127.0.0.1:9")
    assert result.exit_code == exits.UNAVAILABLE
    assert "Triton at http://127.0.0.1:9 can't be reached" in result.stderr
