"""Weights rounded one after another, each one's error spread over those that follow.

What counts is the error of a product's result: of weights Δ beside those that it had, and an input that is
rounded to x̂ = x + e, the mean square of Δ·x̂ + w·e. Second moments of the inputs tell it, for each channel of
the result by itself. So a weight's error can be made up for by the weights whose inputs go with its own, and
what rounding does to the inputs by weights that rely less on what is noise in them.

Sources: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
ICLR 2023; of the error of the inputs Li et al., GPTAQ, ICML 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Added to each input's mean square, as a share of all inputs' mean: what few samples leave open stays put.
_DAMPING = 0.01
#: Weights after which the remaining ones are corrected, in one matrix product.
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Means of products of a layer's inputs.

    Parameters:
        inputs: of x̂ and x̂, groups × inputs × inputs.
        errors: of e and x̂, groups × inputs × inputs.
    """

    inputs: Floats
    errors: Floats


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The values that weights are rounded to.

    Parameters:
        step: between two of them, groups × outputs × 1; not zero.
        most: the largest, in steps.
    """

    step: Floats
    most: int

    def nearest(self, weights: Floats) -> Floats:
        return np.clip(np.rint(weights / self.step), -self.most, self.most) * self.step


def rounded(weights: Floats, levels: Levels, fit: Moments, held: Moments) -> tuple[Floats, int]:
    """Rounded weights, and for how many channels of the result they aren't the nearest.

    Parameters:
        weights: groups × outputs × inputs.
        fit: what they are chosen by.
        held: of other samples: a channel that errs more on these than with the nearest weights keeps those.
    """
    nearest = levels.nearest(weights)
    try:
        found = _one_by_one(weights, levels, fit)
    except (
        np.linalg.LinAlgError
    ):  # moments that aren't finite, or that damping doesn't make definite
        return nearest, 0
    gain = error(weights, nearest, held) - error(weights, found, held)
    is_better = np.isfinite(gain) & (gain > 0)
    return np.where(is_better[..., None], found, nearest), int(is_better.sum())


def error(weights: Floats, made: Floats, moments: Moments) -> Floats:
    """The mean squared error of each channel, groups × outputs, beyond that of the weights as they were."""
    change = made - weights
    of_weights = ((change @ moments.inputs) * change).sum(axis=2)
    of_both = ((weights @ moments.errors) * change).sum(axis=2)
    sum_: Floats = of_weights + 2 * of_both
    return sum_


def _one_by_one(weights: Floats, levels: Levels, fit: Moments) -> Floats:
    # The largest inputs first: the others, whose errors weigh less, are left to make up for them.
    order = np.argsort(-np.diagonal(fit.inputs, axis1=1, axis2=2), axis=1, kind="stable")
    inputs = np.take_along_axis(fit.inputs, order[:, :, None], axis=1)
    inputs = np.take_along_axis(inputs, order[:, None, :], axis=2)
    diagonal = np.diagonal(inputs, axis1=1, axis2=2)
    damping = np.maximum(_DAMPING * diagonal.mean(axis=1), np.finfo(np.float32).tiny)
    inverse = np.linalg.inv(inputs + damping[:, None, None] * np.eye(inputs.shape[1]))
    factor = np.linalg.cholesky(inverse).swapaxes(1, 2)
    moved = np.take_along_axis(weights @ fit.errors, order[:, None, :], axis=2) @ inverse
    left = np.take_along_axis(weights, order[:, None, :], axis=2) - moved
    found = np.empty_like(left)
    count = left.shape[2]
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty((*left.shape[:2], stop - start))
        for at in range(start, stop):
            found[..., at : at + 1] = levels.nearest(left[..., at : at + 1])
            lost = (left[..., at] - found[..., at]) / factor[:, at, at, None]
            errors[..., at - start] = lost
            left[..., at + 1 : stop] -= lost[..., None] * factor[:, None, at, at + 1 : stop]
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(found, back[:, None, :], axis=2)
