"""``make bench``: every figure is a ratio of two things measured in this run.

``python -m bench`` prints all rows, ``python -m bench NAME …`` (``make bench ARGS="NAME …"``) those of
these benches:

=========== =========================================================================
cold        a first build beside a plain script, and the same build again
submissions submissions a second beside a handler of two inserts
dispatch    from a submission to its first claim, beside the delay of a Celery task
news        from an event to whoever follows the build, beside Celery's events
jobs        jobs a second that do nothing, beside tasks of Celery that do nothing, plain and durable
claims      a claim with 10,000 queued jobs beside one with 100
post        the 99th percentile of a submission's time beside a handler of two inserts, and its own median
int8        engines for cpu in int8 beside fp32, with the processor's name
children    the start of a job's process beside that of a Python that imports the same
gpu         the engines of four models on this machine's GPUs, beside the best of PyTorch on each
gpus        GPU jobs a second with 1, 2, 4 … GPUs, beside one
resolver    a pull's choice among 100,000 engines beside one among 100
page        the first paint of the farm's page with 10,000 builds beside a bare one
pulls       a pull of a 1 GB engine beside nginx
forecasts   a job's forecast among 100,000 that ran beside one among 1,000
scrapes     a scrape of /metrics with 10,000 builds beside one with 100
calibration INT8 calibration of ResNet-50 beside forward passes, and beside three peers
goals       INT8 that keeps an accuracy, the farm's search beside NNCF's; five models, three from wheels
=========== =========================================================================

``python -m bench scale`` is another one, of minutes: what grows with history, for 100 workers and 100,000
jobs (``--help``).

``dispatch``, ``news``, ``jobs``, ``claims``, ``page``, ``post``, ``resolver`` and ``scrapes`` also measure
Postgres when ``FARM_TEST_DATABASE_URL`` is set.
"""

from __future__ import annotations

import argparse
import sys

from bench import (
    calibration,
    children,
    claims,
    cold,
    dispatch,
    forecasts,
    goals,
    gpu_engines,
    gpus,
    int8,
    page,
    posts,
    pulls,
    resolver,
    scrapes,
    submissions,
)
from bench.scale import __main__ as scale
from bench.table import Row, show

BENCHES = {
    "cold": cold.builds,
    "submissions": submissions.ratio,
    "dispatch": dispatch.latency,
    "news": dispatch.news,
    "jobs": dispatch.throughput,
    "claims": claims.costs,
    "post": posts.p99,
    "int8": int8.ratios,
    "children": children.cost,
    "gpu": gpu_engines.engines,
    "gpus": gpus.scaling,
    "resolver": resolver.ratio,
    "pulls": pulls.ratios,
    "page": page.paints,
    "forecasts": forecasts.costs,
    "scrapes": scrapes.ratio,
    "calibration": calibration.costs,
    "goals": goals.searches,
}


def main() -> int:
    if sys.argv[1:2] == ["scale"]:
        return scale.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    names = parser.parse_args().names or list(BENCHES)
    unknown = set(names) - set(BENCHES)
    if unknown:
        parser.error(f"there is no bench {', '.join(sorted(unknown))}; choose {', '.join(BENCHES)}")
    rows: list[Row] = []
    for name in names:
        print(f"{name} …", flush=True)
        rows += BENCHES[name]()
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
