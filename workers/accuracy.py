"""How well an engine keeps its source's outputs, and its source's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[np.generic]]


@dataclass(kw_only=True)
class Comparison:
    """Adds up batches of a source's and an engine's outputs for the same samples."""

    samples: int = 0
    max_abs_error: float = 0.0
    not_finite: int = 0  #: values that are finite in the source and aren't in the engine
    _cosines: list[NDArray[np.float64]] = field(default_factory=list)
    _source_top1: list[NDArray[np.int64]] = field(default_factory=list)
    _engine_top1: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, source: Outputs, engine: Outputs, count: int) -> None:
        """Take in one batch of ``count`` samples."""
        cosines = np.ones(count)
        for name, expected in source.items():
            reference = expected.astype(np.float64)
            actual = engine[name].astype(np.float64)
            self._add_errors(reference, actual)
            if expected.dtype.kind == "f":
                cosines = np.minimum(cosines, _cosine(reference, actual, count))
        self._cosines.append(cosines)
        self._add_classes(source, engine, count)
        self.samples += count

    def facts(self, labels: NDArray[np.int64] | None) -> dict[str, Any]:
        """The figures; with labels the task's accuracy of source and engine, as shares."""
        cosines = np.concatenate(self._cosines)
        facts: dict[str, Any] = {
            "samples": self.samples,
            "top1_agreement": None,
            "cosine_mean": float(cosines.mean()),
            "cosine_min": float(cosines.min()),
            "max_abs_error": self.max_abs_error,
            "task": None,
        }
        if self._source_top1:
            source = np.concatenate(self._source_top1)
            engine = np.concatenate(self._engine_top1)
            facts["top1_agreement"] = float((source == engine).mean())
            if labels is not None:
                facts["task"] = _task(source, engine, labels[: self.samples])
        return facts

    def _add_errors(self, reference: NDArray[np.float64], actual: NDArray[np.float64]) -> None:
        judged = np.isfinite(reference)
        self.not_finite += int((judged & ~np.isfinite(actual)).sum())
        both = judged & np.isfinite(actual)
        if both.any():
            error = float(np.abs(reference[both] - actual[both]).max())
            self.max_abs_error = max(self.max_abs_error, error)

    def _add_classes(self, source: Outputs, engine: Outputs, count: int) -> None:
        """Classes are those of the first output of shape [N,C]."""
        for name, expected in source.items():
            is_scores = expected.ndim == 2 and expected.dtype.kind == "f"
            if is_scores and expected.shape[0] == count and expected.shape[1] > 1:
                self._source_top1.append(expected.argmax(axis=1))
                self._engine_top1.append(engine[name].argmax(axis=1))
                return


def _task(
    source: NDArray[np.int64], engine: NDArray[np.int64], labels: NDArray[np.int64]
) -> dict[str, Any]:
    before = float((source == labels).mean())
    after = float((engine == labels).mean())
    return {"metric": "top1", "source": before, "engine": after, "drop": before - after}


def _cosine(
    reference: NDArray[np.float64], actual: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Each sample's cosine similarity; two zero outputs are alike, one of them is not."""
    rows = count if reference.ndim and reference.shape[0] == count else 1
    left = np.where(np.isfinite(reference), reference, 0.0).reshape(rows, -1)
    right = np.where(np.isfinite(actual), actual, 0.0).reshape(rows, -1)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    same = (np.linalg.norm(left, axis=1) == 0) & (np.linalg.norm(right, axis=1) == 0)
    dots = (left * right).sum(axis=1)
    cosines = np.where(same, 1.0, np.divide(dots, norms, out=np.zeros(rows), where=norms > 0))
    result: NDArray[np.float64] = np.clip(np.broadcast_to(cosines, (count,)), -1.0, 1.0)
    return result
