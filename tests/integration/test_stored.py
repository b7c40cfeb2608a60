"""Samples stay on disk until a batch takes them."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

from farm.errors import InvalidData
from farm.specs.shapes import ShapeRange, TensorSpec
from tests.graphs import matmul, small_graph
from workers.inputs.batch import Batch
from workers.inputs.samples import check_labels, check_samples, open_samples, read_samples, split
from workers.inputs.samples import largest as highest
from workers.inputs.stored import Column, columns
from workers.quantize.ranges import fitting

Save = Callable[[Path, dict[str, np.ndarray]], None]

SAVES: dict[str, Save] = {
    "stored": lambda path, arrays: np.savez(path, **arrays),
    "compressed": lambda path, arrays: np.savez_compressed(path, **arrays),
    "safetensors": lambda path, arrays: save_file(arrays, path),
}
SIZE = (3, 96, 96)
SPEC = TensorSpec(name="image", dtype="float32", shape=("batch", *SIZE))
PROFILE = {
    "image": ShapeRange(min=(1, *SIZE), opt=(8, *SIZE), max=(64, *SIZE)),
}


def saved(save: Save, path: Path, arrays: dict[str, np.ndarray]) -> Path:
    made = path.with_suffix(".npz")
    save(made, arrays)
    return made


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_every_way_of_indexing_gives_what_the_array_has(save: Save, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(100, 7, 500)).astype(np.float32)
    few = np.arange(5)
    path = saved(save, tmp_path / "data", {"image": array, "few": few})
    found = columns(path)
    column = found["image"]
    assert isinstance(column, Column)
    assert (column.shape, column.dtype, len(column)) == (array.shape, array.dtype, 100)
    assert isinstance(found["few"], np.ndarray)  # small: read at once
    mask = np.arange(100) % 3 == 1
    for key in (slice(3, 9), slice(None), slice(0, 50, 7), [5, 5, 2, 99], mask, (slice(2, 4), 1)):
        assert np.array_equal(column[key], array[key]), key
    assert np.array_equal(column[:2], array[:2])  # after the end was read
    held = column.selected(mask)
    assert isinstance(held, Column)
    assert np.array_equal(held[4:9], array[mask][4:9])
    assert np.array_equal(np.asarray(held), array[mask])
    assert np.array_equal(read_samples(path)["image"], array)


def peak_bytes(path: Path) -> int:
    """Of checking, splitting and iterating, as a stage does."""
    batch = Batch.of([SPEC], PROFILE)
    tracemalloc.start()
    try:
        samples = check_samples(open_samples(path), [SPEC], PROFILE)
        kept, held = split(samples, [SPEC], PROFILE, 8)
        assert held is not None
        seen = sum(batch.count(b) for part in (kept, held) for b in batch.split(part, 8))
        assert seen == batch.count(samples)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_memory_is_the_same_for_128_and_1024_images(save: Save, tmp_path: Path) -> None:
    peaks = []
    for count in (128, 1024):
        images = np.zeros((count, *SIZE), np.float32)
        path = saved(save, tmp_path / f"of-{count}", {"image": images})
        del images
        peaks.append(peak_bytes(path))
        path.unlink()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 12 << 20  # all of it is 113 MB


def test_damage_is_told_before_a_batch_meets_it(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 9, (64, 40_000))
    path = tmp_path / "data.npz"
    np.savez_compressed(path, ids=array)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    path.write_bytes(whole)
    spec = TensorSpec(name="ids", dtype="int64", shape=("batch", 40_000))
    shapes = {"ids": ShapeRange(min=(1, 40_000), opt=(8, 40_000), max=(8, 40_000))}
    with pytest.raises(InvalidData, match="can't be read"):
        check_samples(open_samples(path), [spec], shapes)


def test_values_that_are_not_finite_are_counted_over_the_whole_file(tmp_path: Path) -> None:
    images = np.zeros((200, *SIZE), np.float32)
    images[[3, 190], 0, 0, 0] = np.nan, np.inf
    np.savez(tmp_path / "data.npz", image=images)
    with pytest.raises(InvalidData, match="2 NaN or infinite"):
        check_samples(open_samples(tmp_path / "data.npz"), [SPEC], PROFILE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_array_with_a_flipped_byte_is_refused(save: Save, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 1 << 40, 1 << 18)  # 2 MiB
    path = tmp_path / "labels.npz"
    save(path, label=labels)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InvalidData, match="can't be read"):
        read_samples(path)


def test_an_array_of_one_number_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "scale.npy", np.float32(3))
    [found] = read_samples(tmp_path / "scale.npy").values()
    assert (found.shape, float(found)) == ((), 3.0)


def test_ranges_for_a_cpu_engine_hold_one_batch_at_a_time(tmp_path: Path) -> None:
    model = onnx.load(matmul(tmp_path / "m.onnx"))
    alive: list[int] = []
    made: list[weakref.ref[np.ndarray]] = []

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for number in range(6):
            x = np.full((2, 4), float(number), np.float32)
            made.append(weakref.ref(x))
            alive.append(sum(each() is not None for each in made))
            yield {"x": x}
            del x

    found = fitting(model, model, batches, tmp_path, ["y"])
    assert max(alive) <= 2, "the batch before, and the next one"
    weights = numpy_helper.to_array(model.graph.initializer[0])
    most = 5 * np.abs(weights.sum(axis=0)).max()
    assert most / 2 < found["y"] <= most * (1 + 1e-6)


def test_the_range_of_a_result_is_not_that_of_a_single_value(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    model = onnx.load(str(small_graph(tmp_path / "m.onnx", node, shape=("n", 100_000))))
    values = np.random.default_rng(0).normal(0, 1, (2, 100_000)).astype(np.float32)
    values[1, :20] = np.geomspace(5, 50, 20)
    found = fitting(model, model, lambda: [{"x": values}], tmp_path, ["y"])["y"]

    def error(limit: float) -> float:
        scale = limit / 127
        return float(np.square(np.clip(np.rint(values / scale), -127, 127) * scale - values).mean())

    assert error(found) < 0.8 * error(50)
    assert error(found) < 1.05 * min(error(limit) for limit in np.linspace(1, 50, 99))


def test_labels_of_pixels_stay_on_disk_and_damage_in_them_is_told(tmp_path: Path) -> None:
    arrays = {"image": np.zeros((512, 3), np.float32), "label": np.zeros((512, 256, 256), np.uint8)}
    arrays["label"][500, 3, 4] = 7
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, **arrays)
    labels = check_labels(open_samples(path), 512)
    assert isinstance(labels["label"], Column)
    tracemalloc.start()
    assert highest(labels["label"]) == 7
    assert tracemalloc.get_traced_memory()[1] < 8 << 20  # of 32 MiB
    tracemalloc.stop()
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"label.npy", 0, raw.rindex(b"label.npy"))
    raw[at + 2000 : at + 2200] = b"\xff" * 200
    path.write_bytes(raw)
    with pytest.raises(InvalidData, match="the data can't be read"):
        check_labels(open_samples(path), 512)
