"""The largest magnitudes of activations: fast kernels find the samples, plain ones give the values."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from tests.graphs import small_graph
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays
from workers.quantize import activations, extremes

SHAPE = ("n", 32, 12, 12)
NAMES = ["x", "a", "b", "c", "y"]


@pytest.fixture(name="convolutions", scope="module")
def _convolutions(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Convolutions that ONNX Runtime has kernels in a layout of their own for."""
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.06, (32, 32, 3, 3)).astype(np.float32) for n in ("v", "w", "z")}
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["p"], **pads),
        helper.make_node("Relu", ["p"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], **pads),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "z"], ["y"], **pads),
    ]
    path = tmp_path_factory.mktemp("extremes") / "m.onnx"
    return onnx.load(str(small_graph(path, *nodes, shape=SHAPE, weights=weights)))


@pytest.fixture(name="passes")
def _passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Each pass: whether by plain kernels, and over how many samples."""
    made: list[tuple[bool, int]] = []
    session, batches = activations.observed, activations.batches_of

    def observed(*given, exact):
        made.append((exact, made.pop()[1]))
        return session(*given, exact=exact)

    def batches_of(samples, batch, size, which):
        made.append((False, int(which.sum())))
        return batches(samples, batch, size, which)

    monkeypatch.setattr(extremes, "observed", observed)
    monkeypatch.setattr(extremes, "batches_of", batches_of)
    return made


def images(count: int, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, *SHAPE[1:])) * rng.uniform(0.2, 2, (count, 1, 1, 1))
    return {"x": x.astype(np.float32)}


def batch_of(low: int, high: int) -> Batch:
    return Batch(axes={"x": 0}, min=low, opt=low, max=high, is_dynamic=low < high)


def largest(model, samples, folder, *, batch, size):
    told: list[int] = []

    def tell(batches: Iterator[Arrays]) -> Iterator[Arrays]:
        for each in batches:
            yield each
            told.append(batch.count(each))

    found, peaks = extremes.largest(
        model, NAMES, samples, folder, batch=batch, size=size, told=tell
    )
    return {name: one.most for name, one in found.items()}, peaks, sum(told)


def plain(model, samples, folder):
    session = activations.observed(model, NAMES, folder, exact=True)
    found = activations.gathered(session, NAMES, [samples], counted=False)
    return {name: one.most for name, one in found.items()}


@pytest.mark.parametrize(
    ("low", "high", "size"), [(1, 64, 8), (1, 64, 3), (4, 64, 8), (8, 8, 8), (5, 64, 8)]
)
def test_few_samples_are_run_twice_and_give_the_largest_values_to_the_bit(
    convolutions, passes, tmp_path, low, high, size
):
    samples = images(80)
    found, _, told = largest(convolutions, samples, tmp_path, batch=batch_of(low, high), size=size)
    assert found == plain(convolutions, samples, tmp_path)
    assert told == 80
    [fast, again] = passes
    assert fast == (False, 80)
    assert again[0]
    assert 1 <= again[1] <= 40


def test_of_few_samples_all_are_run_by_plain_kernels(convolutions, passes, tmp_path):
    samples = images(9)
    found, _, told = largest(convolutions, samples, tmp_path, batch=batch_of(1, 64), size=4)
    assert found == plain(convolutions, samples, tmp_path)
    assert (told, passes) == (9, [(True, 9)])


def test_all_samples_are_run_again_where_kernels_differ_by_much(
    convolutions, passes, tmp_path, monkeypatch
):
    monkeypatch.setattr(extremes, "_agree", lambda *_: False)
    samples = images(80)
    found, _, told = largest(convolutions, samples, tmp_path, batch=batch_of(1, 64), size=8)
    assert found == plain(convolutions, samples, tmp_path)
    assert told == 80
    assert passes[-1] == (True, 80)


def test_infinite_values_are_looked_for_in_all_samples(convolutions, passes, tmp_path):
    samples = images(80)
    samples["x"][7, 3] = np.inf
    found, peaks, _ = largest(convolutions, samples, tmp_path, batch=batch_of(1, 64), size=8)
    assert not peaks.are_finite
    assert passes[-1] == (True, 80)
    assert np.isfinite(list(found.values())).all()


def test_copies_of_a_sample_are_run_again_once(convolutions, passes, tmp_path):
    samples = images(80)
    samples["x"][:] = samples["x"][:1]
    found, _, _ = largest(convolutions, samples, tmp_path, batch=batch_of(1, 64), size=8)
    assert found == plain(convolutions, samples, tmp_path)
    assert passes[-1] == (True, 2)


@pytest.mark.parametrize("length", [7, 1 << 15])
def test_the_extremes_of_each_sample_are_numpys(length):
    values = np.random.default_rng(0).standard_normal((5, length)).astype(np.float32)
    values[1, 3], values[2, 0], values[3] = np.nan, -np.inf, 0
    values.flags.writeable = False
    low, high = activations._extremes(values, 5)
    assert np.array_equal(low, values.min(axis=1), equal_nan=True)
    assert np.array_equal(high, values.max(axis=1), equal_nan=True)


def test_counting_leaves_pytorch_its_threads():
    before = torch.get_num_threads()
    activations.gathered(None, ["x"], [images(2)], counted=True)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(torch.get_num_threads).result() == before
    assert torch.get_num_threads() == before
