"""Engines run by a whole farm: the answers are the source's, and hostile inputs are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from farm.client import Farm
from farm.errors import DataRefused
from tests import farm_lines
from tests.e2e.live import ROOT, LiveFarm, wait_until

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs/how-to/infer.md").read_text()
RUN = re.search(r"<!-- run on a farm with digits -->\s+```sh\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def farm(pages: LiveFarm, files: Path) -> LiveFarm:
    for name, model in (("small.onnx", "small"), ("digits.pt2", "digits")):
        pages.says(
            "submit", files / name, "--name", model, "--gpu", "cpu", "--precision", "fp32",
            "--wait",
        )  # fmt: skip
    return pages


@pytest.fixture
def client(farm: LiveFarm) -> Iterator[Farm]:
    with Farm(farm.addresses.api, key=farm.key) as made:
        yield made


def test_an_engine_gives_what_its_source_does(client: Farm, files: Path, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(files / "small.onnx")
    [given] = session.get_inputs()
    image = np.random.default_rng(3).standard_normal((5, 1, 8, 8)).astype("float32")
    made = client.infer("small", {given.name: image}, tmp_path / "out.npz", gpu="cpu")
    names = [one.name for one in session.get_outputs()]
    wanted = dict(zip(names, session.run(names, {given.name: image}), strict=True))
    assert made.arrays().keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(made.arrays()[name], array, rtol=1e-4, atol=1e-5)
    assert [(one.name, one.shape) for one in made.view.outputs] == [
        (name, list(array.shape)) for name, array in wanted.items()
    ]
    # The same again is the same job, and an array without a name the only input's.
    again = client.infer(engine=made.engine, inputs={given.name: image})
    assert again.view.id == made.view.id
    np.save(tmp_path / "image.npy", image)
    unnamed = client.infer("small@1", tmp_path / "image.npy", tmp_path / "unnamed.npz")
    np.testing.assert_array_equal(unnamed.arrays()[names[0]], made.arrays()[names[0]])


def test_the_page_runs_an_engine(farm: LiveFarm, files: Path, tmp_path: Path) -> None:
    data = np.load(files / "evaluation.npz")
    np.savez(tmp_path / "images.npz", image=data["image"][:64])
    said = []
    for words in farm_lines.farm_commands(RUN):
        named = {"images.npz", "scores.npz"}
        given = [str(tmp_path / word) if word in named else word for word in words]
        said.append(farm.says(*given))
    assert len(said) == 3
    assert {one["state"] for one in said} == {"succeeded"}
    with np.load(tmp_path / "scores.npz") as scores:
        [name] = scores.files
        found = scores[name].argmax(axis=1)
    assert (found == data["label"][:64]).mean() > 0.8
    assert [one["name"] for one in said[0]["outputs"]] == [name]


def test_inputs_that_are_none_are_refused_before_anything_runs(
    farm: LiveFarm, client: Farm, tmp_path: Path
) -> None:
    with pytest.raises(DataRefused, match="has 'x', but the model's inputs are 'image'"):
        client.infer("digits", {"x": np.zeros((1, 1, 8, 8), "float32")})
    with pytest.raises(DataRefused, match="is float64, but the model takes float32"):
        client.infer("digits", {"image": np.zeros((1, 1, 8, 8))})
    with pytest.raises(DataRefused, match="axis 2 of the data for input 'image' is 9"):
        client.infer("digits", {"image": np.zeros((1, 1, 9, 8), "float32")})
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, image=np.zeros((100_000, 1, 32, 32), "float32"))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataRefused, match="at most 268435456 are run"):
        client.infer("digits", path)
    np.savez(tmp_path / "pickle.npz", image=np.array([{"a": 1}], object))
    with pytest.raises(DataRefused, match="Object arrays cannot be loaded"):
        client.infer("digits", tmp_path / "pickle.npz")
    content = (tmp_path / "pickle.npz").read_bytes()
    digest = farm.http.post("/v1/blobs", content=content).json()["digest"]
    answer = farm.http.post("/v1/infer", json={"model": "digits", "gpu": "cpu", "inputs": digest})
    assert (answer.status_code, answer.json()["code"]) == (422, "data-refused")
    assert "Object arrays" in answer.json()["detail"]


def test_an_inference_leaves_nothing_behind(farm: LiveFarm, client: Farm) -> None:
    made = client.infer("digits", {"image": np.ones((1, 1, 8, 8), "float32")})
    assert made.view.worker
    wait_until("nothing is left behind", farm.is_tidy)
