"""What a calibration might have found in a classifier of 40 layers, with a goal."""

from __future__ import annotations

import math
from typing import Any

from farm.reports.histograms import BINS, Histograms, TensorHistogram

NAMES = [f"/features/features.{n}/conv/conv.{n % 3}/Clip_output_0" for n in range(40)]
RATIOS = {name: round(18 + 20 * abs(math.sin(at)), 2) for at, name in enumerate(NAMES)}
_TRIED = [
    {"what": "plain", "drop": 0.041, "predicted_time": 0.42, "int8_share": 1.0},
    {"what": "biases corrected", "drop": 0.027, "predicted_time": 0.42, "int8_share": 1.0},
    {"what": "equalised", "predicted_time": 0.44, "int8_share": 1.0},
    {"what": "6 of 41 layers in floats", "drop": 0.004, "predicted_time": 0.61, "int8_share": 0.8},
    {
        "what": "3 of 41 layers in floats",
        "drop": 0.008,
        "held_out_drop": 0.009,
        "predicted_time": 0.52,
        "int8_share": 0.91,
        "kept": True,
    },
]
_SEARCH = {
    "metric": "top1",
    "max_drop": 0.01,
    "budget_s": 600,
    "spent_s": 184.0,
    "samples": 384,
    "held_out": 128,
    "drop": 0.008,
    "int8_share": 0.91,
    "tried": _TRIED,
}
COMPUTE = {
    "source": "optimised-graph",
    "macs": 10,
    "types": {"int8": {"layers": 38, "share": 0.91}, "fp32": {"layers": 3, "share": 0.09}},
}


def facts(**more: float) -> dict[str, Any]:
    """Parameters:
    more: ratios of further tensors.
    """
    return {
        "samples": 512,
        "method": "auto",
        "qdq_pairs": 41,
        "snr_db": RATIOS | more,
        "left_in_float": {"head of a detector": ["/head/conv"]},
        "search": _SEARCH,
    }


def histogram(name: str, sigma: float) -> TensorHistogram:
    """Of a tensor with this standard deviation, and three values far from the others."""
    counts = [int(2e6 * math.exp(-((at / BINS * 8 / sigma) ** 2) / 2)) for at in range(BINS)]
    counts[-1] = 3
    ranges = {"max": 8.0, "mse": 3.4 * sigma, "entropy": 3.9 * sigma, "percentile": 3.7 * sigma}
    return TensorHistogram(
        tensor=name, largest=8.0, counts=counts, range=3.4 * sigma, method="mse", ranges=ranges
    )


def histograms(*first: TensorHistogram) -> bytes:
    """As they are stored, the noisiest tensor first."""
    ordered = sorted(NAMES, key=RATIOS.__getitem__)
    rest = (histogram(name, 0.4 + 0.04 * at) for at, name in enumerate(ordered))
    return Histograms(tensors=[*first, *rest]).model_dump_json().encode()
