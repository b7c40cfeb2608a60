"""Prometheus's metric families, made from the farm's metrics and their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate, product

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.utils import floatToGoString

from farm import errors
from farm.database.tallies import Histogram
from farm.specs import monitoring
from farm.specs.monitoring import Metric
from farm.specs.states import BUILD_ENDED, JobState, Requeued, Reuse
from farm.stages import JobKind

Values = dict[tuple[str, ...], float]


def gauge_of(metric: Metric, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def counter_of(metric: Metric, values: Mapping[tuple[str, ...], float]) -> CounterMetricFamily:
    """A counter, at zero where nothing was counted: an increase is only seen from a value to the next."""
    family = CounterMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, value in (dict.fromkeys(_expected(metric), 0) | {**values}).items():
        family.add_metric(labels, value)
    return family


def histogram_of(
    metric: Metric, values: Mapping[tuple[str, ...], Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
    empty = {} if metric.labels else {(): Histogram()}
    for labels, histogram in (empty | {**values}).items():
        bounds = (*metric.buckets, math.inf)
        counts = [0] * len(bounds)
        for bound, count in histogram.counts.items():
            # Of an earlier version, maybe, with other buckets.
            counts[next(i for i, one in enumerate(bounds) if bound <= one)] += count
        buckets = zip(map(floatToGoString, bounds), accumulate(counts), strict=True)
        family.add_metric(labels, list(buckets), histogram.total)
    return family


def _expected(metric: Metric) -> Iterator[tuple[str, ...]]:
    if metric is monitoring.JOBS_ENDED:
        yield from _EXPECTED_ENDS
    else:
        yield from product(*(_EXPECTED[label] for label in metric.labels))


#: A counter's label → its values.
_EXPECTED: Mapping[str, tuple[str, ...]] = {
    "kind": tuple(JobKind),
    "reason": tuple(Requeued),
    "reuse": tuple(Reuse),
    "state": tuple(sorted(BUILD_ENDED)),
}
_EXPECTED_ENDS = [
    *product(JobKind, (JobState.SUCCEEDED, JobState.CANCELLED), ("",)),
    *product(JobKind, (JobState.FAILED,), errors.codes(errors.StageFailed, errors.InternalError)),
]
