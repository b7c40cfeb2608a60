"""How far the outputs of two runs of one model are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Below this share of an output's largest magnitude a value counts as zero for relative errors.
RELATIVE_FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest errors over all outputs."""

    max_abs_error: float
    max_rel_error: float  #: against max(|expected|, RELATIVE_FLOOR × the output's largest |value|)
    scaled_error: float  #: the largest error as a share of its output's largest |expected|
    finite: bool

    def merged(self, other: Difference) -> Difference:
        return Difference(
            max_abs_error=max(self.max_abs_error, other.max_abs_error),
            max_rel_error=max(self.max_rel_error, other.max_rel_error),
            scaled_error=max(self.scaled_error, other.scaled_error),
            finite=self.finite and other.finite,
        )


NO_DIFFERENCE = Difference(max_abs_error=0.0, max_rel_error=0.0, scaled_error=0.0, finite=True)


def difference(
    expected: Mapping[str, NDArray[np.generic]], actual: Mapping[str, NDArray[np.generic]]
) -> Difference:
    """Compare outputs by name. Outputs of another shape, or missing, count as not finite."""
    result = NO_DIFFERENCE
    for name, reference in expected.items():
        other = actual.get(name)
        if other is None or other.shape != reference.shape:
            worst = float("inf")
            return Difference(
                max_abs_error=worst, max_rel_error=worst, scaled_error=worst, finite=False
            )
        result = result.merged(_array_difference(reference, other))
    return result


def _array_difference(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Difference:
    if expected.size == 0:
        return NO_DIFFERENCE
    reference = expected.astype(np.float64)
    error = np.abs(reference - actual.astype(np.float64))
    # Infinities that agree, as those of an attention mask do, aren't an error.
    error[reference == actual.astype(np.float64)] = 0.0
    finite = bool(np.isfinite(error).all())
    magnitude = np.abs(reference[np.isfinite(reference)])
    largest = float(magnitude.max()) if magnitude.size else 0.0
    scale = np.maximum(np.abs(reference), max(largest * RELATIVE_FLOOR, 1e-12))
    with np.errstate(invalid="ignore"):
        relative = np.where(error == 0, 0.0, error / scale)
    return Difference(
        max_abs_error=float(error.max()),
        max_rel_error=float(np.nan_to_num(relative, nan=np.inf).max()),
        scaled_error=float(error.max()) / max(largest, 1e-12),
        finite=finite,
    )
