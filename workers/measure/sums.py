"""Metrics that are a function of sums over samples: each sample is a row, float64.

An integer label below 0 is padding, and counted nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Array = NDArray[np.generic]
Integers = NDArray[np.int64]


def top(scores: Array, labels: Integers, k: int) -> Rows:
    """[right, labelled] of scores [N, C, …] for labels [N, …]. Of tied scores the lowest class wins."""
    wide = np.moveaxis(scores.astype(np.float64), 1, -1)
    known = labels >= 0
    index = np.clip(labels, 0, wide.shape[-1] - 1)[..., None]
    own = np.take_along_axis(wide, index, axis=-1)
    classes = np.arange(wide.shape[-1])
    ahead = ((wide > own) | ((wide == own) & (classes < index))).sum(axis=-1)
    right = known & (ahead < k) & (labels < wide.shape[-1]) & np.isfinite(own[..., 0])
    return np.stack([_per_sample(right), _per_sample(known)], axis=1)


def same(found: Integers, labels: Integers) -> Rows:
    """[right, labelled] of classes [N, …] for labels of that shape."""
    known = labels >= 0
    return np.stack([_per_sample(known & (found == labels)), _per_sample(known)], axis=1)


def ratio(totals: Rows) -> NDArray[np.float64]:
    """The first column over the second."""
    part, whole = totals[..., 0], totals[..., 1]
    found: NDArray[np.float64] = np.divide(
        part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0
    )
    return found


def root_ratio(totals: Rows) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.sqrt(ratio(totals))
    return found


def errors(found: Array, labels: Array, power: int) -> Rows:
    """[sum of |error| ** power, values]; a label of NaN is padding."""
    left, right = (each.astype(np.float64).reshape(len(labels), -1) for each in (found, labels))
    known = ~np.isnan(right)
    error = np.abs(np.where(known, left - right, 0.0)) ** power
    return np.stack([error.sum(axis=1), known.sum(axis=1).astype(np.float64)], axis=1)


def cosines(found: Array, labels: Array) -> Rows:
    left, right = (each.astype(np.float64).reshape(len(labels), -1) for each in (found, labels))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = (left * right).sum(axis=1)
    values = np.divide(dots, norms, out=np.zeros(len(dots)), where=norms > 0)
    return np.stack([values, np.ones(len(values))], axis=1)


def recall(embeddings: Array, labels: Integers, k: int) -> Rows:
    """[found, asked]: each sample looks for its label among its ``k`` nearest others, by cosine similarity.

    A sample whose label no other has isn't asked.
    """
    rows = embeddings.astype(np.float64).reshape(len(labels), -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    asked = (sizes[group] > 1) & (labels >= 0)
    right = np.zeros(len(rows), bool)
    for start in range(0, len(rows), 256):
        part = slice(start, min(start + 256, len(rows)))
        likeness = rows[part] @ rows.T
        likeness[np.arange(len(likeness)), np.arange(part.start, part.stop)] = -np.inf
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
        right[part] = (labels[nearest] == labels[part, None]).any(axis=1)
    return np.stack([(right & asked).astype(np.float64), asked.astype(np.float64)], axis=1)


def decoded(classes: Integers, blank: int) -> list[list[int]]:
    """Greedy CTC: repeats are one symbol, and blanks none. ``classes`` is [N, T]."""
    starts = np.ones(classes.shape, bool)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    kept = starts & (classes != blank) & (classes >= 0)
    return [row[which].tolist() for row, which in zip(classes, kept, strict=True)]


def edits(
    found: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], space: int | None
) -> Rows:
    """[edits, symbols of the label], or of words with the class ``space`` between them."""
    rows = []
    for left, right in zip(found, labels, strict=True):
        one, other = (left, right) if space is None else (_words(left, space), _words(right, space))
        rows.append((_distance(one, other), len(other)))
    return np.asarray(rows, np.float64).reshape(-1, 2)


def _words(symbols: Sequence[int], space: int) -> list[tuple[int, ...]]:
    words: list[list[int]] = [[]]
    for symbol in symbols:
        if symbol == space:
            words.append([])
        else:
            words[-1].append(symbol)
    return [tuple(word) for word in words if word]


def _distance(left: Sequence[object], right: Sequence[object]) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    row = list(range(len(right) + 1))
    for number, one in enumerate(left, start=1):
        before, row[0] = row[0], number
        for place, other in enumerate(right, start=1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (one != other)),
            )
    return row[-1]


def _per_sample(values: NDArray[np.bool_]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.reshape(len(values), -1).sum(axis=1).astype(np.float64)
    return found
