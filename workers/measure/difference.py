"""Compares the outputs of two runs of one model, which should only differ by rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.measure import items

Outputs = Mapping[str, NDArray[np.generic]]

#: For relative errors, a value below this share of its output's largest magnitude counts as zero.
RELATIVE_FLOOR = 1e-3
#: The share of integers, booleans or items that rounding alone may change, when two classes tie or a
#: score is at its threshold.
MAX_CHANGED = 0.01


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest errors over all outputs.

    NaN is equal to NaN, and an infinity to the same one. Only floats have errors; integers and booleans
    are equal or not; outputs whose size depends on the data are matched item by item.
    """

    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    """Against max(|expected|, RELATIVE_FLOOR × the output's largest magnitude)."""
    scaled_error: float = 0.0  #: the largest error as a share of its output's largest |expected|
    changed: float = 0.0  #: the largest share of an output's integers, booleans or items
    finite: bool = True  #: whether the same values are finite in both runs
    missing: str | None = None  #: an output that is missing or has another rank
    all_nan: tuple[str, ...] = ()  #: outputs that are all NaN in both runs

    def merged(self, other: Difference) -> Difference:
        return Difference(
            max_abs_error=max(self.max_abs_error, other.max_abs_error),
            max_rel_error=max(self.max_rel_error, other.max_rel_error),
            scaled_error=max(self.scaled_error, other.scaled_error),
            changed=max(self.changed, other.changed),
            finite=self.finite and other.finite,
            missing=self.missing or other.missing,
            all_nan=tuple(dict.fromkeys((*self.all_nan, *other.all_nan))),
        )

    def beyond(self, tolerance: float) -> str | None:
        """Describe a difference beyond rounding, or return None.

        Parameters:
            tolerance: the largest ``scaled_error`` that counts as rounding.
        """
        if self.missing:
            return f"the output {self.missing!r} is missing or has another rank"
        if not self.finite:
            return "values are NaN or infinite in only one of the two"
        if self.scaled_error > tolerance:
            return (
                f"they differ by up to {self.max_abs_error:.3g} ({self.scaled_error:.2%} of the largest "
                f"output; {tolerance:.1%} is allowed)"
            )
        if self.changed > MAX_CHANGED:
            return (
                f"{self.changed:.1%} of an output's integers, booleans or items differ "
                f"({MAX_CHANGED:.0%} is allowed)"
            )
        return None


NO_DIFFERENCE = Difference()


def difference(expected: Outputs, actual: Outputs) -> Difference:
    """Compare outputs by name."""
    result = NO_DIFFERENCE
    varying = items.varying(expected, actual)
    for name, reference in expected.items():
        other = actual.get(name)
        if other is None or other.ndim != reference.ndim:
            return Difference(missing=name, finite=False)
        if name not in varying:
            result = result.merged(_array_difference(name, reference, other))
    for group in items.groups(varying, expected, actual):
        matched = items.matched(group, expected, actual)
        result = result.merged(Difference(changed=1.0 - matched))
    return result


def _array_difference(
    name: str, expected: NDArray[np.generic], actual: NDArray[np.generic]
) -> Difference:
    if expected.size == 0:
        return NO_DIFFERENCE
    if expected.dtype.kind not in "fV":
        return Difference(changed=float((expected != actual).mean()))
    reference, other = expected.astype(np.float64), actual.astype(np.float64)
    both = np.isfinite(reference) & np.isfinite(other)
    same = (reference == other) | (np.isnan(reference) & np.isnan(other))
    if not both.any():
        return Difference(
            finite=bool(same.all()), all_nan=(name,) if np.isnan(reference).all() else ()
        )
    error = np.abs(reference[both] - other[both])
    magnitude = np.abs(reference[both])
    largest = float(magnitude.max())
    scale = np.maximum(magnitude, max(largest * RELATIVE_FLOOR, 1e-12))
    return Difference(
        max_abs_error=float(error.max()),
        max_rel_error=float((error / scale).max()),
        scaled_error=float(error.max()) / max(largest, 1e-12),
        finite=bool((both | same).all()),
    )
