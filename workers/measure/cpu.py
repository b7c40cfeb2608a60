"""Times a CPU engine next to eager PyTorch in the same run."""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

import torch

from farm.reports.metrics import MAX_OTHERS_SHARE, Metrics, Settings, Throughput, Timed
from workers.backends.ort.cpu import cpu_threads
from workers.clocks.host import (
    Pace,
    Timings,
    cpu_name,
    latency_ms,
    percentile,
    samples_per_s,
    time_side_by_side,
)
from workers.inputs.batch import Arrays, Batch
from workers.inputs.samples import Runnable
from workers.programs import guard

#: At the profile's opt batch, which gives the headline latency.
LATENCY_PACE = Pace()
#: At the other batch sizes, for throughput.
THROUGHPUT_PACE = Pace(duration_s=0.5)


class Paces(NamedTuple):
    """At the profile's opt batch, and at the others."""

    latency: Pace
    throughput: Pace


#: How often the headline latency is measured again on a busy machine.
RETRIES = 1
#: A batch isn't timed if a single run would take longer.
MAX_RUN_S = 1.5


def metrics(
    engine: Runnable,
    eager: Runnable | None,
    batch: Batch,
    samples: Arrays,
    timing_share: float = 1.0,
) -> Metrics:
    """Latency and throughput at the batch sizes of a profile.

    Parameters:
        samples: run in batches.
        timing_share: of the usual time, for which each model is timed.
    """
    paces = Paces(LATENCY_PACE.scaled(timing_share), THROUGHPUT_PACE.scaled(timing_share))
    models: dict[str, Runnable] = {"engine": engine} | ({"eager": eager} if eager else {})
    smallest, opt, largest = batch.min, batch.opt, batch.max
    headline = _time_headline(models, batch.repeated(samples, opt), paces.latency)
    latencies = {opt: headline.latencies}
    skipped: dict[int, float] = {}
    for size in sorted({smallest, largest} - {opt}):
        slowest = max(percentile(times, 50) for times in headline.latencies.values()) * size / opt
        if slowest > MAX_RUN_S:
            skipped[size] = slowest
        else:
            timed = _time_batch(models, batch.repeated(samples, size), paces.throughput)
            latencies[size] = timed.latencies
    timings = {name: _timed(name, latencies, skipped, opt) for name in models}
    ratio, no_ratio = speed_up(headline)
    return Metrics(
        batch=opt,
        shapes={name: list(a.shape) for name, a in batch.repeated(samples, opt).items()},
        latency_ms=timings["engine"].latency_ms,
        iterations=timings["engine"].iterations,
        throughput=timings["engine"].throughput,
        eager=timings.get(
            "eager", Timed(reason="the source isn't a program that PyTorch can run eagerly")
        ),
        speed_up=ratio,
        speed_up_reason=no_ratio,
        others_cpu_share=round(headline.others_share, 3),
        settings=_settings(paces),
    )


def speed_up(timings: Timings) -> tuple[float | None, str | None]:
    """The ratio of median latencies, PyTorch's to the engine's, or None and the reason."""
    share = timings.others_share
    if "eager" not in timings.latencies:
        return None, None
    if share > MAX_OTHERS_SHARE:
        return None, f"other processes used {share:.0%} of the CPU during timing"
    medians = {name: percentile(times, 50) for name, times in timings.latencies.items()}
    return round(medians["eager"] / medians["engine"], 3), None


def _time_headline(models: dict[str, Runnable], arrays: Arrays, pace: Pace) -> Timings:
    """The least disturbed of several timings; the first if the machine was quiet."""
    best = _time_batch(models, arrays, pace)
    for _ in range(RETRIES):
        if best.others_share <= MAX_OTHERS_SHARE:
            break
        again = _time_batch(models, arrays, pace)
        best = min(best, again, key=lambda timings: timings.others_share)
    return best


def _time_batch(models: dict[str, Runnable], arrays: Arrays, pace: Pace) -> Timings:
    runs = {name: partial(model.run, arrays) for name, model in models.items()}
    for run in runs.values():
        run()
    with guard.timed():
        return time_side_by_side(runs, pace)


def _timed(
    name: str, latencies: dict[int, dict[str, list[float]]], skipped: dict[int, float], opt: int
) -> Timed:
    throughput = [
        Throughput(
            batch=batch,
            samples_per_s=samples_per_s(times[name], batch),
            latency_p50_ms=latency_ms(times[name])["p50"],
            iterations=len(times[name]),
        )
        for batch, times in latencies.items()
    ]
    throughput += [
        Throughput(batch=batch, samples_per_s=None, reason=f"one run would take {seconds:.1f} s")
        for batch, seconds in skipped.items()
    ]
    return Timed(
        latency_ms=latency_ms(latencies[opt][name]),
        iterations=len(latencies[opt][name]),
        throughput=sorted(throughput, key=lambda entry: entry.batch),
    )


def _settings(paces: Paces) -> Settings:
    return Settings(
        device="cpu",
        cpu=cpu_name(),
        threads=cpu_threads(),
        torch=torch.__version__,
        glibc_tunables=os.environ.get("GLIBC_TUNABLES"),
        clock="host time around one call, side by side in one process",
        latency=paces.latency.view(),
        throughput=paces.throughput.view(),
    )
