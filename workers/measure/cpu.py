"""How fast an engine for CPUs is, beside eager PyTorch in the same run."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch

from farm.registry.latencies import MAX_OTHERS_SHARE
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

#: At the profile's opt batch, whose latency is the headline.
LATENCY_PACE = Pace()
#: At the other batch sizes, for throughput.
THROUGHPUT_PACE = Pace(duration_s=0.5)
#: How often the headline's latency is taken again on a busy machine.
RETRIES = 1
#: A batch whose one run would take longer isn't timed.
MAX_RUN_S = 1.5


def metrics(
    engine: Runnable, eager: Runnable | None, batch: Batch, samples: Arrays
) -> dict[str, Any]:
    """Latency and throughput at the batch sizes of a profile.

    Parameters:
        samples: what is run, in batches.
    """
    models: dict[str, Runnable] = {"engine": engine} | ({"eager": eager} if eager else {})
    smallest, opt, largest = batch.min, batch.opt, batch.max
    headline = _time_headline(models, batch.repeated(samples, opt))
    latencies = {opt: headline.latencies}
    skipped: dict[int, float] = {}
    for size in sorted({smallest, largest} - {opt}):
        slowest = max(percentile(times, 50) for times in headline.latencies.values()) * size / opt
        if slowest > MAX_RUN_S:
            skipped[size] = slowest
        else:
            timed = _time_batch(models, batch.repeated(samples, size), THROUGHPUT_PACE)
            latencies[size] = timed.latencies
    results = {name: _results(name, latencies, skipped, opt) for name in models}
    return {
        "batch": opt,
        "shapes": {name: list(a.shape) for name, a in batch.repeated(samples, opt).items()},
        **results["engine"],
        "eager": results.get("eager"),
        "eager_reason": None
        if eager
        else "the source isn't a program that PyTorch can run eagerly",
        **speed_up(headline),
        "settings": _settings(),
    }


def speed_up(timings: Timings) -> dict[str, Any]:
    """The ratio of median latencies, PyTorch's to the engine's, or why there is none."""
    share = timings.others_share
    facts: dict[str, Any] = {"speed_up": None, "others_cpu_share": round(share, 3)}
    if "eager" not in timings.latencies:
        return facts
    if share > MAX_OTHERS_SHARE:
        return facts | {
            "speed_up_reason": f"other processes used {share:.0%} of the CPU during timing"
        }
    medians = {name: percentile(times, 50) for name, times in timings.latencies.items()}
    return facts | {"speed_up": round(medians["eager"] / medians["engine"], 3)}


def _time_headline(models: dict[str, Runnable], arrays: Arrays) -> Timings:
    """The least disturbed of some timings; the first, if the machine was quiet."""
    best = _time_batch(models, arrays, LATENCY_PACE)
    for _ in range(RETRIES):
        if best.others_share <= MAX_OTHERS_SHARE:
            break
        again = _time_batch(models, arrays, LATENCY_PACE)
        best = min(best, again, key=lambda timings: timings.others_share)
    return best


def _time_batch(models: dict[str, Runnable], arrays: Arrays, pace: Pace) -> Timings:
    runs = {name: partial(model.run, arrays) for name, model in models.items()}
    for run in runs.values():
        run()
    with guard.timed():
        return time_side_by_side(runs, pace)


def _results(
    name: str, latencies: dict[int, dict[str, list[float]]], skipped: dict[int, float], opt: int
) -> dict[str, Any]:
    throughput: list[dict[str, Any]] = [
        {
            "batch": batch,
            "samples_per_s": samples_per_s(times[name], batch),
            "latency_p50_ms": latency_ms(times[name])["p50"],
            "iterations": len(times[name]),
        }
        for batch, times in latencies.items()
    ]
    throughput += [
        {"batch": batch, "samples_per_s": None, "reason": f"one run would take {seconds:.1f} s"}
        for batch, seconds in skipped.items()
    ]
    return {
        "latency_ms": latency_ms(latencies[opt][name]),
        "iterations": len(latencies[opt][name]),
        "throughput": sorted(throughput, key=lambda entry: int(entry["batch"])),
    }


def _settings() -> dict[str, Any]:
    return {
        "device": "cpu",
        "cpu": cpu_name(),
        "threads": cpu_threads(),
        "torch": torch.__version__,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
        "clock": "host time around one call, side by side in one process",
        "latency": LATENCY_PACE.settings(),
        "throughput": THROUGHPUT_PACE.settings(),
    }
