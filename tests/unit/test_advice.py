"""Warnings of data: each fires where it should, and is silent where it shouldn't."""

from __future__ import annotations

import numpy as np
import pytest

from farm.specs.shapes import ShapeRange, TensorSpec
from workers.inputs.advice import advice
from workers.inputs.batch import Batch

RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.normal(size=(64, 3, 16, 16)).astype(np.float32)
PIXELS = RANDOM.integers(0, 256, (64, 3, 16, 16)).astype(np.float32)
TOKENS = RANDOM.integers(1, 1000, (64, 32))


def told(array: np.ndarray) -> list[str]:
    shape = array.shape[1:]
    spec = TensorSpec(name="x", dtype=array.dtype.name, shape=("batch", *shape))
    profile = {"x": ShapeRange(min=(1, *shape), opt=(8, *shape), max=(64, *shape))}
    return advice({"x": array}, [spec], Batch.of([spec], profile))


def padded(length: int) -> np.ndarray:
    found = TOKENS.copy()
    found[:, length:] = 0
    return found


@pytest.mark.parametrize("array", [IMAGES, PIXELS / 255, TOKENS, padded(16)])
def test_good_data_are_not_spoken_of(array: np.ndarray) -> None:
    assert told(array) == []


def test_few_samples_are() -> None:
    [one] = told(IMAGES[:31])
    assert one.startswith("only 31 samples")
    assert told(IMAGES[:32]) == []


def test_samples_that_are_nearly_equal_are() -> None:
    twice = np.concatenate([IMAGES[:32], IMAGES[:32] + np.float32(1e-4)])
    [one] = told(twice)
    assert "looks repetitive: 32 of 64 samples" in one


def test_raw_pixels_are() -> None:
    [one] = told(PIXELS)
    assert "looks like raw pixels, 0 to 255" in one
    assert told(PIXELS.astype(np.uint8)) == []  # a model that takes bytes scales them itself


def test_padding_that_dominates_is() -> None:
    [one] = told(padded(8))
    assert "looks like padding for 75%" in one


def test_channels_that_are_always_the_same_are() -> None:
    empty = IMAGES.copy()
    empty[:, 1] = 0.5
    [one] = told(empty)
    assert "is the same in all samples for 1 of 3 channels (1)" in one
    [last] = told(np.ascontiguousarray(np.moveaxis(empty, 1, 3)))
    assert "1 of 3 channels (1)" in last
    assert told(IMAGES.mean(axis=1, keepdims=True)) == []


def test_a_few_features_that_are_always_the_same_are_not() -> None:
    rows = RANDOM.normal(size=(64, 20)).astype(np.float32)
    rows[:, :5] = 0
    assert told(rows) == []
    rows[:, 5] = 1
    [one] = told(rows)
    assert "6 of 20 features (0, 1, 2, 3, 4, …)" in one
