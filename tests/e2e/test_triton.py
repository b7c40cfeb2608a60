"""Engines of a whole farm, served by the real Triton Inference Server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from farm.client import Farm
from farm.client.sync import Sync, Wish
from farm.client.triton_server import TritonServer
from farm.errors import TritonLoadFailed
from farm.specs.triton import Backend
from tests import farm_lines, s3
from tests import triton as server
from tests.e2e.live import ROOT, LiveFarm, wait_until
from tests.triton import Triton

# What they ask of the farm's database, tests of aliases and pulls ask of Postgres.
pytestmark = [pytest.mark.slow, pytest.mark.apart]
http = pytest.importorskip("tritonclient.http")
MODEL = "served"
#: Each version that Triton loads is a process that imports ONNX Runtime.
SLOWLY = 200
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def images(count: int) -> Any:
    return np.random.default_rng(count).random((count, 1, 8, 8), dtype=np.float32)


def of_source(source: Path, given: Any) -> Any:
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    return session.run(["output"], {"image": given})[0]


PAGE = (ROOT / "docs/how-to/triton.md").read_text()
RUN = re.search(r"<!-- run beside a Triton.* -->\s+```sh\n(.*?)```", PAGE, re.DOTALL)[1]


class Asker:
    """Asks a model of Triton, over one connection."""

    def __init__(self, url: str) -> None:
        self._client = http.InferenceServerClient(url.removeprefix("http://"))

    def ask(self, given: Any, model: str = MODEL) -> Any:
        asked = http.InferInput("image", list(given.shape), "FP32")
        asked.set_data_from_numpy(given)
        return self._client.infer(model, [asked]).as_numpy("output")

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def sources(files: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of a model: the second answers with the first's negative."""
    first = files / "small.onnx"
    model = onnx.load(str(first))
    for node in model.graph.node:
        node.output[:] = ["inner" if name == "output" else name for name in node.output]
    model.graph.node.append(helper.make_node("Neg", ["inner"], ["output"]))
    second = tmp_path_factory.mktemp("sources") / "negative.onnx"
    onnx.save(model, str(second))
    return [first, second]


@pytest.fixture(scope="module")
def built(farm: LiveFarm, sources: list[Path]) -> list[Path]:
    """Both versions on the farm, as engines of ONNX Runtime; ``prod`` is the first."""
    for source in sources:
        farm.says(
            "submit", source, "--name", MODEL, "--gpu", "cpu", "--precision", "fp32",
            "--wait",
        )  # fmt: skip
    farm.says("promote", MODEL, "1", "prod")
    return sources


def test_a_pulled_repository_is_served_and_answers_as_the_source_does(
    farm: LiveFarm, built: list[Path], tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    made = farm.says("pull", MODEL, "--gpu", "cpu", "--triton", "-o", repository)
    [model] = made["models"]
    assert (model["name"], model["version"], made["missing"]) == (MODEL, 1, [])
    assert "onnxruntime==" in model["notes"][0]
    with server.running(repository) as triton:
        assert triton.load(MODEL) is None
        assert triton.config(MODEL)["max_batch_size"] == 64
        asker = Asker(triton.url)
        for count in (1, 3, 64):
            given = images(count)
            np.testing.assert_allclose(asker.ask(given), of_source(built[0], given), **TOLERANCE)
        asker.close()


def test_the_apis_tar_is_the_same_repository(
    farm: LiveFarm, built: list[Path], tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    made = farm.says("pull", MODEL, "--gpu", "cpu", "--triton", "-o", repository)
    [engine] = made["models"][0]["engines"]
    answer = farm.http.get(f"/v1/engines/{engine['engine']['id']}/triton").raise_for_status()
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    tar = ["tar", "-x", "-C", str(unpacked)]
    subprocess.run(tar, input=answer.content, check=True)
    for path in unpacked.rglob("*"):
        if path.is_file():
            same = repository / path.relative_to(unpacked)
            assert path.read_bytes() == same.read_bytes()
    assert len(list(unpacked.rglob("*.*"))) == 3


def test_the_pages_commands_make_a_repository_and_have_it_served(
    farm: LiveFarm, built: list[Path], tmp_path: Path
) -> None:
    with server.running(tmp_path / "models") as triton:
        here = {"http://localhost:8000": triton.url}
        here |= {name: str(tmp_path / name) for name in ("models", "fleet")}
        said = [
            farm.cli(*(here.get(w, w.replace("digits", MODEL)) for w in words), "--json").json()
            for words in farm_lines.farm_commands(RUN)
        ]
        pulled, fleet, release, synced = said
        assert [one["models"][0]["name"] for one in (pulled, fleet, release)] == [MODEL] * 3
        assert (synced["version"], synced["loaded"], synced["changed"]) == (1, True, False)
        given, asker = images(3), Asker(triton.url)
        np.testing.assert_allclose(asker.ask(given), of_source(built[0], given), **TOLERANCE)
        asker.close()


@contextmanager
def asking(triton: Triton, given: Any, seen: list[Any], failures: list[str]) -> Iterator[None]:
    """A client that asks all the while."""
    ended = threading.Event()

    def go() -> None:
        asker = Asker(triton.url)
        while not ended.is_set():
            try:
                seen.append(asker.ask(given))
            except Exception as err:
                failures.append(str(err))
        asker.close()

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)


@contextmanager
def watching(farm: LiveFarm, repository: Path | str, triton: Triton) -> Iterator[Any]:
    command = [
        *(sys.executable, "-m", "farm", "sync", f"{MODEL}@prod", "--repository", str(repository)),
        *("--triton-url", triton.url, "--gpu", "cpu", "--watch", "--interval", "0.2", "--json"),
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | {"FARM_URL": farm.addresses.api, "FARM_KEY": farm.key},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A repository, as ``farm sync`` and as Triton name it."""

    ours: Path | str
    theirs: Path | str
    versions: Callable[[], set[str]]  #: with files in it


@pytest.fixture(params=["folder", "bucket"])
def kept(
    request: pytest.FixtureRequest,
    farm: LiveFarm,
    built: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Kept]:
    if request.param == "folder":
        at = tmp_path / "models"
        yield Kept(
            ours=at,
            theirs=at,
            versions=lambda: {one.parent.name for one in at.glob(f"{MODEL}/*/*")},
        )
        return
    (tmp_path / "s3").mkdir()
    with s3.running(tmp_path / "s3") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        place = store.place("served/here")
        # Triton doesn't start on a prefix with nothing below it.
        sync = ("sync", f"{MODEL}@prod", "--repository", place.at, "--gpu", "cpu", "--json")
        farm.says(*sync)
        yield Kept(
            ours=place.at,
            theirs=place.at.replace("s3://", f"s3://{store.address}/"),
            versions=lambda: {name.split("/")[1] for name in place.files() if name.count("/") == 2},
        )


def test_promotion_and_rollback_reach_triton_without_a_failed_request(
    farm: LiveFarm, built: list[Path], kept: Kept, tmp_path: Path
) -> None:
    given = images(2)
    right = [of_source(source, given) for source in built]
    seen: list[Any] = []
    failures: list[str] = []

    def answers_as(version: int) -> Any:
        def look() -> bool:
            return bool(seen) and np.allclose(seen[-1], right[version - 1], **TOLERANCE)

        return look

    with (
        server.running(kept.theirs, logs=tmp_path) as triton,
        watching(farm, kept.ours, triton) as process,
    ):
        assert json.loads(process.stdout.readline())["version"] == 1
        with asking(triton, given, seen, failures):
            wait_until("version 1 answers", answers_as(1), SLOWLY)
            for _ in range(2):
                farm.says("promote", MODEL, "2", "prod", "--max-slowdown", "1000")
                wait_until("version 2 answers", answers_as(2), SLOWLY)
                farm.says("rollback", MODEL, "prod")
                wait_until("version 1 answers again", answers_as(1), SLOWLY)
        moves = [json.loads(process.stdout.readline()) for _ in range(4)]
        assert [(one["before"], one["version"]) for one in moves] == [(1, 2), (2, 1)] * 2
        assert kept.versions() == {"1"}
        ready = [one for one in triton.index() if one.get("state") == "READY"]
        assert [one["version"] for one in ready] == ["1"]
    assert failures == []
    assert len(seen) > 20
    for found in seen:
        assert any(np.allclose(found, one, **TOLERANCE) for one in right)


def test_what_triton_cannot_load_leaves_the_version_before_serving(
    farm: LiveFarm, built: list[Path], tmp_path: Path
) -> None:
    repository, given = tmp_path / "models", images(2)
    at = Farm(farm.addresses.api, key=farm.key)
    with server.running(repository) as triton:
        told = TritonServer(triton.url)
        first = Sync(at.http, Wish(model=f"{MODEL}@1", gpus=["cpu"]), repository, told).once()
        assert (first.version, first.before, first.loaded) == (1, None, True)
        before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
        # This Triton lacks the backend that the second version asks for.
        wish = Wish(model=f"{MODEL}@2", gpus=["cpu"], backend=Backend.ONNXRUNTIME)
        with pytest.raises(TritonLoadFailed) as refused:
            Sync(at.http, wish, repository, told).once()
        assert "unable to find backend library for backend 'onnxruntime'" in refused.value.detail
        after = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
        assert after == before
        asker = Asker(triton.url)
        np.testing.assert_allclose(asker.ask(given), of_source(built[0], given), **TOLERANCE)
        # Asked again, Triton still has the version before.
        again = Sync(at.http, Wish(model=f"{MODEL}@1", gpus=["cpu"]), repository, told).once()
        assert (again.changed, again.version) == (False, 1)
        np.testing.assert_allclose(asker.ask(given), of_source(built[0], given), **TOLERANCE)
        asker.close()
    # A Triton that starts anew is told what to load.
    with server.running(repository) as triton:
        wish = Wish(model=f"{MODEL}@1", gpus=["cpu"])
        restarted = Sync(at.http, wish, repository, TritonServer(triton.url)).once()
        assert (restarted.changed, restarted.loaded) == (False, True)
        asker = Asker(triton.url)
        np.testing.assert_allclose(asker.ask(given), of_source(built[0], given), **TOLERANCE)
        asker.close()
    at.close()
