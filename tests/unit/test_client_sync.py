"""``farm sync``: what is in the folder or the bucket, and what Triton is told, when."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, Protocol

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


@dataclass(frozen=True)
class InFolder:
    """A repository that is a folder."""

    at: Path

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.at.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.at)): path.read_bytes() for path in found}

    def put(self, name: str, content: bytes) -> None:
        (self.at / name).parent.mkdir(parents=True, exist_ok=True)
        (self.at / name).write_bytes(content)

    def remove(self, name: str) -> None:
        (self.at / name).unlink()


class Place(Protocol):
    """A repository; ``at`` is what ``--repository`` is given."""

    at: Any

    def files(self) -> dict[str, bytes]: ...

    def put(self, name: str, content: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


@dataclass
class FakeTriton:
    """Loads what the repository's config names, as Triton does in its explicit mode."""

    repository: Place
    refuses: str | None = None
    is_down: bool = False
    ready: set[str] = field(default_factory=set)
    loads: int = 0
    #: The versions in the repository at each load.
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
        config = contents(self.repository)["digits/config.pbtxt"].decode()
        self.ready = {config.partition("versions: [")[2].partition("]")[0]}
        return httpx2.Response(200)

    @property
    def server(self) -> TritonServer:
        return TritonServer("http://triton:8000", transport=httpx2.MockTransport(self.answer))


def versions(repository: Place) -> set[str]:
    names = [name.split("/") for name in repository.files()]
    return {parts[1] for parts in names if len(parts) > 2}


def contents(repository: Place) -> dict[str, bytes]:
    files = repository.files()
    return {name: files[name] for name in files if "/.farm" not in name}


Once = Callable[..., Synced]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("obstore", reason="the client alone has no buckets")
    from tests import s3

    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.place(f"{tmp_path.name}/of-mine")


@pytest.fixture(params=["folder", "bucket"])
def triton(request: pytest.FixtureRequest, tmp_path: Path) -> FakeTriton:
    if request.param == "folder":
        return FakeTriton(InFolder(tmp_path / "models"))
    return FakeTriton(request.getfixturevalue("bucket"))


@pytest.fixture
def once(farm: Farm, triton: FakeTriton) -> Once:
    def once_(*gpus: str, told: bool = True, **more: Any) -> Synced:
        wish = Wish(model="digits", gpus=gpus or ["t4"], **more)
        server = triton.server if told else None
        return Sync(farm.http, wish, triton.repository.at, server).once()

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
def test_what_triton_refuses_leaves_the_repository_as_it_was(
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
    triton.repository.put("digits/.farm.lock", b"")
    for name in (".9.partial", "9", "9/deep", "notes", "9a"):
        triton.repository.put(f"digits/{name}/file", b"x")
    assert once().removed == [".9.partial", "9"]
    assert versions(triton.repository) == {"1", "9a", "notes"}


def test_an_empty_folder_of_another_version_goes_too(farm: Farm, tmp_path: Path) -> None:
    with locked(tmp_path / "digits") as left:
        (left / "9").mkdir()
    made = Sync(farm.http, Wish(model="digits", gpus=["t4"]), tmp_path).once()
    assert made.removed == ["9"]
    assert not (tmp_path / "digits/9").exists()


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
    triton.repository.put(f"digits/{name}", b"theirs")
    for _ in range(2):  # the first look leaves nothing that the second takes for its own
        with pytest.raises(Conflict, match="isn't the farm's"):
            once()
        if isinstance(triton.repository, InFolder):
            with pytest.raises(Conflict, match="isn't the farm's"):
                farm.pull_triton([farm.match("digits", "t4")], triton.repository.at)
    assert triton.repository.files().keys() == {f"digits/{name}"}
    assert contents(triton.repository) == {f"digits/{name}": b"theirs"}


def test_what_was_written_before_a_crash_is_taken_for_ones_own(
    triton: FakeTriton, once: Once
) -> None:
    once()
    triton.repository.remove("digits/config.pbtxt")
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


def test_two_keepers_of_a_folders_model_are_one_too_many(farm: Farm, tmp_path: Path) -> None:
    keeper = Sync(farm.http, Wish(model="digits", gpus=["t4"]), tmp_path)
    with locked(tmp_path / "digits"), pytest.raises(Conflict, match="farm sync"):
        keeper.once()


def test_a_bucket_holds_what_a_folder_does(
    stub: StubFarm, farm: Farm, bucket: Place, tmp_path: Path
) -> None:
    folder = InFolder(tmp_path / "models")
    both: list[tuple[Place, Sync]] = []
    for place in (folder, bucket):
        triton = FakeTriton(place)
        wish = Wish(model="digits", gpus=["t4"])
        both.append((place, Sync(farm.http, wish, place.at, triton.server)))
    for number in (2, 3):
        made = [keeper.once() for _, keeper in both]
        assert made[0] == made[1]
        assert folder.files() == bucket.files()
        stub.add(b"x" * number, id=f"E{number}", **T4 | {"version": number})


class Recorded:
    """What is written to and removed from a bucket, in order; a write may be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        obstore = pytest.importorskip("obstore")
        self.seen: list[str] = []
        self.fails_at = ""
        self._put, self._delete = obstore.put, obstore.delete
        monkeypatch.setattr(obstore, "put", self.put)
        monkeypatch.setattr(obstore, "delete", self.delete)

    def put(self, store: Any, path: str, content: Any) -> None:
        if path == self.fails_at:
            raise FileNotFoundError("the bucket went")
        self.seen.append(f"+{path}")
        self._put(store, path, content)

    def delete(self, store: Any, path: str) -> None:
        self.seen.append(f"-{path}")
        self._delete(store, path)


def test_a_bucket_is_written_so_that_no_triton_sees_half_a_version(
    stub: StubFarm, farm: Farm, bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = FakeTriton(bucket)
    keeper = Sync(farm.http, Wish(model="digits", gpus=["t4"]), bucket.at, triton.server)
    keeper.once()
    stub.add(b"two", id="E2", **T4 | {"version": 2})
    recorded = Recorded(monkeypatch)
    new = ["+digits/2/E2.plan", "+digits/2/E2.plan.json", "+digits/config.pbtxt"]
    triton.refuses = "no"
    with pytest.raises(TritonLoadFailed):
        keeper.once()
    undone = ["+digits/config.pbtxt", "-digits/2/E2.plan", "-digits/2/E2.plan.json"]
    assert recorded.seen == new + undone
    triton.refuses = None
    recorded.seen.clear()
    keeper.once()
    old = ["-digits/1/E1.plan", "-digits/1/E1.plan.json"]
    assert recorded.seen == [*new, "+digits/.farm-loaded", *old]


def test_an_upload_that_breaks_off_changes_nothing_that_is_served_and_is_made_up_for(
    stub: StubFarm, farm: Farm, bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Sync(farm.http, Wish(model="digits", gpus=["t4"]), bucket.at)
    keeper.once()
    before = contents(bucket)
    stub.add(b"two", id="E2", **T4 | {"version": 2})
    recorded = Recorded(monkeypatch)
    recorded.fails_at = "digits/2/E2.plan.json"
    with pytest.raises(Unavailable, match="the bucket went"):
        keeper.once()
    assert contents(bucket) == before | {"digits/2/E2.plan": b"two"}
    recorded.fails_at = ""
    assert keeper.once().changed
    assert versions(bucket) == {"1", "2"}
    assert b"versions: [2]" in contents(bucket)["digits/config.pbtxt"]


def test_a_large_engine_arrives_whole(
    stub: StubFarm, farm: Farm, bucket: Place, tmp_path: Path
) -> None:
    large = bytes(range(256)) * 50_000  # three parts
    stub.add(large, id="E2", **T4 | {"version": 2})
    Sync(farm.http, Wish(model="digits", gpus=["t4"]), bucket.at).once()
    assert bucket.files()["digits/2/E2.plan"] == large


def test_models_beside_ones_own_in_a_bucket_are_left_alone(
    stub: StubFarm, farm: Farm, bucket: Place
) -> None:
    theirs = {"digits2/9/model.onnx": b"theirs", "9/model.onnx": b"theirs"}
    for name, content in theirs.items():
        bucket.put(name, content)
    for number in (2, 3):
        stub.add(b"x" * number, id=f"E{number}", **T4 | {"version": number})
        Sync(farm.http, Wish(model="digits", gpus=["t4"]), bucket.at).once()
    assert theirs.items() <= bucket.files().items()


def test_what_fails_its_digest_never_reaches_the_bucket(
    stub: StubFarm, farm: Farm, bucket: Place
) -> None:
    stub.engines["E1"] = (stub.engines["E1"][0], b"eno")
    with pytest.raises(DigestMismatch):
        Sync(farm.http, Wish(model="digits", gpus=["t4"]), bucket.at).once()
    assert contents(bucket) == {}


def test_a_bucket_that_refuses_is_told_with_its_reason_and_what_to_set(
    bucket: Place, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sync", "digits", "--gpu", "t4", "--repository")
    missing = run(*words, "s3://no-such-bucket/models")
    assert missing.exit_code == exits.UNAVAILABLE
    assert "NoSuchBucket" in missing.stderr
    assert "Debug source" not in missing.stderr
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = run(*words, bucket.at)
    assert refused.exit_code == exits.UNAVAILABLE
    assert "SignatureDoesNotMatch" in refused.stderr
    assert "AWS_SECRET_ACCESS_KEY" in refused.stderr


@pytest.mark.parametrize(
    "url",
    [
        *("s3://", "file:///models", "https://models.example", "s3://key:secret@models"),
        *("s3://models/a/../b", "s3://models/%2e%2e/b", "s3://models//a", "s3://models/a?b=c"),
        "s3://http://127.0.0.1:9000/models",
    ],
)
def test_what_is_no_bucket_is_refused_and_not_repeated(run: Run, url: str) -> None:
    result = run("sync", "digits@prod", "--repository", url, "--gpu", "t4")
    assert result.exit_code == exits.USAGE
    assert "s3://BUCKET/PREFIX" in result.stderr
    assert "AWS_ENDPOINT_URL" in result.stderr
    assert "secret@" not in result.stderr


def test_a_bucket_without_its_extra_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without("obstore"), *sys.meta_path])
    result = run("sync", "digits", "--repository", "s3://models", "--gpu", "t4")
    assert result.exit_code != 0
    assert "pip install 'engine-farm[buckets]'" in result.stderr


class _Without(MetaPathFinder):
    """An environment in which a package isn't installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


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
